package seal

import (
	"context"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Inspect asks every Keeper of the committed set for its share and reports, changing nothing. Shares are checked
// against their fingerprints, so it needs no key and works while sealed. Errors: ErrNotInitialised, ErrShareSet.
func (s *Seal) Inspect(ctx context.Context, st State, keepers []Keeper) ([]KeeperReport, error) {
	if st.Committed == nil {
		return nil, ErrNotInitialised
	}
	if err := st.Committed.Validate(); err != nil {
		return nil, err
	}
	return s.visit(ctx, st, keepers, func(_ context.Context, _ Keeper, r KeeperReport) KeeperReport { return r }), nil
}

// Refill is Inspect, and gives the same share as before to each Keeper found empty, wrong or with another set. It
// tells the good ones, too, that their share is the current one. It never touches a Keeper that serves another
// cluster or a higher incarnation. It is safe to repeat and to run on two peers at once.
// Errors: ErrNotInitialised, ErrSealed, ErrStaleState; a Keeper that could not be helped is only reported.
func (s *Seal) Refill(ctx context.Context, st State, keepers []Keeper) ([]KeeperReport, error) {
	if st.Committed == nil {
		return nil, ErrNotInitialised
	}
	shares, err := s.shares(st)
	if err != nil {
		return nil, err
	}
	defer destroy(shares)
	failpoint.Hit(failpoint.SealRefillBefore)
	reports := s.visit(ctx, st, keepers, func(ctx context.Context, k Keeper, r KeeperReport) KeeperReport {
		if r.Health == Empty || r.Health == Wrong || r.Health == Stale {
			before := r.Health
			r = place(ctx, k, Slot{st.Cluster, st.Committed.ID, r.Index}, shares[r.Index-1].Bytes())
			r.Refilled = r.Health == Good
			s.log.Info("refilling a Keeper", "keeper", r.Name, "was", string(before), "is", string(r.Health), "detail", r.Detail)
		}
		if r.Health == Good {
			if err := k.Settle(ctx, st.Cluster, st.Committed.ID); err != nil {
				s.log.Warn("a Keeper was not told that its share is current; the next refill does it", "keeper", r.Name, "error", err)
			}
		}
		return r
	})
	failpoint.Hit(failpoint.SealRefillAfter)
	return reports, nil
}

// shares computes all shares of the committed set, which must be the one whose root key is in use.
func (s *Seal) shares(st State) ([]*locked.Buffer, error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	if !k.belongsTo(st) {
		return nil, ErrStaleState
	}
	shares, err := split(k.root.Bytes(), k.set.ID, k.set.Shares, k.set.Threshold)
	if err != nil {
		return nil, err
	}
	for i, share := range shares {
		if !st.Committed.fits(i+1, share.Bytes()) {
			destroy(shares)
			return nil, ErrRoot
		}
	}
	return shares, nil
}

// visit fetches from every Keeper of the set, lets then act on what was found, and reports in order of index.
func (s *Seal) visit(ctx context.Context, st State, keepers []Keeper, then func(context.Context, Keeper, KeeperReport) KeeperReport) []KeeperReport {
	assigned, strangers := assign(st.Committed, keepers)
	reports := make([]KeeperReport, len(assigned))
	ask := make([]Keeper, len(assigned))
	for i, a := range assigned {
		ask[i] = a.keeper
	}
	s.each(ctx, ask, func(ctx context.Context, i int, k Keeper) {
		share, report := fetch(ctx, st, assigned[i])
		locked.Wipe(share)
		if k != nil {
			report = then(ctx, k, report)
		}
		reports[i] = report
	})
	return append(reports, strangers...)
}
