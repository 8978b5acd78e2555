package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

func restoreID(n byte) [16]byte { return [16]byte(bytes.Repeat([]byte{n}, 16)) }

func beginRestore(n byte, of *fsm.View) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_BeginRestore{BeginRestore: of.BeginRestore(restoreID(n), restoreID(n+100))}}
}

func chunks(n byte, of *fsm.View, size int) (list []*fsmpb.Command) {
	for c := range of.RestoreChunks(restoreID(n), size) {
		list = append(list, &fsmpb.Command{Op: &fsmpb.Command_RestoreChunk{RestoreChunk: c}})
	}
	return list
}

// commitRestore commits onto a machine as it is now.
func commitRestore(n byte, of *fsm.View, onto *fsm.Machine) *fsmpb.Command {
	data, _ := of.Hashes()
	id := restoreID(n)
	seal := onto.View().Seal()
	replaces := sha256.Sum256(seal.Keyring)
	return &fsmpb.Command{Op: &fsmpb.Command_CommitRestore{CommitRestore: &fsmpb.CommitRestore{Id: id[:], DataHash: data[:],
		Keyring: &fsmpb.ReplaceKeyring{Committed: seal.GetCommitted().GetId(), Replaces: replaces[:], Keyring: []byte("restored keyring"),
			Epochs: []*fsmpb.Epoch{{Purpose: "data", Id: []byte{n, 9}}}}}}}
}

func abandonRestore(n byte) *fsmpb.Command {
	id := restoreID(n)
	return &fsmpb.Command{Op: &fsmpb.Command_AbandonRestore{AbandonRestore: &fsmpb.AbandonRestore{Id: id[:]}}}
}

// archived is a state to go back to: secrets of several versions, a large one among them.
func archived(t tester) *fsm.Machine {
	t.Helper()
	m := founded(t, &fsmpb.Settings{MaxVersions: 5})
	for i := range 8 {
		r := do(t, m, at(int64(i+1), put(fmt.Sprint("s", i), 0, 1, "one")))
		for v := range i % 4 {
			r = do(t, m, at(int64(i+20), put(fmt.Sprint("s", i), r.Revision, uint64(v+2), strings.Repeat("x", 200))))
			want(t, r, fsmpb.Code_OK)
		}
		switch i {
		case 5:
			want(t, do(t, m, del("s5", r.Revision)), fsmpb.Code_OK)
		case 6:
			want(t, do(t, m, destroy("s6", r.Revision, 2)), fsmpb.Code_OK)
		}
	}
	for i := range 4 {
		want(t, do(t, m, putPolicy(fmt.Sprint("p", i), 0, "body")), fsmpb.Code_OK)
	}
	return m
}

// leveled returns a machine with something of every kind, at the newest level.
func leveled(t tester) *fsm.Machine {
	t.Helper()
	m := full(t)
	want(t, do(t, m, raise(fsm.Level)), fsmpb.Code_OK)
	want(t, do(t, m, abandon(2)), fsmpb.Code_OK) // a pending share set
	return m
}

// staging is leveled with a restore that has come half-way, in the middle of a secret.
func staging(t tester) *fsm.Machine {
	t.Helper()
	m, from := leveled(t), archived(t)
	want(t, do(t, m, beginRestore(1, from.View())), fsmpb.Code_OK)
	for _, c := range chunks(1, from.View(), 500) {
		want(t, do(t, m, c), fsmpb.Code_OK)
		if c.GetRestoreChunk().Partial {
			return m
		}
	}
	t.Fatal("no secret went over two chunks")
	return nil
}

// restarted returns a machine that was restored from the other's snapshot.
func restarted(t tester, m *fsm.Machine) *fsm.Machine {
	t.Helper()
	n := fsm.New(fsm.Options{})
	if err := n.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	equal(t, m.View(), n.View())
	return n
}

