package seal_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/spike-ha/spike-ha/seal"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// ledger is the replicated state as the state machine keeps it. Its hooks break single steps.
type ledger struct {
	mu    sync.Mutex
	state seal.State

	beforeBegin, afterBegin, beforeCommit, afterCommit, beforeAbandon, afterAbandon func() error
}

func newLedger() *ledger {
	return &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{0xc1}, Incarnation: 1}}}
}

func run(hook func() error) error {
	if hook == nil {
		return nil
	}
	return hook()
}

func (l *ledger) State(context.Context) (seal.State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, nil
}

func (l *ledger) now() seal.State {
	st, _ := l.State(context.Background())
	return st
}

func (l *ledger) Begin(_ context.Context, set seal.ShareSet, supersedes [16]byte, generation uint64) error {
	if err := run(l.beforeBegin); err != nil {
		return err
	}
	if err := set.Validate(); err != nil {
		return err
	}
	l.mu.Lock()
	committed := [16]byte{}
	if l.state.Committed != nil {
		committed = l.state.Committed.ID
	}
	switch {
	case generation != l.state.Generation:
		l.mu.Unlock()
		return seal.ErrOperatorSealed
	case committed != supersedes:
		l.mu.Unlock()
		return seal.ErrSuperseded
	}
	l.state.Pending = &set
	l.mu.Unlock()
	return run(l.afterBegin)
}

func (l *ledger) Commit(_ context.Context, c seal.Commitment, generation uint64) error {
	if err := run(l.beforeCommit); err != nil {
		return err
	}
	l.mu.Lock()
	switch {
	case generation != l.state.Generation:
		l.mu.Unlock()
		return seal.ErrOperatorSealed
	case l.state.Pending == nil || l.state.Pending.ID != c.Set:
		l.mu.Unlock()
		return seal.ErrSuperseded
	case len(c.Epochs) != 6 || c.Incarnation != 0 && c.Incarnation < l.state.Cluster.Incarnation:
		l.mu.Unlock()
		return fmt.Errorf("%d epochs, incarnation %d", len(c.Epochs), c.Incarnation)
	}
	l.state.Committed, l.state.Pending, l.state.Keyring = l.state.Pending, nil, slices.Clone(c.Keyring)
	l.state.Epochs = c.Epochs
	l.state.Cluster.Incarnation = max(l.state.Cluster.Incarnation, c.Incarnation)
	l.mu.Unlock()
	return run(l.afterCommit)
}

func (l *ledger) Abandon(_ context.Context, id [16]byte) error {
	if err := run(l.beforeAbandon); err != nil {
		return err
	}
	l.mu.Lock()
	if l.state.Pending == nil || l.state.Pending.ID != id {
		l.mu.Unlock()
		return seal.ErrSuperseded
	}
	l.state.Pending = nil
	l.mu.Unlock()
	return run(l.afterAbandon)
}

func (l *ledger) Replace(_ context.Context, id [16]byte, was, keyring []byte, epochs []seal.Epoch, generation uint64) error {
	if err := run(l.beforeCommit); err != nil {
		return err
	}
	l.mu.Lock()
	switch {
	case generation != l.state.Generation:
		l.mu.Unlock()
		return seal.ErrOperatorSealed
	case l.state.Pending != nil:
		l.mu.Unlock()
		return seal.ErrPending
	case l.state.Committed == nil || l.state.Committed.ID != id || !bytes.Equal(l.state.Keyring, was):
		l.mu.Unlock()
		return seal.ErrSuperseded
	}
	l.state.Keyring, l.state.Epochs = slices.Clone(keyring), epochs
	l.mu.Unlock()
	return run(l.afterCommit)
}

// memKeeper is a Keeper without a network, with the same rules as the real one as far as these tests need them.
type memKeeper struct {
	name string

	mu      sync.Mutex // an unsealing may still be asking when its caller has gone on
	shares  map[seal.Slot][]byte
	settled [][16]byte
	placed  int
	fetches int
	proofs  int
	faults
}

// faults are what a test breaks.
type faults struct {
	placeErr, fetchErr, settleErr error
	silent                        bool // never answers
	corrupt                       bool // gives back altered shares
	forgetful                     bool // restarts after each placement
	old                           bool // knows no proofs
}

