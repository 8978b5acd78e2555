package seal

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Initialise gives a cluster its root key and keyring, and leaves this process unsealed:
//
//	begin   the new share set is in the log as pending
//	place   every Keeper has its share, and gave it back when asked
//	commit  set and keyring are in the log, together; from here the cluster is initialised
//	settle  the Keepers know that the share is the current one
//
// Every Keeper must take part: keepers[i] gets share i+1. Each step can be repeated, and a crash at any of them
// leaves a state that a second call completes: before the commit it begins anew with other keys, superseding
// what was pending, and after it, it finishes the settling and answers ErrAlreadyInitialised. Of two calls at
// once at most one commits; the other gets ErrSuperseded. Errors besides these: *PlacementError, ErrShareSet.
func (s *Seal) Initialise(ctx context.Context, ledger Ledger, keepers []Keeper, shares, threshold int) error {
	ticket := s.ticket()
	st, err := ledger.State(ctx)
	if err != nil {
		return fmt.Errorf("seal: reading the state before initialisation: %w", err)
	}
	if st.Committed != nil {
		s.settle(ctx, st, keepers)
		return ErrAlreadyInitialised
	}
	if st.Sealed {
		return ErrOperatorSealed
	}
	if err := s.checkSplit(keepers, shares, threshold); err != nil {
		return err
	}
	root := newRoot()
	set, parts, err := newShareSet(root.Bytes(), keepers, shares, threshold)
	if err != nil {
		root.Destroy()
		return err
	}
	defer destroy(parts)
	ring := newKeyring(s.cfg.now())
	defer wipeKeyring(ring)
	sealed, err := sealKeyring(root.Bytes(), st.Cluster, set.ID, ring)
	if err != nil {
		root.Destroy()
		return err
	}
	k, err := newKeys(root, State{Cluster: st.Cluster, Committed: &set, Keyring: sealed}, s.cfg.encryptCap)
	if err != nil { // newKeys took root over
		return err
	}
	st.Committed, st.Keyring = &set, sealed
	if err := s.publish(ctx, ledger, st, keepers, parts, currentEpochs(ring)); err != nil {
		k.release()
		return err
	}
	s.settle(ctx, st, keepers)
	s.log.Info("initialised: the root key is split among the Keepers", "cluster", st.Cluster.String(), "shares", shares, "threshold", threshold)
	return s.install(k, ticket)
}

// checkSplit refuses impossible and, unless allowed, unwise numbers.
func (s *Seal) checkSplit(keepers []Keeper, n, t int) error {
	if n < 1 || n > MaxShares || t < 1 || t > n {
		return fmt.Errorf("%w: %d shares with a threshold of %d; possible are 1 ≤ threshold ≤ shares ≤ %d", ErrShareSet, n, t, MaxShares)
	}
	if t == 1 && n > 1 && !s.cfg.AllowSingleShare {
		return fmt.Errorf("%w: with a threshold of 1 each of the %d Keepers holds the whole root key; choose 2 or more, or allow it explicitly", ErrShareSet, n)
	}
	if len(keepers) != n {
		return fmt.Errorf("%w: %d shares need as many Keepers, and %d are configured", ErrShareSet, n, len(keepers))
	}
	for _, k := range keepers {
		if k.Name() == "" {
			return fmt.Errorf("%w: a Keeper has no name", ErrShareSet)
		}
	}
	return nil
}

// newShareSet splits root under a fresh id.
func newShareSet(root []byte, keepers []Keeper, n, t int) (ShareSet, []*locked.Buffer, error) {
	set := ShareSet{ID: newID(), Shares: n, Threshold: t}
	parts, err := split(root, set.ID, n, t)
	if err != nil {
		return set, nil, err
	}
	for i, part := range parts {
		set.Fingerprints = append(set.Fingerprints, fingerprint(set.ID, i+1, part.Bytes()))
		set.Keepers = append(set.Keepers, keepers[i].Name())
	}
	if err := set.Validate(); err != nil {
		destroy(parts)
		return set, nil, err
	}
	return set, parts, nil
}

// publish is begin, place and commit. It succeeds only when the set is certainly committed.
func (s *Seal) publish(ctx context.Context, ledger Ledger, st State, keepers []Keeper, parts []*locked.Buffer, epochs []Epoch) error {
	set := *st.Committed
	if err := ledger.Begin(ctx, set, [16]byte{}); err != nil {
		if errors.Is(err, ErrSuperseded) {
			return err
		}
		return fmt.Errorf("seal: recording the share set: %w", err)
	}
	if err := s.placeAll(ctx, st.Cluster, set, keepers, parts); err != nil {
		return err
	}
	err := ledger.Commit(ctx, set.ID, st.Keyring, epochs)
	if err == nil {
		return nil
	}
	// The commit may have reached the log all the same, and a repetition of it may have been answered. Only the
	// state can tell.
	now, readErr := ledger.State(ctx)
	switch {
	case readErr == nil && now.Committed != nil && now.Committed.ID == set.ID:
		return nil
	case errors.Is(err, ErrSuperseded):
		return err
	}
	return fmt.Errorf("seal: committing the share set: %w", errors.Join(err, readErr))
}

// placeAll gives every Keeper its share and insists on reading it back.
func (s *Seal) placeAll(ctx context.Context, cluster ClusterRef, set ShareSet, keepers []Keeper, parts []*locked.Buffer) error {
	reports := make([]KeeperReport, len(keepers))
	s.each(ctx, keepers, func(ctx context.Context, i int, k Keeper) {
		reports[i] = place(ctx, k, Slot{cluster, set.ID, i + 1}, parts[i].Bytes())
	})
	for _, r := range reports {
		if r.Health != Good {
			return &PlacementError{Reports: reports}
		}
	}
	return nil
}

func place(ctx context.Context, k Keeper, slot Slot, share []byte) KeeperReport {
	if err := k.Place(ctx, slot, share); err != nil {
		return failure(k.Name(), slot.Index, err)
	}
	back, err := k.Fetch(ctx, slot)
	if err != nil {
		return failure(k.Name(), slot.Index, err)
	}
	defer locked.Wipe(back)
	if subtle.ConstantTimeCompare(back, share) != 1 {
		return KeeperReport{Name: k.Name(), Index: slot.Index, Health: Wrong, Detail: "it gave back another share than it was given"}
	}
	return KeeperReport{Name: k.Name(), Index: slot.Index, Health: Good}
}

// settle tells the Keepers that the committed set is the current one. Its failure costs nothing: a share is found
// in either slot, and Refill settles again.
func (s *Seal) settle(ctx context.Context, st State, keepers []Keeper) {
	s.each(ctx, keepers, func(ctx context.Context, _ int, k Keeper) {
		if err := k.Settle(ctx, st.Cluster, st.Committed.ID); err != nil {
			s.log.Warn("a Keeper was not told that its share is current; the next refill does it", "keeper", k.Name(), "error", err)
		}
	})
}

// each calls f for every Keeper at once, with the configured deadline each, and waits.
func (s *Seal) each(ctx context.Context, keepers []Keeper, f func(ctx context.Context, i int, k Keeper)) {
	var wg sync.WaitGroup
	for i, k := range keepers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, s.cfg.KeeperTimeout)
			defer cancel()
			f(ctx, i, k)
		})
	}
	wg.Wait()
}
