package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
)

// asked says how often the Keepers were asked for shares and for proofs.
func (ks keepers) asked() (fetches, proofs int) {
	for _, k := range ks {
		k.mu.Lock()
		fetches, proofs = fetches+k.fetches, proofs+k.proofs
		k.mu.Unlock()
	}
	return fetches, proofs
}

func inspect(t *testing.T, s *seal.Seal, w *world, want seal.Health) {
	t.Helper()
	reports, err := s.Inspect(t.Context(), w.now(), w.all())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if r.Health != want {
			t.Errorf("%+v, want %s", r, want)
		}
	}
}

// Looking at the Keepers moves no share: unsealed they prove, sealed they only say.
func TestLooksMoveNoShare(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 3)
	before, proved := w.asked() // by the initialisation
	inspect(t, w.first, w, seal.Good)
	if _, err := w.first.Refill(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err)
	}
	if fetches, proofs := w.asked(); fetches != before || proofs != proved+10 {
		t.Errorf("%d shares were sent, %d proofs asked for", fetches-before, proofs-proved)
	}
	sealed := seal.New(seal.Config{Logger: quiet})
	inspect(t, sealed, w, seal.Held)
	if fetches, proofs := w.asked(); fetches != before || proofs != proved+10 {
		t.Errorf("a sealed process had %d shares sent, and asked for %d proofs that it cannot check", fetches-before, proofs-proved-10)
	}
	for i, want := range []seal.Health{seal.Empty, seal.Stale, seal.Foreign} {
		w.keepers[i].restart()
		slot := seal.Slot{Cluster: w.now().Cluster, Set: [16]byte{9}, Index: 1}
		if want == seal.Foreign {
			slot.Cluster.ID[0]++
		}
		if want != seal.Empty {
			if err := w.keepers[i].Place(t.Context(), slot, make([]byte, 32)); err != nil {
				t.Fatal(err)
			}
		}
		reports, err := sealed.Inspect(t.Context(), w.now(), w.all())
		if err != nil || reports[i].Health != want {
			t.Errorf("%+v, %v, want %s", reports[i], err, want)
		}
	}
}

// A proof answers one question of one Keeper with one share, and no other.
func TestProofFitsOneQuestion(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bytesOf := func(n int, name string) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, name) }
		slot := seal.Slot{Cluster: seal.ClusterRef{ID: [16]byte(bytesOf(16, "cluster")), Incarnation: rapid.Uint64().Draw(t, "incarnation")},
			Set: [16]byte(bytesOf(16, "set")), Index: rapid.IntRange(1, 255).Draw(t, "index")}
		share, nonce, name := bytesOf(32, "share"), [32]byte(bytesOf(32, "nonce")), rapid.StringMatching(`[a-z0-9-]{0,12}`).Draw(t, "name")
		right := seal.Proof(share, slot, name, nonce)
		if right != seal.Proof(share, slot, name, nonce) {
			t.Fatal("two answers to one question")
		}
		if bytes.Equal(right[:], share) {
			t.Fatal("the proof is the share")
		}
		bit := func(b []byte) []byte {
			b = slices.Clone(b)
			at := rapid.IntRange(0, len(b)*8-1).Draw(t, "bit")
			b[at/8] ^= 1 << (at % 8)
			return b
		}
		for what, other := range map[string]func(s *seal.Slot, share *[]byte, nonce *[32]byte, name *string){
			"share":       func(_ *seal.Slot, b *[]byte, _ *[32]byte, _ *string) { *b = bit(*b) },
			"nonce":       func(_ *seal.Slot, _ *[]byte, n *[32]byte, _ *string) { *n = [32]byte(bit(n[:])) },
			"name":        func(_ *seal.Slot, _ *[]byte, _ *[32]byte, n *string) { *n += "x" },
			"cluster":     func(s *seal.Slot, _ *[]byte, _ *[32]byte, _ *string) { s.Cluster.ID = [16]byte(bit(s.Cluster.ID[:])) },
			"incarnation": func(s *seal.Slot, _ *[]byte, _ *[32]byte, _ *string) { s.Cluster.Incarnation++ },
			"set":         func(s *seal.Slot, _ *[]byte, _ *[32]byte, _ *string) { s.Set = [16]byte(bit(s.Set[:])) },
			"index":       func(s *seal.Slot, _ *[]byte, _ *[32]byte, _ *string) { s.Index++ },
		} {
			s, b, n, k := slot, share, nonce, name
			other(&s, &b, &n, &k)
			if seal.Proof(b, s, k, n) == right {
				t.Fatalf("another %s has the same proof", what)
			}
		}
	})
}

// liar is a Keeper that answers challenges with what it likes.
type liar struct {
	*memKeeper
	prove func(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error)
}

func (l liar) Prove(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error) {
	return l.prove(ctx, s, nonce)
}

