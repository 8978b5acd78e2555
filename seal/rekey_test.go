package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/spike-ha/spike-ha/seal"
)

func rekeying(id byte, ks keepers, n, t int) seal.Rekeying {
	return seal.Rekeying{ID: [16]byte{id}, Split: seal.Split{Keepers: ks.all(), Shares: n, Threshold: t}}
}

// secretOf is a record that must open for ever.
func secretOf(t *testing.T, s *seal.Seal) (opens func(*seal.Seal) error) {
	t.Helper()
	aad := seal.AAD{Kind: "value", Version: 1}
	sealed, err := s.Encrypt(seal.Data, aad, []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	return func(s *seal.Seal) error {
		got, err := s.Decrypt(seal.Data, aad, sealed)
		if err == nil && string(got) != "kept" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	}
}

// A new root key, other numbers, other Keepers: who is unsealed serves on, gets the new root key in its own time, and
// then replaces the keys that old shares can give.
func TestRekey(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	before, other, asleep := w.now(), w.peer(t), w.peer(t)
	opens := secretOf(t, other)
	shares, err := w.first.Recovery(before)
	if err != nil {
		t.Fatal(err)
	}
	fresh := append(w.keepers[1:], newKeepers(5)[3:]...) // keeper-1 goes, two come
	if err := w.first.Rekey(ctx, w.ledger, rekeying(1, fresh, 4, 3)); err != nil {
		t.Fatal(err)
	}
	st := w.now()
	if st.Pending != nil || st.Committed.ID == before.Committed.ID || st.Committed.Shares != 4 || st.Committed.Threshold != 3 {
		t.Fatalf("%+v", st)
	}
	if set, ok := w.first.ShareSetInUse(); !ok || set != st.Committed.ID || !w.first.Inherited() {
		t.Fatal("the process that rekeyed has not the new keys")
	}
	// Unsealed peers go on, before and after they have it.
	for range 2 {
		if err := other.Follow(st); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(opens(other), secretOf(t, other)(w.first)); err != nil {
			t.Fatal(err)
		}
		if reports, err := other.Unseal(ctx, st, fresh.all()); err != nil {
			t.Fatal(err, reports)
		}
	}
	if set, _ := other.ShareSetInUse(); set != st.Committed.ID {
		t.Fatal("unsealing left the old root key in use")
	}
	// The old shares open the new state no more, neither from Keepers nor by hand.
	late := seal.New(seal.Config{Logger: quiet})
	defer late.Lock()
	if reports, err := late.Unseal(ctx, st, w.keepers[:1].all()); err == nil {
		t.Fatal("unsealed by an old share: ", reports)
	}
	collector := seal.NewCollector()
	for _, s := range shares {
		if _, err := collector.Add(st, s.Index, s.Bytes[:]); !errors.Is(err, seal.ErrWrongShare) {
			t.Fatalf("old share %d: %v", s.Index, err)
		}
	}
	if reports, err := late.Unseal(ctx, st, fresh.all()); err != nil {
		t.Fatal(err, reports)
	}
	if err := opens(late); err != nil {
		t.Fatal(err)
	}
	// Rotating some of the keys leaves others inherited; rotating all of them none.
	for _, step := range []struct {
		purposes  []seal.Purpose
		inherited bool
	}{{[]seal.Purpose{seal.Data}, true}, {seal.Rotatable, false}} {
		if err := w.first.Rotate(ctx, w.ledger, step.purposes); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*seal.Seal{w.first, other} {
			if err := s.Follow(w.now()); err != nil || s.Inherited() != step.inherited {
				t.Fatal(err, s.Inherited())
			}
		}
	}
	// Who has not got the new root key cannot follow any more, and says so.
	if err := asleep.Follow(st); err != nil {
		t.Fatal(err)
	}
	if err := asleep.Follow(w.now()); !errors.Is(err, seal.ErrStaleState) {
		t.Fatal(err)
	}
	if err := opens(other); err != nil {
		t.Fatal(err)
	}
}

// A cluster that was never rekeyed has inherited nothing.
func TestNothingInherited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	if w.first.Inherited() || w.peer(t).Inherited() || seal.New(seal.Config{Logger: quiet}).Inherited() {
		t.Fatal("inherited")
	}
}

