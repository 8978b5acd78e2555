package store_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// Invariant 5: a change whose ground has moved is decided again.
func TestChangeIsDecidedAgain(t *testing.T) {
	t.Parallel()
	t.Run("another writer was first", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		other := w.other()
		w.log.before = func(*fsmpb.Command) {
			if _, err := other.PutSecret(ctx, su, "a/b", values("theirs"), nil); err != nil {
				t.Error(err)
			}
		}
		changed, err := w.PutSecret(ctx, su, "a/b", values("ours"), nil)
		if err != nil || changed.Version != 2 || w.read("a/b") != `{"v":"ours"}` {
			t.Fatal(changed, err)
		}
	})
	t.Run("the secret was purged and made anew", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		other := w.other()
		w.PutSecret(ctx, su, "a/b", values("1"), nil)
		w.log.before = func(*fsmpb.Command) {
			other.PurgeSecret(ctx, su, "a/b")
			other.PutSecret(ctx, su, "a/b", values("2"), nil)
		}
		if changed, err := w.PutSecret(ctx, su, "a/b", values("3"), nil); err != nil || changed.Version != 2 {
			t.Fatal(changed, err)
		}
	})
	t.Run("compare-and-set loses", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		other := w.other()
		zero := secret.Version(0)
		w.log.before = func(*fsmpb.Command) { other.PutSecret(ctx, su, "a/b", values("theirs"), nil) }
		_, err := w.PutSecret(ctx, su, "a/b", values("ours"), &zero)
		wantCode(t, err, secret.CodeConflict)
		if w.read("a/b") != `{"v":"theirs"}` {
			t.Fatal("the loser's value was written")
		}
	})
	t.Run("the policy was revoked meanwhile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		other := w.other()
		w.allow("web", "a", secret.Write)
		w.log.before = func(*fsmpb.Command) {
			if _, err := other.DeletePolicy(ctx, su, "web"); err != nil {
				t.Error(err)
			}
		}
		_, err := w.PutSecret(ctx, web, "a/b", values("ours"), nil)
		wantCode(t, err, secret.CodeDenied)
		if w.machine.View().SecretCount() != 0 {
			t.Fatal("a write took effect after its policy was revoked")
		}
	})
	t.Run("an unrelated policy changed meanwhile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log.before = func(*fsmpb.Command) { w.allow("unrelated", "z", secret.Read) }
		if _, err := w.PutSecret(ctx, su, "a/b", values("ours"), nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the cluster was sealed meanwhile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log.before = func(*fsmpb.Command) {
			w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: true}}})
		}
		_, err := w.PutSecret(ctx, su, "a/b", values("ours"), nil)
		wantCode(t, err, secret.CodeSealed)
	})
	t.Run("the cluster was sealed and unsealed meanwhile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log.before = func(*fsmpb.Command) {
			w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: true}}})
			w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{ExpectedGeneration: 1}}})
		}
		_, err := w.PutSecret(ctx, su, "a/b", values("ours"), nil)
		wantCode(t, err, secret.CodeSealed)
		if w.machine.View().SecretCount() != 0 {
			t.Fatal("a write that was decided before the seal took effect after it")
		}
	})
	t.Run("the data key was rotated meanwhile", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		tries := 0
		w.log.fail = func() (bool, error) { tries++; return true, nil }
		w.log.before = func(*fsmpb.Command) { w.rotate("epoch-2") }
		if _, err := w.PutSecret(ctx, su, "a/b", values("ours"), nil); err != nil {
			t.Fatal(err)
		}
		if tries != 2 {
			t.Fatalf("%d attempts: a value under the old key took effect", tries)
		}
	})
}

