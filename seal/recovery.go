package seal

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// RecoveryShare is one share for an operator to keep: enough of them unseal the cluster without Keepers.
type RecoveryShare struct {
	Index int
	Bytes [shareSize]byte
}

// Wipe overwrites the share.
func (r *RecoveryShare) Wipe() { locked.Wipe(r.Bytes[:]) }

// String keeps the share out of logs.
func (r RecoveryShare) String() string { return fmt.Sprintf("share %d (withheld)", r.Index) }

// GoString keeps the share out of logs.
func (r RecoveryShare) GoString() string { return r.String() }

// Recovery exports all shares of the committed set: the only key material that ever leaves this package other
// than to Keepers. The caller encrypts and wipes them. Errors: ErrNotInitialised, ErrSealed, ErrStaleState.
func (s *Seal) Recovery(st State) ([]RecoveryShare, error) {
	if st.Committed == nil {
		return nil, ErrNotInitialised
	}
	shares, err := s.shares(st)
	if err != nil {
		return nil, err
	}
	defer destroy(shares)
	var out []RecoveryShare
	erase.Do(func() {
		out = make([]RecoveryShare, len(shares))
		for i, share := range shares {
			out[i].Index = i + 1
			copy(out[i].Bytes[:], share.Bytes())
		}
	})
	return out, nil
}

// ShareFingerprint is what the cluster knows of a share: enough to tell the right one from any other, and nothing of it.
func ShareFingerprint(set [16]byte, index int, share []byte) [32]byte {
	return fingerprint(set, index, share)
}

// Progress says how far a Collector is.
type Progress struct {
	Collected int
	Remaining int
	Given     []int // the indexes collected, ascending
	Ready     bool  // UnsealWith can be called
}

// Collector gathers recovery shares, one at a time, in locked memory. Each is checked on its own, so a wrong one is
// refused and spoils nothing. When the cluster's share set changes meanwhile, it begins anew with the new one. All
// methods are safe for concurrent use.
type Collector struct {
	mu      sync.Mutex
	cluster ClusterRef
	set     [16]byte
	shares  map[int]*locked.Buffer // by index; all fit the set; guarded by mu
}

// NewCollector makes an empty Collector.
func NewCollector() *Collector { return &Collector{shares: make(map[int]*locked.Buffer)} }

// Add takes a copy of a share. The Progress is meaningful with every error but the first two.
// Errors: ErrNotInitialised, ErrShareSet, ErrShareIndex, ErrWrongShare, ErrForeignShare (it is of the pending
// set), ErrDuplicateShare (that index is there already; nothing is lost).
func (c *Collector) Add(st State, index int, share []byte) (Progress, error) {
	if st.Committed == nil {
		return Progress{}, ErrNotInitialised
	}
	set := st.Committed
	if err := set.Validate(); err != nil {
		return Progress{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cluster != st.Cluster || c.set != set.ID {
		c.drop()
		c.cluster, c.set = st.Cluster, set.ID
	}
	switch {
	case index < 1 || index > set.Shares:
		return c.progress(set), fmt.Errorf("%w: %d; there are shares 1 to %d", ErrShareIndex, index, set.Shares)
	case !set.fits(index, share):
		return c.progress(set), misfit(st, index, share)
	case c.shares[index] != nil:
		return c.progress(set), fmt.Errorf("%w: index %d", ErrDuplicateShare, index)
	}
	held := locked.New(shareSize)
	erase.Do(func() { copy(held.Bytes(), share) })
	c.shares[index] = held
	return c.progress(set), nil
}

// misfit says what a refused share is, as far as the state can tell.
func misfit(st State, index int, share []byte) error {
	if st.Pending != nil && st.Pending.Validate() == nil && st.Pending.fits(index, share) {
		return fmt.Errorf("%w: it is of the set that is being set up and not committed yet", ErrForeignShare)
	}
	for i := 1; i <= st.Committed.Shares; i++ {
		if i != index && st.Committed.fits(i, share) {
			return fmt.Errorf("%w: index %d was given and it is share %d", ErrWrongShare, index, i)
		}
	}
	return fmt.Errorf("%w: index %d; check that it was copied whole and is of this cluster's present share set", ErrWrongShare, index)
}

func (c *Collector) progress(set *ShareSet) Progress {
	n := len(c.shares)
	return Progress{Collected: n, Remaining: max(set.Threshold-n, 0), Given: slices.Sorted(maps.Keys(c.shares)), Ready: n >= set.Threshold}
}

// Close wipes what was collected. The Collector can be used again.
func (c *Collector) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

func (c *Collector) drop() {
	for i, b := range c.shares {
		b.Destroy()
		delete(c.shares, i)
	}
	c.set, c.cluster = [16]byte{}, ClusterRef{}
}

// UnsealWith unseals with collected shares instead of Keepers, and empties the Collector when it succeeds.
// Errors: as Unseal, and ErrForeignShare when the shares are of another set than the state's.
func (s *Seal) UnsealWith(st State, c *Collector) error {
	ticket := s.ticket()
	if err := unsealable(st); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.shares) > 0 && (c.cluster != st.Cluster || c.set != st.Committed.ID) {
		return fmt.Errorf("%w: the share set changed while shares were collected; feed them again", ErrForeignShare)
	}
	if p := c.progress(st.Committed); !p.Ready {
		return &NotEnoughError{Good: p.Collected, Needed: st.Committed.Threshold}
	}
	points := make([]point, 0, len(c.shares))
	for index, b := range c.shares {
		points = append(points, point{index, b.Bytes()})
	}
	sort.Slice(points, func(i, j int) bool { return points[i].index < points[j].index })
	if err := s.unseal(st, points[:st.Committed.Threshold], ticket); err != nil {
		return err
	}
	c.drop()
	return nil
}
