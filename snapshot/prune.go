package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Retention says how many snapshots of a cluster stay: of each of so many of the latest hours, days, ISO weeks and months (UTC)
// that have any, the newest; and the so many newest ones whatever their age, at least one. As it counts what is there and not
// what the calendar says, nothing goes because nothing new comes.
type Retention struct {
	Hourly, Daily, Weekly, Monthly int
	Minimum                        int
}

// DefaultRetention goes back for a year.
var DefaultRetention = Retention{Hourly: 24, Daily: 7, Weekly: 5, Monthly: 12, Minimum: 3}

// Retain divides a list of an archive, which may be of several clusters, into what stays and what may go; verified has the names of the
// snapshots that are known to restore. It holds of each cluster:
//
//   - What stays has a snapshot that was verified, the newest such one, and all of the log after it. While no snapshot of
//     the newest incarnation was verified nothing of the newest verified incarnation or a later one goes, and nothing at all while none was.
//   - The log that led anywhere from the oldest snapshot that stays of an incarnation on still does: segments after it stay, and so
//     does a snapshot that closes a gap between them. Snapshots alone, without a log, go as the policy says.
//   - Nothing that is newer than the newest snapshot goes.
//   - Claims and audit logs stay.
//   - The keyring in force at the oldest snapshot that stays remains, and all later ones.
//
// A list that lags shows less, and so less goes. What goes at one time would not have stayed at a later one, so that it does not matter how
// often this is done.
func Retain(list []Item, policy Retention, verified map[string]bool) (keep, drop []Item) {
	clusters := map[[16]byte][]Item{}
	for _, i := range list {
		clusters[i.Cluster] = append(clusters[i.Cluster], i)
	}
	stays := map[string]bool{}
	for _, items := range clusters {
		newShelf(items, verified).retain(policy, stays)
	}
	for _, i := range list {
		if stays[i.Name] || i.Kind == Claim || i.Kind == Audit { // a claim keeps its incarnation from being begun again; audit logs are kept for good
			keep = append(keep, i)
		} else {
			drop = append(drop, i)
		}
	}
	return keep, drop
}

// position is the order of everything in the archive of a cluster.
func position(x, y Item) int {
	return cmp.Or(cmp.Compare(x.Incarnation, y.Incarnation), cmp.Compare(x.Last, y.Last), cmp.Compare(x.Name, y.Name))
}

// shelf is what an archive has of one cluster, each kind in the order of positions.
type shelf struct {
	snapshots, segments, keyrings []Item
	newest                        uint64 // incarnation
	proof                         Item   // the newest verified snapshot of the newest incarnation that has one
}

func newShelf(items []Item, verified map[string]bool) *shelf {
	s := &shelf{}
	for _, i := range slices.SortedFunc(slices.Values(items), position) {
		s.newest = max(s.newest, i.Incarnation)
		switch i.Kind {
		case Snapshot:
			s.snapshots = append(s.snapshots, i)
			if verified[i.Name] {
				s.proof = i
			}
		case Segment:
			s.segments = append(s.segments, i)
		case Keyring:
			s.keyrings = append(s.keyrings, i)
		}
	}
	return s
}

// open says whether anything of an incarnation may go.
func (s *shelf) open(incarnation uint64) bool {
	return incarnation < s.proof.Incarnation || incarnation == s.proof.Incarnation && incarnation == s.newest
}

// retain notes what stays.
func (s *shelf) retain(policy Retention, stays map[string]bool) {
	chosen := policy.choose(s.snapshots)
	oldest := map[uint64]Item{} // snapshot that stays, by incarnation
	for _, i := range s.snapshots {
		if chosen[i.Name] || i == s.proof || !s.open(i.Incarnation) {
			stays[i.Name] = true
			if _, there := oldest[i.Incarnation]; !there {
				oldest[i.Incarnation] = i
			}
		}
	}
	for _, i := range s.segments {
		if from, there := oldest[i.Incarnation]; !s.open(i.Incarnation) || there && i.Last > from.Last {
			stays[i.Name] = true
		}
	}
	for _, from := range oldest {
		s.closeGaps(from, stays)
	}
	s.retainKeyrings(stays)
}