// Whatever breaks a rekey, and wherever, old or new shares unseal any process; and the same rekey, run again by
// another process, completes it once.
func TestRekeyCrashesAnywhere(t *testing.T) {
	t.Parallel()
	lose := func() error { return errCrash }
	die := func(w *world) { w.beforeAbandon = lose } // nothing of the process runs on
	steps := map[string]func(*world){
		"before begin":                 func(w *world) { w.beforeBegin = lose; die(w) },
		"begun, then dead":             func(w *world) { w.afterBegin = lose; die(w) },
		"begun, answer lost":           func(w *world) { w.afterBegin = lose },
		"no Keeper takes its share":    func(w *world) { each(w.keepers, func(k *memKeeper) { k.fault(faults{placeErr: errCrash}) }) },
		"one takes none, then dead":    func(w *world) { w.keepers[2].fault(faults{placeErr: errCrash}); die(w) },
		"share comes back altered":     func(w *world) { w.keepers[1].fault(faults{corrupt: true}) },
		"a Keeper restarts at once":    func(w *world) { w.keepers[0].fault(faults{forgetful: true}); die(w) },
		"before commit, then dead":     func(w *world) { w.beforeCommit = lose; die(w) },
		"not committed":                func(w *world) { w.beforeCommit = lose },
		"committed, answer lost":       func(w *world) { w.afterCommit = lose },
		"committed, nobody is settled": func(w *world) { each(w.keepers, func(k *memKeeper) { k.fault(faults{settleErr: errCrash}) }) },
		"committed, cannot look, dead": func(w *world) { w.afterCommit = func() error { panic(errCrash) } },
		"abandoned, answer lost":       func(w *world) { w.beforeCommit, w.afterAbandon = lose, lose },
	}
	for name, breakIt := range steps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2)
			before, serving := w.now(), w.peer(t)
			opens := secretOf(t, serving)
			breakIt(w)
			func() {
				defer func() { _ = recover() }() // the end of the process
				if err := w.first.Rekey(t.Context(), w.ledger, rekeying(1, w.keepers, 3, 3)); (err == nil) == (w.now().Committed.ID == before.Committed.ID) {
					t.Errorf("%v, and committed is %x", err, w.now().Committed.ID)
				}
			}()
			w.first.Lock()
			w.beforeBegin, w.afterBegin, w.beforeCommit, w.afterCommit, w.beforeAbandon, w.afterAbandon = nil, nil, nil, nil, nil, nil
			each(w.keepers, func(k *memKeeper) { k.fault(faults{}) })

			middle := w.now()
			unseals(t, w, opens)
			if err := serving.Follow(middle); err != nil || opens(serving) != nil {
				t.Fatal("who was unsealed does not serve on: ", err)
			}
			if _, err := serving.Unseal(t.Context(), middle, w.all()); err != nil {
				t.Fatal(err)
			}
			if err := serving.Rekey(t.Context(), w.ledger, rekeying(1, w.keepers, 3, 3)); err != nil {
				t.Fatal(err)
			}
			st := w.now()
			if st.Pending != nil || st.Committed.ID == before.Committed.ID || st.Committed.Threshold != 3 {
				t.Fatalf("%+v", st)
			}
			if middle.Committed.ID != before.Committed.ID && middle.Committed.ID != st.Committed.ID {
				t.Fatal("rekeyed twice")
			}
			each(w.keepers, func(k *memKeeper) {
				if len(k.settled) == 0 || k.settled[len(k.settled)-1] != st.Committed.ID || len(k.shares) != 1 {
					t.Errorf("%s is not settled, or has %d shares", k.name, len(k.shares))
				}
			})
			unseals(t, w, opens)
		})
	}
}

// unseals starts a process from the Keepers.
func unseals(t *testing.T, w *world, opens func(*seal.Seal) error) {
	t.Helper()
	s := seal.New(seal.Config{Logger: quiet})
	defer s.Lock()
	if reports, err := s.Unseal(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err, reports)
	}
	if err := opens(s); err != nil {
		t.Fatal(err)
	}
}

// A rotation that comes just before the set is begun is in the keyring that is committed.
func TestRekeyTakesTheNewestKeyring(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	other := w.peer(t)
	w.beforeBegin = func() error {
		w.beforeBegin = nil
		return other.Rotate(t.Context(), w.ledger, []seal.Purpose{seal.Data})
	}
	if err := w.first.Rekey(t.Context(), w.ledger, rekeying(1, w.keepers, 3, 2)); err != nil {
		t.Fatal(err)
	}
	if got := statuses(t, w.first, w.now(), seal.Data); len(got) != 2 {
		t.Fatal("a rotation was lost: ", got)
	}
}

// Of two rekeys at once exactly one is made, however they interleave, or one after the other.
func TestTwoRekeysAtOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		w := newWorld(t, 3, 2)
		opens := secretOf(t, w.first)
		peers := []*seal.Seal{w.first, w.peer(t)}
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, s := range peers {
			wg.Go(func() { errs[i] = s.Rekey(context.Background(), w.ledger, rekeying(byte(i), w.keepers, 3, 2+i)) })
		}
		wg.Wait()
		done := 0
		for _, err := range errs {
			switch {
			case err == nil:
				done++
			case !errors.Is(err, seal.ErrSuperseded) && !errors.Is(err, seal.ErrStaleState):
				t.Fatal(err)
			}
		}
		if done == 0 || w.now().Pending != nil {
			t.Fatal(errs, w.now().Pending)
		}
		unseals(t, w, opens)
	}
}