// Invariant 6: an attempt that failed but persisted is not made twice, and one
// whose outcome stays unknown is never called a failure.
func TestFailedAndFailedButPersisted(t *testing.T) {
	t.Parallel()
	for name, apply := range map[string]bool{"failed": false, "failed but persisted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			tries := 0
			w.log.fail = func() (bool, error) {
				if tries++; tries <= 3 {
					return apply && tries == 1, secret.Errorf(secret.CodeUnknown, "connection lost")
				}
				return false, nil
			}
			changed, err := w.PutSecret(ctx, su, "a/b", values("x"), nil)
			if err != nil || changed.Version != 1 {
				t.Fatal(changed, err)
			}
			m, err := w.GetMetadata(ctx, su, "a/b", 0, true)
			if err != nil || len(m.Versions) != 1 {
				t.Fatalf("%d versions after one acknowledged write: %v", len(m.Versions), err)
			}
		})
	}
	t.Run("outcome stays unknown", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		first := true
		w.log.fail = func() (bool, error) {
			if first {
				first = false
				return true, secret.Errorf(secret.CodeUnknown, "connection lost")
			}
			return false, secret.Errorf(secret.CodeOverloaded, "busy")
		}
		_, err := w.PutSecret(ctx, su, "a/b", values("x"), nil)
		wantCode(t, err, secret.CodeUnknown)
		if got := w.audit.since(0); !slices.Contains(got, "secret.put outcome refuse unknown") {
			t.Fatal(got)
		}
	})
	t.Run("certainly not done", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log.fail = func() (bool, error) { return false, secret.Errorf(secret.CodeOverloaded, "busy") }
		_, err := w.PutSecret(ctx, su, "a/b", values("x"), nil)
		wantCode(t, err, secret.CodeOverloaded)
	})
}

func TestWriteIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := su
	r.Write = store.WriteID{ID: [16]byte{1}, Index: w.Index()}
	first, err := w.PutSecret(ctx, r, "a/b", values("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.other().PutSecret(ctx, r, "a/b", values("x"), nil)
	if err != nil || again.Version != first.Version || again.Index != first.Index {
		t.Fatalf("the retry was applied again: %+v, then %+v, %v", first, again, err)
	}
	_, err = w.PutSecret(ctx, r, "a/b", values("another"), nil)
	wantCode(t, err, secret.CodeInvalid)
	w.allow("web", "a", secret.Write)
	theirs := web
	theirs.Write = r.Write
	if changed, err := w.PutSecret(ctx, theirs, "a/b", values("x"), nil); err != nil || changed.Version != 2 {
		t.Fatalf("another caller's id collided: %+v %v", changed, err)
	}
}

// Invariant 6: a key of the client's is judged by an index from before its first
// attempt or not at all. After the window has forgotten it the outcome is
// unknown; it is never applied again.
func TestIdempotencyKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_PutSettings{PutSettings: &fsmpb.PutSettings{
		ExpectedRevision: w.machine.View().SettingsRevision(), Settings: &fsmpb.Settings{WindowEntries: 3}}}})
	r := su
	r.Write = store.WriteID{ID: [16]byte{1}, Keyed: true}
	_, err := w.PutSecret(ctx, r, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeIndexRequired)
	_, err = w.GetSecret(ctx, r, "a/b", 0) // reads need none, and nothing was written
	wantCode(t, err, secret.CodeNotFound)
	late := r
	r.Write.Index = w.Index()
	first, err := w.PutSecret(ctx, r, "a/b", values("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.other().PutSecret(ctx, r, "a/b", values("x"), nil); err != nil || again.Index != first.Index {
		t.Fatal(again, err)
	}
	for range 3 {
		if _, err := w.PutSecret(ctx, su, "a/c", values("y"), nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err = w.PutSecret(ctx, r, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeUnknown)
	_, err = w.PutSecret(ctx, late, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeIndexRequired)
	late.Write.Index = w.Index() + 1000
	_, err = w.PutSecret(ctx, late, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeInvalid)
	if m, err := w.GetMetadata(ctx, su, "a/b", 0, true); err != nil || m.Current != 1 {
		t.Fatal("applied again: ", m, err)
	}
}

// Invariant 5: a negative answer is given only after a read-index round.
func TestNegativeAnswersAreFresh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := secret.Version(1)
	for name, ask := range map[string]func() error{
		"denied":         func() error { _, err := w.PutSecret(ctx, web, "a/b", values("x"), nil); return err },
		"missing":        func() error { _, err := w.DeleteVersions(ctx, su, "a/b", nil); return err },
		"conflict":       func() error { _, err := w.PutSecret(ctx, su, "a/b", values("x"), &one); return err },
		"missing policy": func() error { _, err := w.DeletePolicy(ctx, su, "p"); return err },
	} {
		before := w.log.reads
		if err := ask(); err == nil {
			t.Fatal(name, "succeeded")
		}
		if w.log.reads == before {
			t.Errorf("%s was answered without a read-index round", name)
		}
	}
	w.log.noRead = secret.Errorf(secret.CodeUnavailable, "no leader")
	_, err := w.PutSecret(ctx, web, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeUnavailable)
	_, err = w.GetSecret(ctx, su, "a/b", 0)
	wantCode(t, err, secret.CodeUnavailable)
}

// Invariant 8: no audit, no answer.
func TestNoAuditNoAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.PutSecret(ctx, su, "a/b", values("x"), nil)
	refuse := func(when func(audit.Record) bool) {
		w.audit.mu.Lock()
		defer w.audit.mu.Unlock()
		w.audit.fail = func(r audit.Record) error {
			if when(r) {
				return errDisk
			}
			return nil
		}
	}
	refuse(func(audit.Record) bool { return true })
	_, err := w.GetSecret(ctx, su, "a/b", 0)
	wantCode(t, err, secret.CodeUnavailable)
	before := w.machine.View().Index()
	_, err = w.PutSecret(ctx, su, "a/b", values("y"), nil)
	wantCode(t, err, secret.CodeUnavailable)
	if w.machine.View().Index() != before {
		t.Fatal("a change was proposed without its intent on record")
	}
	// Once a change is made, an answer that cannot be recorded must not say that
	// it was not.
	refuse(func(r audit.Record) bool { return r.Phase == audit.PhaseOutcome })
	_, err = w.PutSecret(ctx, su, "a/b", values("y"), nil)
	wantCode(t, err, secret.CodeUnknown)
}