// What is staged becomes the state in one entry, whole, and nothing that was decided
// before it counts any more; write ids and anchors stay.
func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	from := archived(t)
	for _, size := range []int{1, 300, 700, 1 << 20} {
		m := leveled(t)
		before, was := m.View(), m.View().Seal()
		window, anchor := before.WindowLen(), before.WindowFloor()
		want(t, do(t, m, beginRestore(1, from.View())), fsmpb.Code_OK)
		list := chunks(1, from.View(), size)
		for i, c := range list {
			want(t, do(t, m, c), fsmpb.Code_OK)
			if s, ok := m.View().Staged(); !ok || s.Next != uint64(i+2) {
				t.Fatal(size, i, s)
			}
			if data, _ := m.View().Hashes(); data != first(before.Hashes()) {
				t.Fatal("staging changed the data")
			}
			if i%3 == 0 {
				m = restarted(t, m)
			}
		}
		late := put("late", 0, 1, "x")
		policies, generation := before.PolicyRevision(), was.Generation
		var told []fsm.Delta
		_, stop := m.Observe(changed(func(d fsm.Delta) { told = append(told, d) }))
		// With others in the same entry: what is before it is gone with the rest.
		byPolicies, bySeal := put("late", 0, 1, "x"), put("late", 0, 1, "x")
		byPolicies.Basis, bySeal.Basis = &fsmpb.Basis{PolicyRevision: &policies}, &fsmpb.Basis{SealGeneration: &generation}
		r := apply(t, m, m.View().Index()+1, encode(t, late), encode(t, commitRestore(1, from.View(), m)), encode(t, byPolicies), encode(t, bySeal))
		want(t, r[0], fsmpb.Code_OK)
		want(t, r[1], fsmpb.Code_OK)
		want(t, r[2], fsmpb.Code_BASIS_MOVED)
		want(t, r[3], fsmpb.Code_BASIS_MOVED)
		stop()
		v := m.View()
		if first(v.Hashes()) != first(from.View().Hashes()) || v.SecretCount() != 8 || v.PolicyCount() != 4 {
			t.Fatal(size, "not the archived state")
		}
		if len(told) != 1 || !told[0].Reset || !told[0].Seal || len(told[0].Secrets)+len(told[0].Acts)+len(told[0].Policies) != 0 {
			t.Fatal(size, told)
		}
		if _, ok := v.Staged(); ok || v.WindowLen() != window || v.WindowFloor() != anchor || string(v.Seal().Keyring) != "restored keyring" || v.Seal().Sealed ||
			!proto.Equal(v.Seal().Committed, was.Committed) || v.Restored().GetIndex() != v.Index() {
			t.Fatal(size, v.Seal(), v.Restored())
		}
		if _, ok := v.Anchor("nexus-1"); !ok {
			t.Fatal("anchors are gone")
		}
		if d := v.DifferenceTo(from.View()); d.Secrets != (fsm.Changes{}) || d.Policies != (fsm.Changes{}) {
			t.Fatal(d)
		}
		// The accounted size is that of a machine which loads it anew.
		m = restarted(t, m)
		a, b := secret(m, "s3"), secret(from, "s3")
		if !proto.Equal(a, b) {
			t.Fatal(a, b)
		}
		r0 := do(t, m, put("s3", a.Revision, fsm.NextVersion(a), "goes on"))
		want(t, r0, fsmpb.Code_OK)
		if r0.Revision <= before.PolicyRevision() {
			t.Fatal("a revision returned")
		}
	}
}

func first(a, _ [32]byte) [32]byte { return a }