func (k *memKeeper) Name() string { return k.name }

func (k *memKeeper) fault(f faults) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = f
}

// enter waits if the Keeper is silent, and returns with mu held unless it fails.
func (k *memKeeper) enter(ctx context.Context) error {
	k.mu.Lock()
	if k.silent {
		k.mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (k *memKeeper) Place(ctx context.Context, s seal.Slot, share []byte) error {
	if err := k.enter(ctx); err != nil {
		return err
	}
	defer k.mu.Unlock()
	if k.placeErr != nil {
		return k.placeErr
	}
	k.placed++
	k.shares[s] = slices.Clone(share)
	if k.forgetful {
		k.shares = make(map[seal.Slot][]byte)
	}
	return nil
}

func (k *memKeeper) Fetch(ctx context.Context, s seal.Slot) ([]byte, error) {
	k.mu.Lock()
	k.fetches++
	k.mu.Unlock()
	return k.share(ctx, s)
}

func (k *memKeeper) share(ctx context.Context, s seal.Slot) ([]byte, error) {
	if err := k.enter(ctx); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	share, ok := k.shares[s]
	switch {
	case k.fetchErr != nil:
		return nil, k.fetchErr
	case ok:
		share = slices.Clone(share)
		if k.corrupt {
			share[7] ^= 1
		}
		return share, nil
	case len(k.shares) > 0:
		return nil, seal.ErrOtherSet
	}
	return nil, seal.ErrNoShare
}

func (k *memKeeper) Settle(ctx context.Context, c seal.ClusterRef, set [16]byte, _ uint64) error {
	if err := k.enter(ctx); err != nil {
		return err
	}
	defer k.mu.Unlock()
	if k.settleErr != nil {
		return k.settleErr
	}
	k.settled = append(k.settled, set)
	holds := false
	for s := range k.shares {
		holds = holds || s.Set == set && s.Cluster == c
	}
	for s := range k.shares {
		if holds && s.Set != set {
			delete(k.shares, s)
		}
	}
	return nil
}

func (k *memKeeper) Prove(ctx context.Context, s seal.Slot, nonce [32]byte) (proof [32]byte, err error) {
	k.mu.Lock()
	old := k.old
	k.proofs++
	k.mu.Unlock()
	if old {
		return proof, seal.ErrOldKeeper
	}
	share, err := k.share(ctx, s)
	if err != nil {
		return proof, err
	}
	return seal.Proof(share, s, k.name, nonce), nil
}

func (k *memKeeper) Holds(ctx context.Context) (slots []seal.Slot, err error) {
	if err := k.enter(ctx); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.shares)), nil
}

func (k *memKeeper) restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shares = make(map[seal.Slot][]byte)
}

type keepers []*memKeeper

func newKeepers(n int) keepers {
	var out keepers
	for i := range n {
		out = append(out, &memKeeper{name: fmt.Sprintf("keeper-%d", i+1), shares: make(map[seal.Slot][]byte)})
	}
	return out
}

func (ks keepers) all() []seal.Keeper {
	out := make([]seal.Keeper, len(ks))
	for i, k := range ks {
		out[i] = k
	}
	return out
}

// world is an initialised cluster.
type world struct {
	*ledger
	keepers
	first *seal.Seal // initialised it; unsealed
}

func newWorld(t testing.TB, n, threshold int) *world {
	t.Helper()
	w := &world{newLedger(), newKeepers(n), seal.New(seal.Config{Logger: quiet})}
	if err := w.first.Initialise(context.Background(), w.ledger, seal.Split{Keepers: w.all(), Shares: n, Threshold: threshold, AllowSingleShare: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.first.Lock)
	return w
}

// rotate gives the cluster new keys, and s takes them into use.
func rotate(s *seal.Seal, l *ledger) error {
	if err := s.Rotate(context.Background(), l, seal.Rotatable); err != nil {
		return err
	}
	return s.Follow(l.now())
}

func health(reports []seal.KeeperReport) map[string]seal.Health {
	out := make(map[string]seal.Health)
	for _, r := range reports {
		out[r.Name] = r.Health
	}
	return out
}
