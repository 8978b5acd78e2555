package fsm_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// ready returns a machine with secrets "a" (two versions) and "gone" (deleted),
// policy "p", committed share set 1 and an anchor; and their revisions.
func ready(t tester) (m *fsm.Machine, a, gone, p uint64) {
	t.Helper()
	m = founded(t, &fsmpb.Settings{SecretLimitBytes: 1000})
	want(t, do(t, m, begin(1, nil)), fsmpb.Code_OK)
	want(t, do(t, m, commit(1)), fsmpb.Code_OK)
	a = do(t, m, put("a", 0, 1, "one")).Revision
	a = do(t, m, with(7, 1, put("a", a, 2, "two"))).Revision
	gone = do(t, m, put("gone", 0, 1, "x")).Revision
	gone = do(t, m, del("gone", gone)).Revision
	p = do(t, m, putPolicy("p", 0, "body")).Revision
	want(t, do(t, m, anchor("nexus-1", 10)), fsmpb.Code_OK)
	return m, a, gone, p
}

// TestRejections gives each rejection once and checks that it changes nothing
// but the index, and that it says what is current.
func TestRejections(t *testing.T) {
	t.Parallel()
	m, a, gone, p := ready(t)
	basis := func(b *fsmpb.Basis, c *fsmpb.Command) *fsmpb.Command { c.Basis = b; return c }
	one := uint64(1)
	big := strings.Repeat("x", 1001)
	for _, c := range []struct {
		name    string
		command *fsmpb.Command
		code    fsmpb.Code
	}{
		{"found another id", &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: shareID(9), Incarnation: 1}}}, fsmpb.Code_CONFLICT},
		{"found another incarnation", &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: clusterID, Incarnation: 2}}}, fsmpb.Code_CONFLICT},
		{"put what must not exist", put("a", 0, 3, "x"), fsmpb.Code_CONFLICT},
		{"put what must exist", put("b", 5, 1, "x"), fsmpb.Code_CONFLICT},
		{"put on an older revision", put("a", a-1, 3, "x"), fsmpb.Code_CONFLICT},
		{"put under another number", put("a", a, 4, "x"), fsmpb.Code_CONFLICT},
		{"put under a number that exists", put("a", a, 2, "x"), fsmpb.Code_CONFLICT},
		{"put too much", put("a", a, 3, big), fsmpb.Code_TOO_LARGE},
		{"delete what is not there", del("b", 0), fsmpb.Code_NOT_FOUND},
		{"delete on an older revision", del("a", a-1), fsmpb.Code_CONFLICT},
		{"undelete what is not there", undel("b", 0), fsmpb.Code_NOT_FOUND},
		{"undelete what is live", undel("a", a), fsmpb.Code_NOT_FOUND},
		{"undelete on an older revision", undel("gone", gone-1), fsmpb.Code_CONFLICT},
		{"destroy what is not there", destroy("b", 0, 1), fsmpb.Code_NOT_FOUND},
		{"destroy on an older revision", destroy("a", a-1, 1), fsmpb.Code_CONFLICT},
		{"purge what is not there", purge("b", 0), fsmpb.Code_NOT_FOUND},
		{"purge on an older revision", purge("a", a-1), fsmpb.Code_CONFLICT},
		{"policy that must not exist", putPolicy("p", 0, "x"), fsmpb.Code_CONFLICT},
		{"policy that must exist", putPolicy("q", 3, "x"), fsmpb.Code_CONFLICT},
		{"delete a policy that is not there", delPolicy("q", 0), fsmpb.Code_NOT_FOUND},
		{"delete a policy on an older revision", delPolicy("p", p-1), fsmpb.Code_CONFLICT},
		{"share set beside the committed one", begin(2, nil), fsmpb.Code_CONFLICT},
		{"share set after another one", begin(2, shareID(3)), fsmpb.Code_CONFLICT},
		{"the committed share set again", begin(1, shareID(1)), fsmpb.Code_CONFLICT},
		{"commit of none", commit(2), fsmpb.Code_SUPERSEDED},
		{"seal on an older generation", setSeal(true, 5), fsmpb.Code_CONFLICT},
		{"anchor further back", anchor("nexus-1", 9), fsmpb.Code_CONFLICT},
		{"anchor again", anchor("nexus-1", 10), fsmpb.Code_CONFLICT},
		{"settings on an older revision", putSettings(0, nil), fsmpb.Code_CONFLICT},
		{"basis: policies", basis(&fsmpb.Basis{PolicyRevision: &one}, put("a", a, 3, "x")), fsmpb.Code_BASIS_MOVED},
		{"basis: seal", basis(&fsmpb.Basis{SealGeneration: &one}, put("a", a, 3, "x")), fsmpb.Code_BASIS_MOVED},
		{"basis: key epoch", basis(&fsmpb.Basis{DataEpoch: []byte("old")}, put("a", a, 3, "x")), fsmpb.Code_BASIS_MOVED},
		{"basis: no key epoch", basis(&fsmpb.Basis{DataEpoch: []byte{}}, put("a", a, 3, "x")), fsmpb.Code_BASIS_MOVED},
		{"write id reused", func() *fsmpb.Command {
			c := with(7, 1, put("a", a, 3, "x"))
			c.WriteId.Request = []byte("another")
			return c
		}(), fsmpb.Code_WRITE_ID_REUSED},
	} {
		before, all := m.View().Hashes()
		size, _ := m.View().Size()
		window := m.View().WindowLen()
		if c.command.WriteId == nil {
			c.command = with(99, 1, c.command) // must not enter the window
		}
		r := do(t, m, c.command)
		if r.Code != c.code {
			t.Errorf("%s: %v, want %v", c.name, r.Code, c.code)
		}
		v := m.View()
		data2, all2 := v.Hashes()
		size2, _ := v.Size()
		if data2 != before || all2 != all || size2 != size || v.WindowLen() != window {
			t.Errorf("%s: something changed", c.name)
		}
		cur := r.Current
		if cur == nil || cur.PolicyRevision != p || cur.SealGeneration != 0 || !bytes.Equal(cur.DataEpoch, []byte{1, 1}) ||
			!bytes.Equal(cur.CommittedSet, shareID(1)) || !bytes.Equal(cur.ClusterId, clusterID) {
			t.Fatalf("%s: current %v", c.name, cur)
		}
		if c.command.GetPutSecret() != nil && bytes.Equal(c.command.GetPutSecret().Token, token("a")) &&
			(cur.SecretRevision != a || cur.CurrentVersion != 2 || cur.NextVersion != 3) {
			t.Errorf("%s: current %v", c.name, cur)
		}
	}
}