func TestAuditOrderAndDurability(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.audit.len()
	w.log.before = func(*fsmpb.Command) {
		if got := w.audit.since(n); !slices.Equal(got, []string{"secret.put intent allow"}) {
			t.Errorf("on record before the proposal: %q", got)
		}
	}
	if _, err := w.PutSecret(ctx, su, "tenants/acme", values("x"), nil); err != nil {
		t.Fatal(err)
	}
	w.GetSecret(ctx, su, "tenants/acme", 0)
	w.GetSecret(ctx, web, "tenants/acme", 0)
	want := []string{"secret.put intent allow", "secret.put outcome allow ok", "secret.get decision allow", "secret.get decision deny"}
	if got := w.audit.since(n); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
	if !w.audit.durable[n] || !w.audit.durable[n+1] || w.audit.durable[n+2] {
		t.Fatal("changes are fsynced before they are acknowledged, reads are not")
	}
	for _, r := range w.audit.records {
		if strings.Contains(fmt.Sprint(r), "acme") {
			t.Errorf("a path stands in a record: %+v", r)
		}
		if r.Phase == audit.PhaseOutcome && r.Index == 0 {
			t.Errorf("an outcome has no Raft index: %+v", r)
		}
	}
}

// Invariant 4: while sealed nothing is served and no path is on record.
func TestSealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.PutSecret(ctx, su, "a/b", values("x"), nil)
	w.keys.mu.Lock()
	w.keys.sealed = true
	w.keys.mu.Unlock()
	w.Close()
	n := w.audit.len()
	_, err := w.GetSecret(ctx, su, "a/b", 0)
	wantCode(t, err, secret.CodeSealed)
	_, err = w.PutSecret(ctx, su, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeSealed)
	_, err = w.ListAll(ctx, su)
	wantCode(t, err, secret.CodeSealed)
	for _, r := range w.audit.records[n:] {
		if r.Path != "" || r.Decision != audit.Refuse {
			t.Errorf("%+v", r)
		}
	}
	wantCode(t, w.Open(), secret.CodeSealed) // without keys it would serve an empty index for ever
	w.keys.mu.Lock()
	w.keys.sealed = false
	w.keys.mu.Unlock()
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	if w.read("a/b") != `{"v":"x"}` {
		t.Fatal("the state is not served after unsealing again")
	}
}

