package seal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Unseal collects a threshold of good shares from the Keepers and opens the state's keyring with them. Each Keeper
// is asked at once and has Config.KeeperTimeout to answer; a wrong, stale, foreign, empty or silent one is named in the
// reports and costs nothing but its own share. When the keys in use are of the state's share set, no Keeper is asked, and
// the reports are nil: what became of the keyring is for Follow.
// Errors: ErrNotInitialised, ErrOperatorSealed, *NotEnoughError, ErrRoot, ErrKeyring, and ErrSealed when Lock was
// called meanwhile.
func (s *Seal) Unseal(ctx context.Context, st State, keepers []Keeper) ([]KeeperReport, error) {
	ticket := s.ticket()
	if err := unsealable(st); err != nil {
		return nil, err
	}
	if s.serves(st) {
		return nil, nil
	}
	points, reports := s.collect(ctx, st, keepers)
	defer func() {
		for _, p := range points {
			locked.Wipe(p.share)
		}
	}()
	if len(points) < st.Committed.Threshold {
		if err := ctx.Err(); err != nil {
			return reports, fmt.Errorf("seal: gave up unsealing: %w", err)
		}
		return reports, &NotEnoughError{Good: len(points), Needed: st.Committed.Threshold, Reports: reports}
	}
	return reports, s.unseal(st, points[:st.Committed.Threshold], ticket)
}

func unsealable(st State) error {
	switch {
	case st.Committed == nil:
		return ErrNotInitialised
	case st.Sealed:
		return ErrOperatorSealed
	}
	return st.Committed.Validate()
}

// Follow takes the state's keyring into use with the root key that is here, and asks nobody: it may be called where
// the state machine applies, so that nothing is shown that needs a key which is not in use. While sealed it does
// nothing. Calls must come one after the other, each with a state not older than the one before.
// Errors: ErrKeyring and ErrStaleState, after which these keys cannot serve the state: Lock. ErrSealed when Lock was
// called meanwhile.
func (s *Seal) Follow(st State) error {
	ticket := s.ticket()
	k, err := s.acquire()
	if err != nil {
		return nil
	}
	defer k.release()
	switch {
	case k.upToDate(st), st.Committed == nil: // nil: initialised here, and the commit is still on its way
		return nil
	case k.belongsTo(st):
	case k.holds(st.Epochs): // the same keys, under another root key
		return nil
	default:
		return ErrStaleState
	}
	fresh, err := newKeys(k.copyRoot(), st, s.cfg.encryptCap)
	if err != nil {
		return err
	}
	return s.install(fresh, ticket)
}

// serves says whether the keys in use are of the state's share set; Follow keeps their keyring up to date.
func (s *Seal) serves(st State) bool {
	k, err := s.acquire()
	if err != nil {
		return false
	}
	defer k.release()
	return k.belongsTo(st)
}

// unseal turns a threshold of points, each of which fits its fingerprint, into keys in use.
func (s *Seal) unseal(st State, points []point, ticket uint64) error {
	root, err := join(points)
	if err != nil {
		return err
	}
	if !st.Committed.madeFrom(root.Bytes()) {
		root.Destroy()
		return ErrRoot
	}
	k, err := newKeys(root, st, s.cfg.encryptCap)
	if err != nil {
		return err
	}
	if err := s.install(k, ticket); err != nil {
		return err
	}
	s.log.Info("unsealed", "cluster", st.Cluster.String(), "threshold", st.Committed.Threshold)
	return nil
}

// asked is a share of the set and the Keeper that should have it.
type asked struct {
	index  int
	name   string
	keeper Keeper // nil: not among those configured
}

// assign pairs the set's shares with the Keepers by name, and reports the Keepers that have none.
func assign(set *ShareSet, keepers []Keeper) (shares []asked, strangers []KeeperReport) {
	byName := make(map[string]Keeper, len(keepers))
	for _, k := range keepers {
		byName[k.Name()] = k
		if !slices.Contains(set.Keepers, k.Name()) {
			strangers = append(strangers, KeeperReport{Name: k.Name(), Health: Foreign, Detail: "no share of the committed set is assigned to it"})
		}
	}
	for i, name := range set.Keepers {
		if name != "" {
			shares = append(shares, asked{i + 1, name, byName[name]})
		}
	}
	return shares, strangers
}

// collect asks all Keepers at once and returns as soon as a threshold of good shares is there.
func (s *Seal) collect(ctx context.Context, st State, keepers []Keeper) ([]point, []KeeperReport) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KeeperTimeout)
	defer cancel()
	shares, strangers := assign(st.Committed, keepers)
	type answer struct {
		at     int
		share  []byte
		report KeeperReport
	}
	answers := make(chan answer, len(shares)) // so that a late one never blocks
	reports := make([]KeeperReport, len(shares))
	for i, a := range shares {
		reports[i] = KeeperReport{Name: a.name, Index: a.index, Health: Unknown, Detail: "enough others answered first"}
		go func() {
			share, report := fetch(ctx, st, a)
			answers <- answer{i, share, report}
		}()
	}
	var points []point
	waiting := len(shares)
	take := func(a answer) {
		waiting--
		reports[a.at] = a.report
		if a.report.Health == Good {
			points = append(points, point{a.report.Index, a.share})
		}
	}
	for waiting > 0 && len(points) < st.Committed.Threshold {
		select {
		case a := <-answers:
			take(a)
			continue
		case <-ctx.Done():
		}
		for i := range reports {
			if reports[i].Health == Unknown {
				reports[i].Health, reports[i].Detail = Unreachable, "it did not answer in time"
			}
		}
		break
	}
	for ready := true; ready && waiting > 0; { // whoever has answered by now is reported
		select {
		case a := <-answers:
			take(a)
		default:
			ready = false
		}
	}
	go func(late int) {
		for range late {
			locked.Wipe((<-answers).share)
		}
	}(waiting)
	for _, r := range reports {
		if r.Health != Good && r.Health != Unknown {
			s.log.Warn("a Keeper is of no use for unsealing", "keeper", r.Name, "health", string(r.Health), "detail", r.Detail)
		}
	}
	return points, append(reports, strangers...)
}

// fetch asks one Keeper and believes its share only if it fits the fingerprint.
func fetch(ctx context.Context, st State, a asked) ([]byte, KeeperReport) {
	if a.keeper == nil {
		return nil, withoutAddress(a)
	}
	share, err := a.keeper.Fetch(ctx, Slot{st.Cluster, st.Committed.ID, a.index})
	if err != nil {
		return nil, failure(a.name, a.index, err)
	}
	if !st.Committed.fits(a.index, share) {
		locked.Wipe(share)
		return nil, KeeperReport{Name: a.name, Index: a.index, Health: Wrong, Detail: "its share does not fit the fingerprint in the replicated state"}
	}
	return share, KeeperReport{Name: a.name, Index: a.index, Health: Good}
}

// failure names what a Keeper's error means. One that is asked too often counts as unreachable: it may well be good,
// and must not be taken for empty and given its share again.
func failure(name string, index int, err error) KeeperReport {
	r := KeeperReport{Name: name, Index: index, Health: Unreachable, Detail: err.Error()}
	switch {
	case errors.Is(err, ErrNoShare):
		r.Health = Empty
	case errors.Is(err, ErrOtherSet), errors.Is(err, ErrStale):
		r.Health = Stale
	case errors.Is(err, ErrForeignSet):
		r.Health = Foreign
	case errors.Is(err, context.DeadlineExceeded):
		r.Detail = "it did not answer in time"
	}
	return r
}