func TestBasisThatStands(t *testing.T) {
	t.Parallel()
	m, a, _, p := ready(t)
	zero := uint64(0)
	c := put("a", a, 3, "x")
	c.Basis = &fsmpb.Basis{PolicyRevision: &p, SealGeneration: &zero, DataEpoch: []byte{1, 1}}
	want(t, do(t, m, c), fsmpb.Code_OK)
}

func TestBeforeFounding(t *testing.T) {
	t.Parallel()
	m := fsm.New(fsm.Options{})
	if m.View().Founded() || m.View().Seal() == nil || m.View().Settings() == nil {
		t.Fatal("not an empty view")
	}
	for _, c := range []*fsmpb.Command{put("a", 0, 1, "x"), del("a", 0), undel("a", 0), destroy("a", 0, 1), purge("a", 0),
		putPolicy("p", 0, "x"), delPolicy("p", 0), begin(1, nil), commit(1), setSeal(true, 0), anchor("n", 1), putSettings(0, nil)} {
		want(t, do(t, m, c), fsmpb.Code_NOT_FOUNDED)
	}
	want(t, do(t, m, found(nil)), fsmpb.Code_OK)
	data, all := m.View().Hashes()
	want(t, do(t, m, found(nil)), fsmpb.Code_OK) // the same again
	if d, a := m.View().Hashes(); d != data || a != all {
		t.Error("founding again changed the state")
	}
	s := m.View().Settings()
	if s.MaxVersions != 10 || s.StateLimitBytes != 1<<30 || s.WindowEntries != 1<<18 || s.WindowBytes != 64<<20 {
		t.Error("defaults:", s)
	}
	id, incarnation := m.View().Cluster()
	if !bytes.Equal(id, clusterID) || incarnation != 1 {
		t.Error(id, incarnation)
	}
}

