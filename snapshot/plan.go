package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

var (
	// ErrNothing: the archive holds no snapshot that the restore could begin with.
	ErrNothing = errors.New("snapshot: the archive holds no snapshot to begin with")
	// ErrNoKeyring: the archive holds no keyring, so nothing opens the rest.
	ErrNoKeyring = errors.New("snapshot: the archive holds no keyring")
)

// GapError says that the log in the archive does not reach the index asked for.
type GapError struct {
	Have, Want uint64
	Next       uint64 // first index that is there after Have; 0: none
}

func (e *GapError) Error() string {
	if e.Next == 0 {
		return fmt.Sprintf("snapshot: the archive ends at index %d, and index %d was asked for", e.Have, e.Want)
	}
	return fmt.Sprintf("snapshot: the segments from index %d to %d are missing, and index %d was asked for; restore to %d, or to a later snapshot", e.Have+1, e.Next-1, e.Want, e.Have)
}

// List lists what the archive holds of a cluster, or of all when cluster is zero, in the order of names. Objects that are none of ours
// are passed over.
func (a *Archive) List(ctx context.Context, cluster [16]byte) ([]Item, error) {
	prefix := "v1/"
	if cluster != [16]byte{} {
		prefix = prefixOf(cluster, 0)
	}
	return a.list(ctx, prefix)
}

func (a *Archive) list(ctx context.Context, prefix string) ([]Item, error) {
	var list []Item
	for o, err := range a.bucket.List(ctx, a.prefix+prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", a, err)
		}
		if item, ok := ParseName(o.Name[len(a.prefix):]); ok {
			item.Size, item.Modified = o.Size, o.Modified
			list = append(list, item)
		}
	}
	slices.SortFunc(list, func(x, y Item) int { return cmp.Compare(x.Name, y.Name) })
	return list, nil
}

// Plan is what leads to a state: a snapshot, and the segments after it.
type Plan struct {
	Snapshot Item
	Segments []Item
	Last     uint64 // index of the state; commands of the last segment after it are left out
}

// NewestIncarnation is the highest incarnation of which there is a snapshot; 0 for none.
func NewestIncarnation(list []Item) (newest uint64) {
	for _, i := range list {
		if i.Kind == Snapshot {
			newest = max(newest, i.Incarnation)
		}
	}
	return newest
}

// NewestKeyring is the keyring object to open everything with: keys are only ever added to a keyring. Of any incarnation.
func NewestKeyring(list []Item) (newest Item, err error) {
	for _, i := range list {
		if i.Kind == Keyring && (newest.Name == "" || cmp.Or(cmp.Compare(i.Incarnation, newest.Incarnation), cmp.Compare(i.Last, newest.Last)) >= 0) {
			newest = i
		}
	}
	if newest.Name == "" {
		return newest, ErrNoKeyring
	}
	return newest, nil
}

// MakePlan finds the way to the state of an incarnation (0: the newest) after index (0: as far as it goes), from the newest snapshot
// before it. Errors: ErrNothing, *GapError.
func MakePlan(list []Item, incarnation, index uint64) (Plan, error) {
	if incarnation == 0 {
		incarnation = NewestIncarnation(list)
	}
	var plan Plan
	for _, i := range list {
		if i.Kind == Snapshot && i.Incarnation == incarnation && (index == 0 || i.Last <= index) && (plan.Snapshot.Name == "" || i.Last > plan.Snapshot.Last) {
			plan.Snapshot = i
		}
	}
	if plan.Snapshot.Name == "" {
		return plan, fmt.Errorf("%w (incarnation %d, index %d)", ErrNothing, incarnation, index)
	}
	plan.Last = plan.Snapshot.Last
	var segments []Item
	for _, i := range list {
		if i.Kind == Segment && i.Incarnation == incarnation && i.Last > plan.Last {
			segments = append(segments, i)
		}
	}
	slices.SortFunc(segments, func(x, y Item) int { return cmp.Compare(x.First, y.First) })
	for at := 0; index == 0 || plan.Last < index; {
		var best Item // of those that go on from here the one that goes farthest
		for ; at < len(segments) && segments[at].First <= plan.Last+1; at++ {
			if segments[at].Last > best.Last {
				best = segments[at]
			}
		}
		switch {
		case best.Last > plan.Last:
			plan.Segments, plan.Last = append(plan.Segments, best), best.Last
		case at < len(segments):
			return plan, &GapError{Have: plan.Last, Want: max(index, segments[at].First), Next: segments[at].First}
		case index == 0:
			return plan, nil
		default:
			return plan, &GapError{Have: plan.Last, Want: index}
		}
	}
	plan.Last = index
	return plan, nil
}

// Through is the index up to which the log goes on without a gap from a snapshot.
func Through(list []Item, s Item) uint64 {
	only := []Item{s}
	for _, i := range list {
		if i.Kind == Segment {
			only = append(only, i)
		}
	}
	plan, _ := MakePlan(only, s.Incarnation, 0)
	return plan.Last
}

// IndexAt is the highest index of an incarnation (0: the newest) that was in the archive at a time, by the clocks of the peers that shipped.
// Errors: ErrNothing, those of Bucket.
func (a *Archive) IndexAt(ctx context.Context, list []Item, incarnation uint64, when time.Time) (uint64, error) {
	if incarnation == 0 {
		incarnation = NewestIncarnation(list)
	}
	var objects []Item
	for _, i := range list {
		if (i.Kind == Snapshot || i.Kind == Segment) && i.Incarnation == incarnation {
			objects = append(objects, i)
		}
	}
	slices.SortStableFunc(objects, func(x, y Item) int { return cmp.Compare(x.Last, y.Last) })
	var failed error
	at, _ := slices.BinarySearchFunc(objects, when, func(i Item, when time.Time) int {
		h, err := a.Head(ctx, i)
		if failed == nil {
			failed = err
		}
		if err != nil || h.Created.After(when) {
			return 1
		}
		return -1
	})
	switch {
	case failed != nil:
		return 0, failed
	case at == 0:
		return 0, fmt.Errorf("%w (of %s or before)", ErrNothing, when.Format(time.RFC3339))
	}
	return objects[at-1].Last, nil
}

// Machine is fed a plan.
type Machine interface {
	// Restore takes the state of a snapshot, and checks that it is the one that the header describes.
	Restore(h Header, r io.Reader) error
	// Apply takes the next entry.
	Apply(e LogEntry) error
}

// Replay feeds the plan to m: the snapshot, and then each entry after it up to plan.Last, once. It returns the header of the
// snapshot and the number of entries. Errors: those of ReadSnapshot and ReadSegment.
func (a *Archive) Replay(ctx context.Context, plan Plan, c Cipher, m Machine, progress func(Item)) (h Header, entries int, err error) {
	if progress == nil {
		progress = func(Item) {}
	}
	err = a.ReadSnapshot(ctx, plan.Snapshot, c, func(head Header, r io.Reader) error {
		h = head
		return m.Restore(head, r)
	})
	if err != nil {
		return h, 0, err
	}
	progress(plan.Snapshot)
	at := plan.Snapshot.Last
	for _, item := range plan.Segments {
		if item.First > at+1 {
			return h, entries, &GapError{Have: at, Want: plan.Last, Next: item.First}
		}
		_, err := a.ReadSegment(ctx, item, c, func(e LogEntry) error {
			if e.Index <= at || e.Index > plan.Last {
				return nil
			}
			at = e.Index
			entries++
			return m.Apply(e)
		})
		if err != nil {
			return h, entries, err
		}
		at = item.Last
		progress(item)
	}
	return h, entries, nil
}