// Invariant 7: a cluster that an operator sealed is not served from the entry on
// that says so, whoever still has keys or finds some meanwhile.
func TestSealedByAnOperator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.PutSecret(ctx, su, "a/b", values("x"), nil)
	seal := func(sealed bool) {
		w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: sealed, ExpectedGeneration: w.machine.View().Seal().Generation}}})
	}
	seal(true)
	for range 2 {
		_, err := w.GetSecret(ctx, su, "a/b", 0)
		wantCode(t, err, secret.CodeSealed)
		if !w.Sealed() {
			t.Fatal("the store says that it serves")
		}
		wantCode(t, w.Open(), secret.CodeSealed)
	}
	seal(false)
	if err := w.Open(); err != nil || w.read("a/b") != `{"v":"x"}` {
		t.Fatal("not served after the seal was lifted:", err)
	}
}

// Who may not write must not hold up those who may: he never gets in the queue.
func TestStrangersDoNotQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	inside, release := make(chan struct{}), make(chan struct{})
	w.log.onRead = func() { close(inside); <-release }
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.PutSecret(ctx, web, "a/b", values("x"), nil); secret.CodeOf(err) != secret.CodeDenied {
			t.Error(err)
		}
	})
	<-inside
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := w.PutSecret(short, su, "a/b", values("x"), nil); err != nil {
		t.Error("an authorised writer waited for one who is not:", err)
	}
	close(release)
	wg.Wait()
}

// Invariant 8: who leaves in the midst of his change cannot leave its outcome out
// of the record.
func TestOutcomeIsOnRecordWhenTheCallerLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	leaving, leave := context.WithCancel(ctx)
	first := true
	w.log.fail = func() (bool, error) {
		if first {
			first = false
			leave()
			return true, secret.Errorf(secret.CodeUnknown, "connection lost")
		}
		return false, nil
	}
	n := w.audit.len()
	if changed, err := w.PutSecret(leaving, su, "a/b", values("x"), nil); err != nil || changed.Version != 1 {
		t.Error(changed, err)
	}
	if got, want := w.audit.since(n), []string{"secret.put intent allow", "secret.put outcome allow ok"}; !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

// A retry that is answered from what its first attempt did is on record like any
// other change.
func TestAnsweredRetryIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	zero := secret.Version(0)
	r := su
	r.Write = store.WriteID{ID: [16]byte{1}, Index: w.Index()}
	first, err := w.PutSecret(ctx, r, "a/b", values("x"), &zero)
	if err != nil {
		t.Fatal(err)
	}
	n := w.audit.len()
	if again, err := w.PutSecret(ctx, r, "a/b", values("x"), &zero); err != nil || again.Index != first.Index {
		t.Fatal(again, err)
	}
	if got, want := w.audit.since(n), []string{"secret.put intent allow", "secret.put outcome allow ok"}; !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

// An operator's change that was made but cannot be recorded is not called
// undone, and shares that are not on record are not given out.
func TestOperationsWithoutAnOutcomeOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.shares = []store.RecoveryShare{{Index: 1, Bytes: [32]byte{1}}}
	w.audit.fail = func(r audit.Record) error {
		if r.Phase == audit.PhaseOutcome {
			return errDisk
		}
		return nil
	}
	wantCode(t, w.Initialise(ctx, su, 3, 2, false), secret.CodeUnknown)
	shares, err := w.Recover(ctx, store.Request{Caller: secret.Caller{ID: "spiffe://example.org/r", Role: secret.RoleRecover}})
	wantCode(t, err, secret.CodeUnknown)
	if len(shares) != 0 || w.shares[0].Bytes[0] != 0 {
		t.Fatal("shares without a record were given out, or left in memory")
	}
}

// Opening while entries are applied must not lose one.
func TestOpenAmongWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	writer := w.other()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 300 {
			if _, err := writer.PutSecret(ctx, su, fmt.Sprintf("p/%03d", i), values("x"), nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 50 {
		w.Close()
		w.Open()
	}
	wg.Wait()
	if keys, err := w.ListAll(ctx, su); err != nil || len(keys) != 300 {
		t.Fatal(len(keys), err)
	}
}

// A publication never changes, whatever is written while somebody reads it.
func TestListAmongWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			if _, err := w.PutSecret(ctx, su, fmt.Sprintf("p/%03d", i), values("x"), nil); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	reader := w.other()
	for last := 0; ; {
		keys, _, err := reader.ListPrefix(ctx, su, "p/")
		if err != nil || len(keys) < last || !slices.IsSorted(keys) {
			t.Fatal(len(keys), "after", last, err)
		}
		last = len(keys)
		select {
		case <-done:
			return
		default:
		}
	}
}