func TestSealedByOperator(t *testing.T) {
	t.Parallel()
	m, a, gone, p := ready(t)
	want(t, do(t, m, setSeal(true, 0)), fsmpb.Code_OK)
	for _, c := range []*fsmpb.Command{put("a", a, 3, "x"), del("a", a), undel("gone", gone), destroy("a", a, 1),
		purge("a", a), putPolicy("p", p, "x"), delPolicy("p", p)} {
		r := do(t, m, c)
		want(t, r, fsmpb.Code_SEALED)
		if !r.Current.Sealed || r.Current.SealGeneration != 1 {
			t.Fatal(r)
		}
	}
	// What keeps the cluster alive, and gets it out again, goes on.
	for _, c := range []*fsmpb.Command{anchor("nexus-1", 11), begin(2, shareID(1)), commit(2),
		putSettings(m.View().SettingsRevision(), nil), setSeal(false, 1), put("a", a, 3, "x")} {
		want(t, do(t, m, c), fsmpb.Code_OK)
	}
	if s := m.View().Seal(); s.Sealed || s.Generation != 2 {
		t.Fatal(s)
	}
}

func TestShareSets(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	want(t, do(t, m, begin(1, shareID(5))), fsmpb.Code_CONFLICT) // none is committed
	want(t, do(t, m, begin(1, make([]byte, 16))), fsmpb.Code_OK) // zeros mean none
	want(t, do(t, m, begin(2, nil)), fsmpb.Code_OK)              // a retry supersedes
	want(t, do(t, m, commit(1)), fsmpb.Code_SUPERSEDED)          // so of two only one wins
	want(t, do(t, m, commit(2)), fsmpb.Code_OK)
	r := do(t, m, commit(2))
	want(t, r, fsmpb.Code_SUPERSEDED)
	if !bytes.Equal(r.Current.CommittedSet, shareID(2)) || len(r.Current.PendingSet) != 0 {
		t.Fatal(r.Current)
	}
	want(t, do(t, m, begin(3, shareID(2))), fsmpb.Code_OK) // a rekey
	s := m.View().Seal()
	if !bytes.Equal(s.Committed.Id, shareID(2)) || !bytes.Equal(s.Pending.Id, shareID(3)) || string(s.Keyring) != "sealed keyring" {
		t.Fatal(s)
	}
	want(t, do(t, m, commit(3)), fsmpb.Code_OK)
	if s := m.View().Seal(); !bytes.Equal(s.Committed.Id, shareID(3)) || s.Pending != nil || s.Epochs[0].Id[0] != 3 {
		t.Fatal(s)
	}
}

func TestStateLimit(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{StateLimitBytes: 4000, MaxVersions: 2})
	a := do(t, m, put("a", 0, 1, strings.Repeat("x", 1000))).Revision
	a = do(t, m, put("a", a, 2, strings.Repeat("x", 1000))).Revision
	p := do(t, m, putPolicy("p", 0, "x")).Revision
	want(t, do(t, m, put("b", 0, 1, strings.Repeat("x", 1000))), fsmpb.Code_STATE_FULL)
	want(t, do(t, m, putPolicy("q", 0, strings.Repeat("x", 2000))), fsmpb.Code_STATE_FULL)
	want(t, do(t, m, putPolicy("p", p, strings.Repeat("x", 2000))), fsmpb.Code_STATE_FULL)
	r := do(t, m, put("a", a, 3, strings.Repeat("x", 1000))) // the first goes: it does not grow
	want(t, r, fsmpb.Code_OK)
	// Below the limit that is in force, only what grows is refused.
	want(t, do(t, m, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{StateLimitBytes: 100})), fsmpb.Code_OK)
	r = do(t, m, put("a", r.Revision, 4, strings.Repeat("x", 900)))
	want(t, r, fsmpb.Code_OK)
	want(t, do(t, m, put("a", r.Revision, 5, strings.Repeat("x", 1001))), fsmpb.Code_STATE_FULL)
	want(t, do(t, m, anchor("nexus-1", 1)), fsmpb.Code_OK)
	want(t, do(t, m, begin(1, nil)), fsmpb.Code_OK)
	want(t, do(t, m, commit(1)), fsmpb.Code_OK)
	for _, c := range []*fsmpb.Command{del("a", r.Revision), destroy("a", r.Revision+1, 3), purge("a", r.Revision+2)} {
		want(t, do(t, m, c), fsmpb.Code_OK)
	}
	want(t, do(t, m, delPolicy("p", p)), fsmpb.Code_OK)
	if size, limit := m.View().Size(); size > 800 || limit != 100 {
		t.Fatal(size, limit)
	}
}

