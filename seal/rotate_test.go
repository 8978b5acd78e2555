package seal_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/seal"
)

// peerOf is another unsealed process of the cluster.
func (w *world) peer(t *testing.T) *seal.Seal {
	t.Helper()
	s := seal.New(seal.Config{Logger: quiet})
	if _, err := s.Unseal(context.Background(), w.now(), w.all()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Lock)
	return s
}

func statuses(t *testing.T, s *seal.Seal, st seal.State, p seal.Purpose) (list []seal.EpochStatus) {
	t.Helper()
	epochs, err := s.Epochs(st)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range epochs {
		if e.Purpose == p {
			list = append(list, e.Status)
		}
	}
	return list
}

func TestRotateAndArchive(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	other := w.peer(t)
	aad := seal.AAD{Kind: "value", Version: 1}
	old, err := w.first.Encrypt(seal.Data, aad, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	token, _, _ := w.first.Token("k", "n")
	if err := w.first.Rotate(ctx, w.ledger, seal.Rotatable); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*seal.Seal{w.first, other} {
		if err := s.Follow(w.now()); err != nil {
			t.Fatal(err)
		}
	}
	fresh, err := other.Encrypt(seal.Data, aad, []byte("y"))
	if err != nil || bytes.Equal(seal.RecordEpoch(fresh), seal.RecordEpoch(old)) {
		t.Fatal("the new key is not used: ", err)
	}
	for _, s := range []*seal.Seal{w.first, other, w.peer(t)} {
		for _, record := range [][]byte{old, fresh} {
			if _, err := s.Decrypt(seal.Data, aad, record); err != nil {
				t.Fatal(err)
			}
		}
	}
	if again, _, _ := other.Token("k", "n"); again != token {
		t.Fatal("tokens changed")
	}
	retired, err := w.first.RetiredEpochs(seal.Data)
	if err != nil || len(retired) != 1 || !bytes.Equal(retired[0], seal.RecordEpoch(old)) {
		t.Fatal(retired, err)
	}

	if err := w.first.Archive(ctx, w.ledger, seal.Data, [][]byte{seal.RecordEpoch(fresh)}); !errors.Is(err, seal.ErrPurpose) {
		t.Fatal("the current key can be archived: ", err)
	}
	for range 2 { // the second finds it done
		if err := w.first.Archive(ctx, w.ledger, seal.Data, retired); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Follow(w.now()); err != nil {
		t.Fatal(err)
	}
	if got := statuses(t, other, w.now(), seal.Data); len(got) != 2 || got[0] != seal.Current || got[1] != seal.Archived {
		t.Fatal(got)
	}
	if got := statuses(t, other, w.now(), seal.Cipher); len(got) != 2 || got[1] != seal.Retired {
		t.Fatal(got)
	}
	if left, _ := other.RetiredEpochs(seal.Data); len(left) != 0 {
		t.Fatal(left)
	}
	// Who had a record in hand still opens it; a process that starts now does not.
	if _, err := other.Decrypt(seal.Data, aad, old); err != nil {
		t.Fatal(err)
	}
	late := w.peer(t)
	if _, err := late.Decrypt(seal.Data, aad, old); !errors.Is(err, seal.ErrOpen) {
		t.Fatal("an archived key is live: ", err)
	}
	if _, err := late.Decrypt(seal.Data, aad, fresh); err != nil {
		t.Fatal(err)
	}
	other.Lock()
	if _, err := other.Decrypt(seal.Data, aad, old); !errors.Is(err, seal.ErrSealed) {
		t.Fatal(err)
	}
}

func TestRotateRefuses(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	before := w.now()
	refused := func(want error, s *seal.Seal, purposes ...seal.Purpose) {
		t.Helper()
		if err := s.Rotate(ctx, w.ledger, purposes); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
	}
	refused(seal.ErrPurpose, w.first, seal.Data, seal.Path)
	refused(seal.ErrPurpose, w.first, seal.TokenMAC)
	refused(seal.ErrPurpose, w.first, "nonsense")
	refused(seal.ErrSealed, seal.New(seal.Config{Logger: quiet}), seal.Data)
	w.state.Sealed = true
	refused(seal.ErrOperatorSealed, w.first, seal.Data)
	w.state.Sealed = false
	pending := *before.Committed
	pending.ID[0]++
	w.state.Pending = &pending
	refused(seal.ErrPending, w.first, seal.Data)
	w.state.Pending = nil
	// Another rotation comes in between.
	w.beforeCommit = func() error {
		w.beforeCommit = nil
		return w.peer(t).Rotate(ctx, w.ledger, []seal.Purpose{seal.Data})
	}
	refused(seal.ErrSuperseded, w.first, seal.Data)
	if bytes.Equal(w.now().Keyring, before.Keyring) || len(statuses(t, w.first, w.now(), seal.Data)) != 2 {
		t.Fatal("not exactly one rotation was made")
	}
}

// What failed and is in the ledger all the same was made, once.
func TestRotateFailedButPersisted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	w.afterCommit = func() error { return errors.New("the answer was lost") }
	if err := w.first.Rotate(t.Context(), w.ledger, []seal.Purpose{seal.Data}); err != nil {
		t.Fatal(err)
	}
	if got := statuses(t, w.first, w.now(), seal.Data); len(got) != 2 {
		t.Fatal(got)
	}
	w.beforeCommit = func() error { return errors.New("no leader") }
	if err := w.first.Rotate(t.Context(), w.ledger, []seal.Purpose{seal.Data}); err == nil {
		t.Fatal("made, as it seems")
	}
	if got := statuses(t, w.first, w.now(), seal.Data); len(got) != 2 {
		t.Fatal(got)
	}
}

// Keys of another share set serve on while the state's keys are the same ones, and must go once they are not.
func TestFollowOfAnotherShareSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	st := w.now()
	set := *st.Committed
	set.ID[0]++
	st.Committed, st.Keyring = &set, []byte("under a root key that is not here")
	if err := w.first.Follow(st); err != nil {
		t.Fatal(err)
	}
	st.Epochs = append([]seal.Epoch{{Purpose: seal.Data, ID: []byte("new one!")}}, st.Epochs...)
	if err := w.first.Follow(st); !errors.Is(err, seal.ErrStaleState) {
		t.Fatal(err)
	}
}

