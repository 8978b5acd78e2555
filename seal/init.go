package seal

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// Split says how a root key is split.
type Split struct {
	Keepers           []Keeper // keepers[i] gets share i+1
	Shares, Threshold int      // as many shares as Keepers, of which so many recover the root key
	// AllowSingleShare permits a threshold of 1 with more than one share, where each Keeper can unseal on its own and
	// so holds the root key.
	AllowSingleShare bool
}

// Initialise gives a cluster its root key and keyring, and leaves this process unsealed:
//
//	begin   the new share set is in the log as pending
//	place   every Keeper has its share, and gave it back when asked
//	commit  set and keyring are in the log, together; from here the cluster is initialised
//	settle  the Keepers know that the share is the current one
//
// Every Keeper must take part. Each step can be repeated, and a crash at any of them
// leaves a state that a second call completes: before the commit it begins anew with other keys, superseding
// what was pending, and after it, it finishes the settling and answers ErrAlreadyInitialised. Of two calls at
// once at most one commits; the other gets ErrSuperseded. Errors besides these: *PlacementError, ErrShareSet.
func (s *Seal) Initialise(ctx context.Context, ledger Ledger, split Split) error {
	ticket := s.ticket()
	st, err := ledger.State(ctx)
	if err != nil {
		return fmt.Errorf("seal: reading the state before initialisation: %w", err)
	}
	if st.Committed != nil {
		s.settle(ctx, st, split.Keepers)
		return ErrAlreadyInitialised
	}
	if st.Sealed {
		return ErrOperatorSealed
	}
	if err := split.check(); err != nil {
		return err
	}
	p, err := newProposal(newID(), st.Cluster, split)
	if err != nil {
		return err
	}
	p.generation = st.Generation
	defer destroy(p.parts)
	k, err := s.publish(ctx, ledger, p, func(context.Context) (*sealpb.Keyring, error) { return newKeyring(s.cfg.now()), nil })
	if err != nil {
		return err
	}
	s.settleNew(ctx, ledger, p)
	s.log.Info("initialised: the root key is split among the Keepers", "cluster", st.Cluster.String(), "shares", split.Shares, "threshold", split.Threshold)
	return s.install(k, ticket)
}

// check refuses impossible and, unless allowed, unwise numbers.
func (s Split) check() error {
	n, t := s.Shares, s.Threshold
	if n < 1 || n > MaxShares || t < 1 || t > n {
		return fmt.Errorf("%w: %d shares with a threshold of %d; possible are 1 ≤ threshold ≤ shares ≤ %d", ErrShareSet, n, t, MaxShares)
	}
	if t == 1 && n > 1 && !s.AllowSingleShare {
		return fmt.Errorf("%w: with a threshold of 1 each of the %d Keepers holds the whole root key; choose 2 or more, or allow it explicitly (--allow-single-share)", ErrShareSet, n)
	}
	if len(s.Keepers) != n {
		return fmt.Errorf("%w: %d shares need as many Keepers, and there are %d", ErrShareSet, n, len(s.Keepers))
	}
	seen := make(map[string]bool, n)
	for _, k := range s.Keepers {
		switch name := k.Name(); {
		case name == "":
			return fmt.Errorf("%w: a Keeper has no name", ErrShareSet)
		case seen[name]:
			return fmt.Errorf("%w: Keeper %q has two shares", ErrShareSet, name)
		default:
			seen[name] = true
		}
	}
	return nil
}

// proposal is a share set of a root key of its own, on its way to be the committed one.
type proposal struct {
	root        *locked.Buffer
	set         ShareSet
	parts       []*locked.Buffer // share 1 … n
	keepers     []Keeper
	cluster     ClusterRef // that shares and keyring are for
	incarnation uint64     // that the commit moves the cluster to; 0: it stays
	supersedes  [16]byte   // the committed set, zero for none
	generation  uint64     // of the seal, that all of this was decided on
}

// newProposal draws a root key and splits it. The caller destroys the parts; the root key is publish's.
func newProposal(id [16]byte, cluster ClusterRef, how Split) (*proposal, error) {
	p := &proposal{root: newRoot(), set: ShareSet{ID: id, Shares: how.Shares, Threshold: how.Threshold}, cluster: cluster, keepers: how.Keepers}
	var err error
	if p.parts, err = split(p.root.Bytes(), id, how.Shares, how.Threshold); err == nil {
		for i, part := range p.parts {
			p.set.Fingerprints = append(p.set.Fingerprints, fingerprint(id, i+1, part.Bytes()))
			p.set.Keepers = append(p.set.Keepers, how.Keepers[i].Name())
		}
		err = p.set.Validate()
	}
	if err != nil {
		p.root.Destroy()
		destroy(p.parts)
		return nil, err
	}
	return p, nil
}