func TestAnchors(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	want(t, do(t, m, anchor("nexus-2", 4)), fsmpb.Code_OK)
	want(t, do(t, m, at(9, anchor("nexus-1", 3))), fsmpb.Code_OK)
	want(t, do(t, m, anchor("nexus-2", 5)), fsmpb.Code_OK)
	r := do(t, m, anchor("nexus-2", 5))
	if r.Code != fsmpb.Code_CONFLICT || r.Current.AnchorCount != 5 {
		t.Fatal(r)
	}
	var peers string
	for peer, a := range m.View().Anchors() {
		peers += peer + " "
		if b, ok := m.View().Anchor(peer); !ok || a != b {
			t.Error(peer)
		}
	}
	if peers != "nexus-1 nexus-2 " {
		t.Fatal(peers)
	}
	if a, _ := m.View().Anchor("nexus-1"); a.Count != 3 || a.Index != 3 || a.Time != 9 {
		t.Fatal(a)
	}
}

func TestUnknownLevelStopsTheWholeEntry(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	_, all := m.View().Hashes()
	newer := encode(t, &fsmpb.Command{Level: fsm.Level + 1, Op: put("b", 0, 1, "x").Op})
	newer = protowire.AppendTag(newer, 200, protowire.BytesType) // with things we do not know
	newer = protowire.AppendBytes(newer, []byte("?"))
	_, err := m.Apply(7, 1, [][]byte{encode(t, put("a", 0, 1, "x")), newer})
	var unknown *fsm.ErrUnknownLevel
	if !errors.As(err, &unknown) || unknown.Level != fsm.Level+1 || unknown.Known != fsm.Level || unknown.Index != 7 {
		t.Fatal(err)
	}
	if _, after := m.View().Hashes(); after != all || m.View().Index() != 1 {
		t.Fatal("something was applied")
	}
	if r := do(t, m, put("a", 0, 1, "x")); r.Revision != 2 {
		t.Fatal("a revision was given out")
	}
}

func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	_, err := m.Apply(1, 1, nil)
	var order *fsm.ErrOutOfOrder
	if !errors.As(err, &order) {
		t.Fatal(err)
	}
	if _, err := m.Apply(9, 3, nil); err != nil || m.View().Index() != 9 || m.View().Term() != 3 {
		t.Fatal("entries without commands count, and indices may have gaps")
	}
}