// A snapshot installed under an open store replaces everything it shows.
func TestSnapshotUnderAnOpenStore(t *testing.T) {
	t.Parallel()
	w, source := newWorld(t), newWorld(t)
	w.PutSecret(ctx, su, "a/b", values("old"), nil)
	w.allow("old", "a", secret.Read)
	source.PutSecret(ctx, su, "c/d", values("new"), nil)
	source.allow("new", "c", secret.Read)
	var b bytes.Buffer
	if err := source.machine.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	if err := w.machine.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if keys, err := w.ListAll(ctx, su); err != nil || !slices.Equal(keys, []string{"c/d"}) {
		t.Error(keys, err)
	}
	if v, err := w.GetSecret(ctx, web, "c/d", 0); err != nil || string(v.JSON) != `{"v":"new"}` {
		t.Error("the new policy is not in force:", err)
	}
	_, err := w.GetSecret(ctx, web, "a/b", 0)
	wantCode(t, err, secret.CodeDenied)
}

func TestListPrefix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range []string{"a/1", "a/2", "ab/1", "b/1"} {
		w.PutSecret(ctx, su, p, values("x"), nil)
	}
	list := func(r store.Request, prefix string) string {
		keys, _, err := w.ListPrefix(ctx, r, prefix)
		if err != nil {
			return string(secret.CodeOf(err))
		}
		return strings.Join(keys, " ")
	}
	for _, c := range [][2]string{{"", "a/1 a/2 ab/1 b/1"}, {"a", "a/1 a/2 ab/1"}, {"a/", "a/1 a/2"}, {"zz", ""}, {"/a", "invalid"}, {"a//", "invalid"}} {
		if got := list(su, c[0]); got != c[1] {
			t.Errorf("prefix %q: %q, want %q", c[0], got, c[1])
		}
	}
	if got := list(web, ""); got != "denied" {
		t.Errorf("without a policy: %q", got)
	}
	w.allow("web", "a", secret.List)
	if got := list(web, ""); got != "a/1 a/2" {
		t.Errorf("with a policy for a: %q", got)
	}
	w.PurgeSecret(ctx, su, "a/1")
	if got := list(su, "a"); got != "a/2 ab/1" {
		t.Errorf("after a purge: %q", got)
	}
}

// An unauthorised caller learns nothing from how a bad path is refused.
func TestAuthorisationComesBeforeValidation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := strings.Repeat("x", 5000)
	for _, path := range []string{"", "/a", "a//b", "a/../b", "a b", long, "spike/system/acl"} {
		_, err := w.GetSecret(ctx, web, path, 0)
		wantCode(t, err, secret.CodeDenied)
		_, err = w.PutSecret(ctx, web, path, values("x"), nil)
		wantCode(t, err, secret.CodeDenied)
		_, err = w.PutSecret(ctx, su, path, values("x"), nil)
		wantCode(t, err, secret.CodeInvalid)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.PutSecret(ctx, su, "a/b", values(strings.Repeat("x", 2<<20)), nil)
	wantCode(t, err, secret.CodeTooLarge)
	_, err = w.PutSecret(ctx, su, "a/b", map[string]string{"a.b": "x"}, nil)
	wantCode(t, err, secret.CodeInvalid)
	_, err = w.DeleteVersions(ctx, su, "a/b", make([]secret.Version, 1001))
	wantCode(t, err, secret.CodeInvalid)
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_PutSettings{PutSettings: &fsmpb.PutSettings{ExpectedRevision: w.machine.View().SettingsRevision(), Settings: &fsmpb.Settings{StateLimitBytes: 1}}}})
	_, err = w.PutSecret(ctx, su, "a/b", values("x"), nil)
	wantCode(t, err, secret.CodeFull)
}