// publish is begin, place and commit. The keyring to commit is asked for after begin, and wiped. It succeeds only
// when the set is certainly committed, and then returns its keys, with a reference of the caller's.
func (s *Seal) publish(ctx context.Context, ledger Ledger, p *proposal, keyring func(context.Context) (*sealpb.Keyring, error)) (k *keys, err error) {
	defer func() {
		switch {
		case err == nil:
		case k != nil:
			k.release() // with the root key
			k = nil
		default:
			p.root.Destroy()
		}
	}()
	failpoint.Hit(failpoint.SealBeginBefore)
	if err := ledger.Begin(ctx, p.set, p.supersedes, p.generation); err != nil {
		return nil, fmt.Errorf("seal: recording the share set: %w", err)
	}
	failpoint.Hit(failpoint.SealBeginAfter)
	if err := s.placeAll(ctx, p); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.SealPlaceAfter)
	ring, err := keyring(ctx)
	if err != nil {
		return nil, err
	}
	defer wipeKeyring(ring)
	sealed, err := sealKeyring(p.root.Bytes(), p.cluster, p.set.ID, ring)
	if err != nil {
		return nil, err
	}
	if len(sealed) > maxReplicated {
		return nil, fmt.Errorf("%w: the keyring holds too many keys", ErrTooLarge)
	}
	// Opened again, before anybody depends on it: nobody could undo the entry of a keyring that does not open.
	if k, err = newKeys(p.root, State{Cluster: p.cluster, Committed: &p.set, Keyring: sealed}, s.cfg.encryptCap); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.SealCommitBefore)
	err = ledger.Commit(ctx, Commitment{Set: p.set.ID, Incarnation: p.incarnation, Keyring: sealed, Epochs: currentEpochs(ring)}, p.generation)
	if err == nil {
		failpoint.Hit(failpoint.SealCommitAfter)
		return k, nil
	}
	// The commit may have reached the log all the same, and a repetition of it may have been answered. Only the
	// state can tell.
	now, readErr := ledger.State(ctx)
	if readErr == nil && now.Committed != nil && now.Committed.ID == p.set.ID {
		return k, nil
	}
	return k, fmt.Errorf("seal: committing the share set: %w", errors.Join(err, readErr))
}

// placeAll gives every Keeper its share and insists on reading it back.
func (s *Seal) placeAll(ctx context.Context, p *proposal) error {
	reports := make([]KeeperReport, len(p.keepers))
	s.each(ctx, p.keepers, func(ctx context.Context, i int, k Keeper) {
		reports[i] = place(ctx, k, Slot{p.cluster, p.set.ID, i + 1}, p.parts[i].Bytes())
		failpoint.Hit(failpoint.SealPlaceOne)
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
	held, err := holds(ctx, k, slot, share)
	switch {
	case err != nil:
		return failure(k.Name(), slot.Index, err)
	case !held:
		return KeeperReport{Name: k.Name(), Index: slot.Index, Health: Wrong, Detail: "it does not have the share that it was given"}
	}
	return KeeperReport{Name: k.Name(), Index: slot.Index, Health: Good}
}

// holds has the Keeper prove that it has the share. One of a release that knows no proofs sends it back.
func holds(ctx context.Context, k Keeper, slot Slot, share []byte) (bool, error) {
	var nonce [32]byte
	rand.Read(nonce[:])
	proof, err := k.Prove(ctx, slot, nonce)
	if errors.Is(err, ErrOldKeeper) {
		back, err := k.Fetch(ctx, slot)
		defer locked.Wipe(back)
		return subtle.ConstantTimeCompare(back, share) == 1, err
	}
	if err != nil {
		return false, err
	}
	want := Proof(share, slot, k.Name(), nonce)
	return subtle.ConstantTimeCompare(proof[:], want[:]) == 1, nil
}

// settleNew settles what was just committed, by a state that shows it so.
func (s *Seal) settleNew(ctx context.Context, ledger Ledger, p *proposal) {
	// Whoever asked may have gone; the Keepers are told all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*s.cfg.KeeperTimeout)
	defer cancel()
	switch st, err := ledger.State(ctx); {
	case err != nil:
		s.log.Warn("the Keepers were not told that their shares are current; the next refill does it", "error", err)
	case st.Committed != nil && st.Committed.ID == p.set.ID:
		s.settle(ctx, st, p.keepers)
	}
}

// settle tells the Keepers that the state's committed set is the current one. Its failure costs nothing: a share is
// found in either slot, and Refill settles again.
func (s *Seal) settle(ctx context.Context, st State, keepers []Keeper) {
	s.each(ctx, keepers, func(ctx context.Context, _ int, k Keeper) {
		if err := k.Settle(ctx, st.Cluster, st.Committed.ID, st.Index); err != nil {
			s.log.Warn("a Keeper was not told that its share is current; the next refill does it", "keeper", k.Name(), "error", err)
		}
	})
	failpoint.Hit(failpoint.SealSettleAfter)
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