func TestRekeyRefuses(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	before, opens := w.now(), secretOf(t, w.first)
	refused := func(name string, want error, s *seal.Seal, r seal.Rekeying) {
		t.Helper()
		err := s.Rekey(ctx, w.ledger, r)
		if now := w.now(); !errors.Is(err, want) || now.Pending != nil || now.Committed.ID != before.Committed.ID || !bytes.Equal(now.Keyring, before.Keyring) {
			t.Errorf("%s: %v, want %v; pending %v", name, err, want, now.Pending)
		}
	}
	ks := w.keepers
	strict := seal.New(seal.Config{Logger: quiet})
	defer strict.Lock()
	if _, err := strict.Unseal(ctx, before, w.all()); err != nil {
		t.Fatal(err)
	}
	refused("threshold above n", seal.ErrShareSet, strict, rekeying(1, ks, 3, 4))
	refused("threshold 0", seal.ErrShareSet, strict, rekeying(1, ks, 3, 0))
	refused("256 shares", seal.ErrShareSet, strict, rekeying(1, newKeepers(256), 256, 3))
	refused("too few Keepers", seal.ErrShareSet, strict, rekeying(1, ks[:2], 3, 2))
	refused("a Keeper twice", seal.ErrShareSet, strict, rekeying(1, keepers{ks[0], ks[1], ks[1]}, 3, 2))
	refused("threshold 1, unasked", seal.ErrShareSet, strict, rekeying(1, ks, 3, 1))
	refused("sealed", seal.ErrSealed, seal.New(seal.Config{Logger: quiet}), rekeying(1, ks, 3, 2))
	var placement *seal.PlacementError
	ks[1].fault(faults{placeErr: errCrash})
	if err := strict.Rekey(ctx, w.ledger, rekeying(1, ks, 3, 2)); !errors.As(err, &placement) || health(placement.Reports)["keeper-2"] != seal.Unreachable {
		t.Errorf("a Keeper is down: %v", err)
	}
	if w.now().Pending != nil {
		t.Error("a rekey that failed is still pending")
	}
	ks[1].fault(faults{})
	w.state.Sealed = true
	refused("sealed by an operator", seal.ErrOperatorSealed, strict, rekeying(1, ks, 3, 2))
	w.state.Sealed = false

	// A seal at any time before the commit.
	operate := func() error { w.state.Generation++; return nil }
	for name, hook := range map[string]*func() error{"before begin": &w.beforeBegin, "after begin": &w.afterBegin, "before commit": &w.beforeCommit} {
		*hook = operate
		refused("an operator seals "+name, seal.ErrOperatorSealed, strict, rekeying(1, ks, 3, 2))
		*hook = nil
	}
	// A rotation while it goes on, and a cancellation.
	w.beforeCommit = func() error {
		if err := strict.Rotate(ctx, w.ledger, seal.Rotatable); !errors.Is(err, seal.ErrPending) {
			t.Errorf("a rotation during a rekey: %v", err)
		}
		_, err := seal.Cancel(ctx, w.ledger)
		return err
	}
	refused("cancelled", seal.ErrSuperseded, strict, rekeying(1, ks, 3, 2))
	w.beforeCommit = nil
	if set, err := seal.Cancel(ctx, w.ledger); err != nil || set != [16]byte{} {
		t.Errorf("nothing to cancel: %x, %v", set, err)
	}
	unseals(t, w, opens)

	// In one piece after all that, with the threshold allowed; and its id is its own.
	single := rekeying(7, ks, 3, 1)
	single.AllowSingleShare = true
	for range 2 {
		if err := strict.Rekey(ctx, w.ledger, single); err != nil {
			t.Fatal(err)
		}
	}
	if err := strict.Rekey(ctx, w.ledger, rekeying(7, ks, 3, 2)); !errors.Is(err, seal.ErrShareSet) {
		t.Errorf("another rekey under the same id: %v", err)
	}
	unseals(t, w, opens)
}

// The id of a set is for one root key alone, whatever is repeated under one request: else the commit of one attempt
// could be taken for that of another.
func TestAttemptsHaveSetsOfTheirOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	seen := map[[16]byte]bool{}
	w.beforeCommit = func() error { seen[w.now().Pending.ID] = true; return errCrash }
	for range 5 {
		if err := w.first.Rekey(t.Context(), w.ledger, rekeying(1, w.keepers, 3, 2)); !errors.Is(err, seal.ErrGivenUp) {
			t.Fatal(err)
		}
	}
	if len(seen) != 5 {
		t.Fatalf("%d sets in 5 attempts", len(seen))
	}
}

// After a recovery from a lost majority the cluster has a higher incarnation than its keys; a rekey brings them to it.
func TestRekeyMovesTheIncarnation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	opens, serving := secretOf(t, w.first), w.peer(t)
	r := rekeying(1, w.keepers, 3, 2)
	r.Incarnation = 7
	if err := w.first.Rekey(t.Context(), w.ledger, r); err != nil {
		t.Fatal(err)
	}
	if got := w.now().Cluster.Incarnation; got != 7 {
		t.Fatal(got)
	}
	if err := serving.Follow(w.now()); err != nil || opens(serving) != nil {
		t.Fatal(err)
	}
	r.ID, r.Incarnation = [16]byte{2}, 3 // of a peer that lags behind
	if err := w.first.Rekey(t.Context(), w.ledger, r); err != nil || w.now().Cluster.Incarnation != 7 {
		t.Fatal(err, w.now().Cluster)
	}
	unseals(t, w, opens)
}