func edited(c *fsmpb.Command, f func(*fsmpb.Command)) *fsmpb.Command {
	f(c)
	return c
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	m, a, _, _ := ready(t)
	good := encode(t, put("a", a, 3, "x"))
	field := func(b []byte, num protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(bytes.Clone(b), num, protowire.BytesType), value)
	}
	edit := func(f func(*fsmpb.Command)) []byte {
		var c fsmpb.Command
		if err := proto.Unmarshal(good, &c); err != nil {
			t.Fatal(err)
		}
		f(&c)
		return encode(t, &c)
	}
	secretWith := func(f func(*fsmpb.PutSecret)) []byte {
		return edit(func(c *fsmpb.Command) { f(c.GetPutSecret()) })
	}
	set := func(f func(*fsmpb.ShareSet)) []byte {
		c := begin(2, shareID(1))
		f(c.GetBeginShareSet().Set)
		return encode(t, c)
	}
	commits := func(f func(*fsmpb.CommitShareSet)) []byte {
		c := commit(2)
		f(c.GetCommitShareSet())
		return encode(t, c)
	}
	noOp, _ := proto.Marshal(&fsmpb.Command{Level: 1})
	noLevel, _ := proto.Marshal(put("a", a, 3, "x"))
	inner, _ := proto.Marshal(put("a", a, 3, "x").GetPutSecret())
	for name, b := range map[string][]byte{
		"empty":              {},
		"noise":              {0xff, 0xff, 0xff},
		"cut":                good[:len(good)-1],
		"no level":           noLevel,
		"no operation":       noOp,
		"two operations":     field(good, 17, inner),
		"two kinds":          field(good, 21, nil),
		"unknown field":      field(good, 100, []byte("x")),
		"unknown inside":     field(noOp, 17, field(inner, 50, []byte("x"))),
		"wrong type":         field(noOp, 2, []byte("x")),
		"empty operation":    field(noOp, 17, nil),
		"no share set":       field(noOp, 24, nil),
		"no settings needed": field(noOp, 16, nil),
		"nested noise":       field(noOp, 17, []byte{0xff}),
		"token":              secretWith(func(p *fsmpb.PutSecret) { p.Token = p.Token[:31] }),
		"key id":             secretWith(func(p *fsmpb.PutSecret) { p.PathKeyId = make([]byte, fsm.MaxKeyID+1) }),
		"name":               secretWith(func(p *fsmpb.PutSecret) { p.Name = make([]byte, fsm.MaxName+1) }),
		"no name":            encode(t, &fsmpb.Command{Op: &fsmpb.Command_PutSecret{PutSecret: &fsmpb.PutSecret{Token: token("new"), Version: 1, Value: []byte{1}}}}),
		"value":              secretWith(func(p *fsmpb.PutSecret) { p.Value = nil }),
		"version":            secretWith(func(p *fsmpb.PutSecret) { p.Version = 0 }),
		"max versions":       secretWith(func(p *fsmpb.PutSecret) { p.MaxVersions = fsm.MaxVersions + 1 }),
		"versions":           encode(t, del("a", a, make([]uint64, fsm.MaxVersions+1)...)),
		"long versions":      encode(t, del("a", a, make([]uint64, 1<<19)...)),
		"policy body":        encode(t, putPolicy("q", 0, strings.Repeat("x", fsm.MaxPolicyBody+1))),
		"no policy body":     encode(t, putPolicy("q", 0, "")),
		"policy token":       encode(t, &fsmpb.Command{Op: &fsmpb.Command_DeletePolicy{DeletePolicy: &fsmpb.DeletePolicy{}}}),
		"write id":           edit(func(c *fsmpb.Command) { c.WriteId = &fsmpb.WriteID{Id: make([]byte, 15)} }),
		"write id request":   edit(func(c *fsmpb.Command) { c.WriteId = &fsmpb.WriteID{Id: make([]byte, 16), Request: make([]byte, 33)} }),
		"write id's future":  edit(func(c *fsmpb.Command) { c.WriteId = &fsmpb.WriteID{Id: make([]byte, 16), Index: 1 << 40} }),
		"data epoch":         edit(func(c *fsmpb.Command) { c.Basis = &fsmpb.Basis{DataEpoch: make([]byte, fsm.MaxKeyID+1)} }),
		"cluster id":         encode(t, &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: make([]byte, 16), Incarnation: 1}}}),
		"share set id":       set(func(s *fsmpb.ShareSet) { s.Id = make([]byte, 16) }),
		"threshold":          set(func(s *fsmpb.ShareSet) { s.Threshold = 4 }),
		"no threshold":       set(func(s *fsmpb.ShareSet) { s.Threshold = 0 }),
		"fingerprints":       set(func(s *fsmpb.ShareSet) { s.Fingerprints = s.Fingerprints[1:] }),
		"fingerprint":        set(func(s *fsmpb.ShareSet) { s.Fingerprints[1] = nil }),
		"keepers":            set(func(s *fsmpb.ShareSet) { s.Keepers = nil }),
		"keeper":             set(func(s *fsmpb.ShareSet) { s.Keepers[0] = strings.Repeat("k", 256) }),
		"shares":             set(func(s *fsmpb.ShareSet) { s.Shares = 1 << 30 }),
		"keyring":            commits(func(c *fsmpb.CommitShareSet) { c.Keyring = make([]byte, fsm.MaxKeyring+1) }),
		"no keyring":         commits(func(c *fsmpb.CommitShareSet) { c.Keyring = nil }),
		"epochs":             commits(func(c *fsmpb.CommitShareSet) { c.Epochs = make([]*fsmpb.Epoch, fsm.MaxEpochs+1) }),
		"epoch twice":        commits(func(c *fsmpb.CommitShareSet) { c.Epochs = append(c.Epochs, c.Epochs[0]) }),
		"epoch":              commits(func(c *fsmpb.CommitShareSet) { c.Epochs[0].Purpose = "" }),
		"keyring's set":      encode(t, edited(replace(1, "k", "l", 2), func(c *fsmpb.Command) { c.GetReplaceKeyring().Committed = nil })),
		"replaced keyring":   encode(t, edited(replace(1, "k", "l", 2), func(c *fsmpb.Command) { c.GetReplaceKeyring().Replaces = nil })),
		"new keyring":        encode(t, replace(1, "k", "", 2)),
		"new epochs":         encode(t, edited(replace(1, "k", "l", 2), func(c *fsmpb.Command) { c.GetReplaceKeyring().Epochs[0].Id = nil })),
		"keyring at level 1": encode(t, level(1, replace(1, "k", "l", 2))),
		"reseal at level 1":  encode(t, level(1, reseal(resealed("a", a, 1, "x")))),
		"reseal nothing":     encode(t, reseal()),
		"reseal too much":    encode(t, reseal(slices.Repeat([]*fsmpb.ResealedVersion{resealed("a", a, 1, "x")}, fsm.MaxResealed+1)...)),
		"reseal nameless":    encode(t, reseal(&fsmpb.ResealedVersion{Revision: a, Version: 1, Value: []byte("x")})),
		"reseal no value":    encode(t, reseal(resealed("a", a, 1, ""))),
		"reseal any":         encode(t, reseal(resealed("a", 0, 1, "x"))),
		"reseal what":        encode(t, reseal(resealed("a", a, 0, "x"))),
		"reseal no body":     encode(t, resealPolicy("p", 1, "")),
		"reseal any policy":  encode(t, resealPolicy("p", 0, "x")),
		"reseal long policy": encode(t, resealPolicy("p", 1, strings.Repeat("x", fsm.MaxPolicyBody+1))),
		"incarnation of 1":   encode(t, level(1, commitFor(1, 2))),
		"abandon at level 1": encode(t, level(1, abandon(1))),
		"abandon what":       encode(t, &fsmpb.Command{Op: &fsmpb.Command_AbandonShareSet{AbandonShareSet: &fsmpb.AbandonShareSet{}}}),
		"peer":               encode(t, anchor("", 5)),
		"count":              encode(t, anchor("n", 0)),
		"settings":           encode(t, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{MaxVersions: 1001})),
		"window":             encode(t, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{WindowBytes: 1})),
		"secret limit":       encode(t, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{SecretLimitBytes: 1 << 40})),
		"not UTF-8":          bytes.Replace(encode(t, anchor("peer-x", 5)), []byte("peer-x"), []byte("peer-\xff"), 1),
	} {
		_, all := m.View().Hashes()
		r := apply(t, m, m.View().Index()+1, b)[0]
		if r.Code != fsmpb.Code_INVALID || r.Reason == "" || r.Current == nil {
			t.Errorf("%s: %v", name, r)
		}
		if _, after := m.View().Hashes(); after != all {
			t.Errorf("%s: something changed", name)
		}
	}
	want(t, apply(t, m, m.View().Index()+1, good)[0], fsmpb.Code_OK)
}
