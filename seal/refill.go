package seal

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Inspect says how the Keepers of the committed set stand, and changes nothing. With the keys of that set in use each
// Keeper proves its share, and none is moved; without them each only says what it holds (Held). A Keeper of
// a release without proofs is asked for its share, which is checked against its fingerprint (KeeperReport.Fetched).
// Errors: ErrNotInitialised, ErrShareSet, ErrRoot.
func (s *Seal) Inspect(ctx context.Context, st State, keepers []Keeper) ([]KeeperReport, error) {
	if st.Committed == nil {
		return nil, ErrNotInitialised
	}
	if err := st.Committed.Validate(); err != nil {
		return nil, err
	}
	k, err := s.verifying(st)
	var proofs []byte
	switch {
	case err == nil:
		defer k.release()
		if proofs, err = k.proving(); err != nil {
			return nil, err
		}
	case !errors.Is(err, ErrSealed) && !errors.Is(err, ErrStaleState):
		return nil, err
	}
	return s.visit(ctx, st, keepers, func(ctx context.Context, a asked) KeeperReport {
		if k == nil {
			return claim(ctx, st, a)
		}
		return challenge(ctx, st, a, proofs)
	}), nil
}

// Refill has every Keeper prove its share, and gives the same share as before to each one found empty, wrong or with
// another set, to all of them at once. A good one is not touched. A Keeper that serves another cluster or a
// higher incarnation never is. It is safe to repeat and to run on two peers at once; st must be the newest state, read
// after a read-index round.
//
// What was placed is pending at the Keeper until it is settled, which makes it drop the set that was current there. Every
// good Keeper is settled, as of st: should st have been overtaken by a rekey, the Keepers that the rekey settled refuse.
// One of a release without proofs does not know which of two states is newer. It is settled when all Keepers of the
// set are good, not before: after a rekey, mostly, one has dropped the set of st and refuses its share.
// Errors: ErrNotInitialised, ErrShareSet, ErrSealed, ErrStaleState, ErrRoot; a Keeper that could not be helped is only
// reported.
func (s *Seal) Refill(ctx context.Context, st State, keepers []Keeper) ([]KeeperReport, error) {
	if st.Committed == nil {
		return nil, ErrNotInitialised
	}
	if err := st.Committed.Validate(); err != nil {
		return nil, err
	}
	k, err := s.verifying(st)
	if err != nil {
		return nil, err
	}
	defer k.release()
	proofs, err := k.proving()
	if err != nil {
		return nil, err
	}
	var used atomic.Bool
	shares := sync.OnceValues(func() ([]*locked.Buffer, error) { // mostly nobody needs one
		used.Store(true)
		return k.shares()
	})
	defer func() {
		if used.Load() {
			parts, _ := shares()
			destroy(parts)
		}
	}()
	failpoint.Hit(failpoint.SealRefillBefore)
	reports := s.visit(ctx, st, keepers, func(ctx context.Context, a asked) KeeperReport {
		r := challenge(ctx, st, a, proofs)
		if r.Health != Empty && r.Health != Wrong && r.Health != Stale {
			return r
		}
		parts, err := shares()
		if err != nil {
			r.Detail = err.Error()
			return r
		}
		before, old := r.Health, r.Fetched
		r = place(ctx, a.keeper, Slot{st.Cluster, st.Committed.ID, a.index}, parts[a.index-1].Bytes())
		r.Refilled, r.Fetched = r.Health == Good, old
		s.log.Info("refilling a Keeper", "keeper", r.Name, "was", string(before), "is", string(r.Health), "detail", r.Detail)
		return r
	})
	var settled []Keeper
	shareholders, _ := assign(st.Committed, keepers)
	all := Count(reports) == len(shareholders)
	for i, a := range shareholders {
		if reports[i].Health == Good && (all || !reports[i].Fetched) {
			settled = append(settled, a.keeper)
		}
	}
	s.settle(ctx, st, settled)
	failpoint.Hit(failpoint.SealRefillAfter)
	return reports, nil
}

// Count is how many of the Keepers are good.
func Count(reports []KeeperReport) (good int) {
	for _, r := range reports {
		if r.Health == Good {
			good++
		}
	}
	return good
}

// visit has look look at every Keeper of the set at once, and reports in order of index.
func (s *Seal) visit(ctx context.Context, st State, keepers []Keeper, look func(context.Context, asked) KeeperReport) []KeeperReport {
	shareholders, strangers := assign(st.Committed, keepers)
	reports := make([]KeeperReport, len(shareholders))
	ask := make([]Keeper, len(shareholders))
	for i, a := range shareholders {
		ask[i] = a.keeper
	}
	s.each(ctx, ask, func(ctx context.Context, i int, _ Keeper) { reports[i] = look(ctx, shareholders[i]) })
	return append(reports, strangers...)
}