// closeGaps lets the snapshots stay that nothing else leads to, and from which the log goes on.
func (s *shelf) closeGaps(from Item, stays map[string]bool) {
	list := slices.DeleteFunc(slices.Clone(s.segments), func(i Item) bool { return i.Incarnation != from.Incarnation })
	through := Through(list, from)
	for _, i := range s.snapshots {
		if i.Incarnation != from.Incarnation || i.Last <= through {
			continue
		}
		if through = Through(list, i); through > i.Last {
			stays[i.Name] = true
		}
	}
}

func (s *shelf) retainKeyrings(stays map[string]bool) {
	var first Item // snapshot that stays
	for _, i := range s.snapshots {
		if stays[i.Name] {
			first = i
			break
		}
	}
	var inForce Item
	for _, k := range s.keyrings {
		if cmp.Or(cmp.Compare(k.Incarnation, first.Incarnation), cmp.Compare(k.Last, first.Last)) <= 0 {
			inForce = k
		}
	}
	for _, k := range s.keyrings {
		if !s.open(k.Incarnation) || cmp.Or(cmp.Compare(k.Incarnation, inForce.Incarnation), cmp.Compare(k.Last, inForce.Last)) >= 0 {
			stays[k.Name] = true
		}
	}
}

// choose returns the names of the snapshots that the policy wants, of a list in order of positions. A later incarnation goes before
// an earlier one that shipped at the same time.
func (p Retention) choose(snapshots []Item) map[string]bool {
	rules := []struct {
		count int
		of    func(time.Time) int
		seen  map[int]bool
	}{
		{p.Hourly, func(t time.Time) int { return int(t.Unix() / 3600) }, map[int]bool{}},
		{p.Daily, func(t time.Time) int { return t.Year()*1000 + t.YearDay() }, map[int]bool{}},
		{p.Weekly, func(t time.Time) int { year, week := t.ISOWeek(); return year*100 + week }, map[int]bool{}},
		{p.Monthly, func(t time.Time) int { return t.Year()*100 + int(t.Month()) }, map[int]bool{}},
	}
	chosen := map[string]bool{}
	for n, i := range slices.Backward(snapshots) {
		if len(snapshots)-n <= max(p.Minimum, 1) {
			chosen[i.Name] = true
		}
		for _, r := range rules {
			if at := r.of(i.Modified.UTC()); !r.seen[at] && len(r.seen) < r.count {
				r.seen[at] = true
				chosen[i.Name] = true
			}
		}
	}
	return chosen
}

// Pruned is what Prune did.
type Pruned struct {
	Deleted  int
	Bytes    int64
	Retained []Item // which the store's retention keeps; they go at a later time
	Left     int    // not tried, or without success, because of the error
}

// pruners is how many objects are deleted at a time.
const pruners = 8

// Prune deletes what Retain says may go: snapshots first, then segments, and keyrings at the end, so that wherever it ends each snapshot
// that is left has what it needs. It may be done again at any time. Errors: those of Bucket, after which it does not go on.
func (a *Archive) Prune(ctx context.Context, drop []Item) (done Pruned, err error) {
	var mu sync.Mutex // guards done and err
	for _, kind := range []Kind{Snapshot, Segment, Keyring} {
		var wg sync.WaitGroup
		work := make(chan Item)
		for range pruners {
			wg.Go(func() {
				for i := range work {
					e := a.bucket.Delete(ctx, a.prefix+i.Name)
					mu.Lock()
					switch {
					case e == nil:
						done.Deleted++
						done.Bytes += i.Size
					case errors.Is(e, ErrRetained):
						done.Retained = append(done.Retained, i)
					default:
						done.Left++
						if err == nil {
							err = fmt.Errorf("deleting %s in %s: %w", i.Name, a, e)
						}
					}
					mu.Unlock()
				}
			})
		}
		for _, i := range drop {
			if i.Kind != kind {
				continue
			}
			mu.Lock()
			ended := err != nil
			if ended {
				done.Left++
			}
			mu.Unlock()
			if !ended {
				work <- i
			}
		}
		close(work)
		wg.Wait()
	}
	slices.SortFunc(done.Retained, func(x, y Item) int { return cmp.Compare(x.Name, y.Name) })
	return done, err
}