// Archived keys are dropped by the time at which they left the live peers, and nothing else is.
func TestPrune(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	if n, err := w.first.Prune(ctx, w.ledger, time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Fatal("with nothing archived:", n, err)
	}
	var between time.Time
	for i := range 2 {
		if i == 1 {
			between = time.Now()
		}
		if err := w.first.Rotate(ctx, w.ledger, seal.Rotatable); err != nil {
			t.Fatal(err)
		}
		if err := w.first.Follow(w.now()); err != nil {
			t.Fatal(err)
		}
		retired, err := w.first.RetiredEpochs(seal.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.first.Archive(ctx, w.ledger, seal.Data, retired); err != nil {
			t.Fatal(err)
		}
		if err := w.first.Follow(w.now()); err != nil {
			t.Fatal(err)
		}
	}
	want := func(n int) {
		t.Helper()
		if got := statuses(t, w.first, w.now(), seal.Data); len(got) != 1+n {
			t.Fatalf("%v, want %d archived", got, n)
		}
		if got := statuses(t, w.first, w.now(), seal.Cipher); len(got) != 3 || got[2] != seal.Retired {
			t.Fatal("retired keys are gone:", got)
		}
	}
	want(2)
	before := w.now().Keyring
	if n, err := w.first.Prune(ctx, w.ledger, time.Unix(1, 0)); n != 0 || err != nil || !bytes.Equal(w.now().Keyring, before) {
		t.Fatal("before all of them:", n, err)
	}
	if n, err := w.first.Prune(ctx, w.ledger, between); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	want(1)
	if n, err := w.first.Prune(ctx, w.ledger, time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	want(0)
	w.peer(t) // opens
}