// Each refusal changes nothing and says why.
func TestRestoreInPlaceRefuses(t *testing.T) {
	t.Parallel()
	from := archived(t)
	list := chunks(1, from.View(), 1200)
	if len(list) < 3 {
		t.Fatal(len(list))
	}
	low := founded(t, nil)
	want(t, do(t, low, raise(2)), fsmpb.Code_OK)
	want(t, do(t, low, beginRestore(1, from.View())), fsmpb.Code_LEVEL_TOO_LOW)

	m := leveled(t)
	refused := func(c *fsmpb.Command, code fsmpb.Code, reason string) {
		t.Helper()
		_, before := m.View().Hashes()
		r := do(t, m, c)
		want(t, r, code)
		if !strings.Contains(r.Reason, reason) {
			t.Errorf("%s, not %s", r.Reason, reason)
		}
		if _, after := m.View().Hashes(); after != before {
			t.Errorf("%s: something was changed", reason)
		}
	}
	changed := func(c *fsmpb.Command, change func(*fsmpb.RestoreChunk)) *fsmpb.Command {
		n := proto.Clone(c).(*fsmpb.Command)
		change(n.GetRestoreChunk())
		return n
	}
	refused(list[0], fsmpb.Code_SUPERSEDED, "not the staged")
	refused(commitRestore(1, from.View(), m), fsmpb.Code_SUPERSEDED, "not the staged")
	refused(abandonRestore(1), fsmpb.Code_SUPERSEDED, "not the staged")
	want(t, do(t, m, beginRestore(1, from.View())), fsmpb.Code_OK)
	refused(list[1], fsmpb.Code_CONFLICT, "missing")
	want(t, do(t, m, list[0]), fsmpb.Code_OK)
	_, before := m.View().Hashes()
	want(t, do(t, m, list[0]), fsmpb.Code_OK)
	want(t, do(t, m, beginRestore(1, from.View())), fsmpb.Code_OK)
	if _, after := m.View().Hashes(); after != before {
		t.Error("a repetition changed something")
	}
	second := list[1]
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Id = restoreIDOf(2) }), fsmpb.Code_SUPERSEDED, "")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets = nil }), fsmpb.Code_INVALID, "empty chunk")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets[0].Token = make([]byte, 32) }), fsmpb.Code_INVALID, "out of order")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets[len(c.Secrets)-1].Current = 99 }), fsmpb.Code_INVALID, "current")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets[0].Revision = 1 << 40 }), fsmpb.Code_INVALID, "numbers")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets[0].Versions = nil }), fsmpb.Code_INVALID, "version")
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Partial, c.Policies = true, []*fsmpb.Policy{{}} }), fsmpb.Code_INVALID, "whole")
	many := make([]*fsmpb.Version, fsm.MaxStaged)
	for i := range many {
		many[i] = &fsmpb.Version{}
	}
	refused(changed(second, func(c *fsmpb.RestoreChunk) { c.Secrets[0].Versions = many }), fsmpb.Code_INVALID, "too many records")
	refused(commitRestore(1, from.View(), m), fsmpb.Code_INVALID, "announced")
	for _, c := range list[1:] {
		want(t, do(t, m, c), fsmpb.Code_OK)
	}
	last := list[len(list)-1]
	refused(changed(last, func(c *fsmpb.RestoreChunk) {
		c.Sequence++
		c.Secrets = nil
		c.Policies[len(c.Policies)-1].Token = bytes.Repeat([]byte{0xff}, 32)
		c.Policies = c.Policies[len(c.Policies)-1:]
	}), fsmpb.Code_INVALID, "announced")
	wrong := commitRestore(1, from.View(), m)
	wrong.GetCommitRestore().DataHash[0] ^= 1
	refused(wrong, fsmpb.Code_INVALID, "announced")
	wrong = commitRestore(1, from.View(), m)
	wrong.GetCommitRestore().Keyring.Replaces[0] ^= 1
	refused(wrong, fsmpb.Code_CONFLICT, "keyring")
	generation := m.View().Seal().Generation + 1
	wrong = commitRestore(1, from.View(), m)
	wrong.Basis = &fsmpb.Basis{SealGeneration: &generation}
	refused(wrong, fsmpb.Code_BASIS_MOVED, "")
	want(t, do(t, m, begin(5, shareID(1))), fsmpb.Code_OK)
	refused(commitRestore(1, from.View(), m), fsmpb.Code_CONFLICT, "pending")
	want(t, do(t, m, abandon(5)), fsmpb.Code_OK)
	want(t, do(t, m, setSeal(true, m.View().Seal().Generation)), fsmpb.Code_OK)
	refused(commitRestore(1, from.View(), m), fsmpb.Code_SEALED, "")
	want(t, do(t, m, setSeal(false, m.View().Seal().Generation)), fsmpb.Code_OK)
	want(t, do(t, m, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{StateLimitBytes: 100})), fsmpb.Code_OK)
	refused(commitRestore(1, from.View(), m), fsmpb.Code_STATE_FULL, "")
	want(t, do(t, m, beginRestore(2, from.View())), fsmpb.Code_OK) // takes the place of the other
	refused(changed(list[0], func(c *fsmpb.RestoreChunk) { c.Id = restoreIDOf(2) }), fsmpb.Code_STATE_FULL, "")
	refused(list[0], fsmpb.Code_SUPERSEDED, "")
	want(t, do(t, m, abandonRestore(2)), fsmpb.Code_OK)
	if _, ok := m.View().Staged(); ok {
		t.Error("still staged")
	}
}

func restoreIDOf(n byte) []byte { id := restoreID(n); return id[:] }

// A state that was read from an archive while something was staged begins a cluster
// without it.
func TestRenewDropsWhatIsStaged(t *testing.T) {
	t.Parallel()
	m, from := leveled(t), archived(t)
	want(t, do(t, m, beginRestore(1, from.View())), fsmpb.Code_OK)
	want(t, do(t, m, chunks(1, from.View(), 700)[0]), fsmpb.Code_OK)
	_, incarnation := m.View().Cluster()
	if err := m.Renew(m.View().Seal(), incarnation); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.View().Staged(); ok {
		t.Error("still staged")
	}
	restarted(t, m)
}