// A Keeper that replays a proof, has another one prove for it, proves another share, or makes something up is found
// wrong, and given its share again.
func TestLyingKeepers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 3)
	st := w.now()
	var first *[32]byte
	lies := map[string]func(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error){
		"replayed": func(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error) {
			if first == nil {
				proof, _ := w.keepers[0].Prove(ctx, s, nonce)
				first = &proof
			}
			return *first, nil
		},
		"by another": func(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error) {
			s.Index = 2
			return w.keepers[1].Prove(ctx, s, nonce)
		},
		"in another's name": func(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error) {
			share, err := w.keepers[0].Fetch(ctx, s)
			return seal.Proof(share, s, "keeper-9", nonce), err
		},
		"nothing":   func(context.Context, seal.Slot, [32]byte) ([32]byte, error) { return [32]byte{}, nil },
		"the nonce": func(_ context.Context, _ seal.Slot, nonce [32]byte) ([32]byte, error) { return nonce, nil },
	}
	for name, lie := range lies {
		ks := w.all()
		ks[0] = liar{w.keepers[0], lie}
		if name == "replayed" { // the first one is right
			if _, err := w.first.Inspect(t.Context(), st, ks); err != nil {
				t.Fatal(err)
			}
		}
		reports, err := w.first.Inspect(t.Context(), st, ks)
		if err != nil || reports[0].Health != seal.Wrong || seal.Count(reports) != 4 {
			t.Errorf("%s: %+v, %v", name, reports, err)
		}
	}
}

// Keepers of the release before have no proofs: their shares are fetched and held against the fingerprints, as that
// release does.
func TestKeepersOfTheReleaseBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, 2)
	for _, k := range w.keepers[:3] {
		k.fault(faults{old: true})
	}
	w.keepers[1].fault(faults{old: true, corrupt: true})
	w.keepers[2].restart()
	want := map[string]seal.Health{"keeper-1": seal.Good, "keeper-2": seal.Wrong, "keeper-3": seal.Empty, "keeper-4": seal.Good}
	reports, err := w.first.Inspect(t.Context(), w.now(), w.all())
	if err != nil || fmt.Sprint(health(reports)) != fmt.Sprint(want) || !reports[0].Fetched || reports[3].Fetched {
		t.Fatalf("%+v, %v", reports, err)
	}
	w.keepers[1].fault(faults{old: true})
	if reports, err = w.first.Refill(t.Context(), w.now(), w.all()); err != nil || seal.Count(reports) != 4 || !reports[2].Refilled {
		t.Fatalf("%+v, %v", reports, err)
	}
}

// A Keeper that was asked too often is not taken for empty or wrong: nothing is placed.
func TestThrottledKeepersAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	for _, k := range w.keepers {
		k.fault(faults{fetchErr: seal.ErrThrottled, placeErr: errors.New("it was given a share")})
	}
	reports, err := w.first.Refill(t.Context(), w.now(), w.all())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if r.Health != seal.Unreachable || r.Refilled || r.Detail != seal.ErrThrottled.Error() {
			t.Errorf("%+v", r)
		}
	}
}

// together is a Keeper that takes no share before another one is offered its own.
type together struct {
	*memKeeper
	offered chan<- struct{}
	other   <-chan struct{}
}

func (k together) Place(ctx context.Context, s seal.Slot, share []byte) error {
	close(k.offered)
	select {
	case <-k.other:
		return k.memKeeper.Place(ctx, s, share)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Refill gives all that need one their shares at once, gives none to a Keeper that is good, and settles all that are.
func TestRefillTouchesNoGoodKeeper(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 3)
	w.keepers[0].restart()
	w.keepers[1].restart()
	w.keepers[4].fault(faults{fetchErr: errors.New("no route to host")})
	ks, one, two := w.all(), make(chan struct{}), make(chan struct{})
	ks[0], ks[1] = together{w.keepers[0], one, two}, together{w.keepers[1], two, one}
	reports, err := w.first.Refill(t.Context(), w.now(), ks)
	if err != nil || !reports[0].Refilled || !reports[1].Refilled || reports[4].Health != seal.Unreachable {
		t.Fatalf("%+v, %v", reports, err)
	}
	counts := func() (placed, settled [5]int) { // once each when the cluster was initialised
		for i, k := range w.keepers {
			placed[i], settled[i] = k.placed, len(k.settled)
		}
		return placed, settled
	}
	if placed, settled := counts(); placed != [5]int{2, 2, 1, 1, 1} || settled != [5]int{2, 2, 2, 2, 1} {
		t.Errorf("placed %v, settled %v", placed, settled)
	}
	w.keepers[4].fault(faults{})
	if _, err := w.first.Refill(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err)
	}
	if placed, settled := counts(); placed != [5]int{2, 2, 1, 1, 1} || settled != [5]int{3, 3, 3, 3, 2} {
		t.Errorf("all are good: placed %v, settled %v", placed, settled)
	}
}