// TestRestoreModel restores random states in chunks of random sizes over random ones,
// with writes, repetitions, chunks that come too early and restarts in between: all
// machines agree at every index, and what comes out is the archived state exactly.
func TestRestoreModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from := founded(t, &fsmpb.Settings{MaxVersions: 4})
		grow := func(m *fsm.Machine) *fsmpb.Command {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "name")
			s := secret(m, name)
			switch rapid.SampledFrom([]string{"put", "put", "delete", "destroy", "purge", "policy"}).Draw(t, "kind") {
			case "delete":
				return del(name, s.GetRevision())
			case "destroy":
				return destroy(name, s.GetRevision(), 1, 2)
			case "purge":
				return purge(name, s.GetRevision())
			case "policy":
				p, _ := m.View().Policy(fsm.Token(token(name)))
				return putPolicy(name, p.GetRevision(), rapid.StringN(1, 40, 40).Draw(t, "body"))
			}
			return at(rapid.Int64().Draw(t, "time"), put(name, s.GetRevision(), fsm.NextVersion(s), rapid.StringN(1, 99, -1).Draw(t, "value")))
		}
		for range rapid.IntRange(0, 25).Draw(t, "archived") {
			do(t, from, grow(from))
		}
		m := leveled(t)
		twin := restarted(t, m)
		both := func(c *fsmpb.Command) *fsmpb.Result {
			r := do(t, m, c)
			if s := do(t, twin, c); !proto.Equal(r, s) {
				t.Fatal(r, s)
			}
			equal(t, m.View(), twin.View())
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				twin = restarted(t, m)
			}
			return r
		}
		want(t, both(beginRestore(1, from.View())), fsmpb.Code_OK)
		list := chunks(1, from.View(), rapid.IntRange(1, 800).Draw(t, "size"))
		for next := 0; next < len(list); {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				both(grow(m))
			case 1:
				want(t, both(list[rapid.IntRange(0, next).Draw(t, "again")]), fsmpb.Code_OK)
				next = int(must(m.View().Staged()).Next) - 1
			case 2:
				if early := rapid.IntRange(next, len(list)-1).Draw(t, "early"); early > next {
					want(t, both(list[early]), fsmpb.Code_CONFLICT)
				}
			default:
				want(t, both(list[next]), fsmpb.Code_OK)
				next++
			}
		}
		revisions := []uint64{}
		for s := range m.View().Secrets() {
			revisions = append(revisions, s.Revision)
		}
		want(t, both(commitRestore(1, from.View(), m)), fsmpb.Code_OK)
		if first(m.View().Hashes()) != first(from.View().Hashes()) {
			t.Fatal("not the archived state")
		}
		for s := range from.View().Secrets() {
			if got, ok := m.View().Secret(fsm.Token(s.Token)); !ok || !proto.Equal(got, s) {
				t.Fatal(got, s)
			}
		}
		r := both(put("new", 0, 1, "x"))
		if r.Code != fsmpb.Code_OK || slices.Contains(revisions, r.Revision) {
			t.Fatal("a revision returned: ", r)
		}
	})
}

func must(s fsm.Staged, ok bool) fsm.Staged {
	if !ok {
		panic("nothing is staged")
	}
	return s
}

// A snapshot whose staging area does not fit is refused.
func TestForgedStagingArea(t *testing.T) {
	t.Parallel()
	good := snapshot(t, staging(t).View())
	area := slices.IndexFunc(records(t, good), func(r *fsmpb.SnapshotRecord) bool { return r.GetStaging() != nil })
	for i, forge := range []func(*fsmpb.SnapshotRecord){
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Secrets++ },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Next++ },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Next = 0 },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().DataHash[0] ^= 1 },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Begun = nil },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Begun.Request = nil },
		func(r *fsmpb.SnapshotRecord) { r.GetStaging().Begun.Revision = 1 },
	} {
		recs := records(t, good)
		forge(recs[area])
		if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(assemble(t, good[:magicLen], recs))); !errors.Is(err, fsm.ErrCorruptSnapshot) {
			t.Error(i, err)
		}
	}
	recs := records(t, good)
	recs[0].GetHeader().Level = 2
	if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(assemble(t, good[:magicLen], recs))); !errors.Is(err, fsm.ErrCorruptSnapshot) {
		t.Error("at a lower level:", err)
	}
}
