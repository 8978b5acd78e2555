package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/snapshot"
)

// item is what a list has of an object with that header.
func item(kind snapshot.Kind, incarnation, first, last uint64, at time.Time) snapshot.Item {
	name := fmt.Sprintf("v1/%x/%020d/%s/", cluster, incarnation, kind)
	switch kind {
	case snapshot.Snapshot:
		name += fmt.Sprintf("%020d-%020d", last, 3)
	case snapshot.Segment:
		name += fmt.Sprintf("%020d-%020d", first, last)
	case snapshot.Keyring:
		name += fmt.Sprintf("%020d-%08x", last, last)
	}
	i, ok := snapshot.ParseName(name)
	if !ok {
		panic(name)
	}
	i.Size, i.Modified = 10, at
	return i
}

// drawArchive draws what shippers may have left: logs of some incarnations in segments that overlap and have gaps, snapshots now
// and then, keyrings.
func drawArchive(t *rapid.T, incarnations uint64) (list []snapshot.Item) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for incarnation := uint64(1); incarnation <= incarnations; incarnation++ {
		index := rapid.Uint64Range(1, 20).Draw(t, "start")
		gap := uint64(0) // no segment comes later and reaches over it
		for range rapid.IntRange(0, 40).Draw(t, "objects") {
			at = at.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "hours")) * time.Hour / 4)
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2:
				list = append(list, item(snapshot.Snapshot, incarnation, 0, index, at))
			case 3:
				list = append(list, item(snapshot.Keyring, incarnation, 0, index, at))
			case 4: // a gap, in most cases with a snapshot after it
				index += 3
				gap = index
				if rapid.IntRange(0, 4).Draw(t, "closed") > 0 {
					list = append(list, item(snapshot.Snapshot, incarnation, 0, index, at))
				}
			default:
				first := index + 1 - min(index-gap, rapid.Uint64Range(0, 3).Draw(t, "overlap"))
				index += rapid.Uint64Range(1, 5).Draw(t, "entries")
				list = append(list, item(snapshot.Segment, incarnation, first, index, at))
			}
		}
	}
	slices.SortFunc(list, func(x, y snapshot.Item) int { return strings.Compare(x.Name, y.Name) })
	return slices.CompactFunc(list, func(x, y snapshot.Item) bool { return x.Name == y.Name })
}

func drawVerified(t *rapid.T, list []snapshot.Item) map[string]bool {
	verified := map[string]bool{"v1/gone": true}
	for _, i := range list {
		if i.Kind == snapshot.Snapshot && rapid.IntRange(0, 3).Draw(t, "verified") == 0 {
			verified[i.Name] = true
		}
	}
	return verified
}

var drawPolicy = rapid.Custom(func(t *rapid.T) snapshot.Retention {
	n := rapid.IntRange(0, 4)
	return snapshot.Retention{Hourly: n.Draw(t, "hourly"), Daily: n.Draw(t, "daily"), Weekly: n.Draw(t, "weekly"), Monthly: n.Draw(t, "monthly"), Minimum: n.Draw(t, "minimum")}
})

func has(list []snapshot.Item) map[string]bool {
	m := map[string]bool{}
	for _, i := range list {
		m[i.Name] = true
	}
	return m
}

// reached says how the plan to an index ends, and whether the log leads there.
func reached(list []snapshot.Item, incarnation, index uint64) (how string, byLog bool) {
	plan, err := snapshot.MakePlan(list, incarnation, index)
	var gap *snapshot.GapError
	switch {
	case errors.As(err, &gap):
		return "gap", true
	case err != nil:
		return err.Error(), true
	}
	return fmt.Sprint(plan.Last), len(plan.Segments) > 0
}

func TestRetain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := drawArchive(t, rapid.Uint64Range(1, 3).Draw(t, "incarnations"))
		verified, policy := drawVerified(t, list), drawPolicy.Draw(t, "policy")
		keep, drop := snapshot.Retain(list, policy, verified)
		kept := has(keep)
		if len(keep)+len(drop) != len(list) || len(kept) != len(keep) || slices.ContainsFunc(drop, func(i snapshot.Item) bool { return kept[i.Name] }) {
			t.Fatal("what stays and what goes are not what there is")
		}

		var proof snapshot.Item // the newest verified one
		newest := uint64(0)
		for _, i := range list {
			newest = max(newest, i.Incarnation)
			if i.Kind == snapshot.Snapshot && verified[i.Name] && (i.Incarnation > proof.Incarnation || i.Incarnation == proof.Incarnation && i.Last > proof.Last) {
				proof = i
			}
		}
		if proof.Name == "" && len(drop) > 0 {
			t.Fatalf("nothing was verified, and %d objects go", len(drop))
		}
		if proof.Name != "" && !kept[proof.Name] {
			t.Fatalf("the last verified snapshot goes: %s", proof.Name)
		}
		if k, err := snapshot.NewestKeyring(list); err == nil && !kept[k.Name] {
			t.Fatal("the newest keyring goes")
		}
		for _, i := range drop {
			if i.Incarnation > proof.Incarnation || i.Incarnation == proof.Incarnation && i.Incarnation != newest {
				t.Fatalf("%s goes, and no newer incarnation has a verified snapshot", i.Name)
			}
			if i.Kind != snapshot.Snapshot && i.Incarnation == proof.Incarnation && i.Last > proof.Last {
				t.Fatalf("%s goes, which is after the last verified snapshot %s", i.Name, proof.Name)
			}
		}

		// All that could be reached from the oldest snapshot that stays on can be reached.
		oldest, last := map[uint64]uint64{}, map[uint64]uint64{}
		for _, i := range list {
			last[i.Incarnation] = max(last[i.Incarnation], i.Last)
			if at, there := oldest[i.Incarnation]; i.Kind == snapshot.Snapshot && kept[i.Name] && (!there || i.Last < at) {
				oldest[i.Incarnation] = i.Last
			}
		}
		for incarnation, from := range oldest {
			for index := from; index <= last[incarnation]+1; index++ {
				before, byLog := reached(list, incarnation, index)
				if after, _ := reached(keep, incarnation, index); before != after && byLog {
					t.Fatalf("incarnation %d, index %d: %s before and %s after", incarnation, index, before, after)
				}
			}
		}
		before, _ := reached(list, 0, 0)
		if after, _ := reached(keep, 0, 0); before != after {
			t.Fatalf("as far as it goes: %s before and %s after", before, after)
		}
		// A keyring that was in force at any snapshot that stays is there.
		for _, s := range keep {
			if s.Kind != snapshot.Snapshot {
				continue
			}
			inForce := func(list []snapshot.Item) string {
				k, _ := snapshot.NewestKeyring(slices.DeleteFunc(slices.Clone(list), func(k snapshot.Item) bool {
					return k.Incarnation > s.Incarnation || k.Incarnation == s.Incarnation && k.Last > s.Last
				}))
				return k.Name
			}
			if before, after := inForce(list), inForce(keep); before != after {
				t.Fatalf("keyring at %s: %q before and %q after", s.Name, before, after)
			}
		}

		if _, more := snapshot.Retain(keep, policy, verified); len(more) > 0 {
			t.Fatalf("a second time %s goes, too", more[0].Name)
		}
		// Who wants more has more.
		wider := policy
		for _, n := range []*int{&wider.Hourly, &wider.Daily, &wider.Weekly, &wider.Monthly, &wider.Minimum} {
			*n += rapid.IntRange(0, 2).Draw(t, "more")
		}
		wide, _ := snapshot.Retain(list, wider, verified)
		for _, i := range keep {
			if !has(wide)[i.Name] {
				t.Fatalf("%s stays under %+v and not under %+v", i.Name, policy, wider)
			}
		}
	})
}

// What goes early would not have stayed later.
func TestRetainInSteps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := drawArchive(t, 1)
		policy := drawPolicy.Draw(t, "policy")
		slices.SortStableFunc(list, func(x, y snapshot.Item) int { return x.Modified.Compare(y.Modified) })
		early := list[:rapid.IntRange(0, len(list)).Draw(t, "early")]
		verified := drawVerified(t, early)
		_, gone := snapshot.Retain(early, policy, verified)
		keep, _ := snapshot.Retain(list, policy, verified)
		for _, i := range gone {
			if has(keep)[i.Name] {
				t.Fatalf("%s went, and later it would have stayed", i.Name)
			}
		}
	})
}

func TestRetainCounts(t *testing.T) {
	t.Parallel()
	// A snapshot each half hour of 100 days, the first of them of Thursday, 1 January.
	var list []snapshot.Item
	verified := map[string]bool{}
	start := time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC)
	for n := range 100 * 48 {
		list = append(list, item(snapshot.Snapshot, 1, 0, uint64(n+1), start.Add(time.Duration(n)*30*time.Minute)))
	}
	verified[list[len(list)-1].Name] = true
	snapshots := list
	when := func(policy snapshot.Retention) (times []string) {
		keep, _ := snapshot.Retain(list, policy, verified)
		for _, i := range keep {
			if i.Kind != snapshot.Snapshot {
				continue
			}
			times = append(times, i.Modified.Format("01-02T15:04"))
		}
		return times
	}
	for _, tc := range []struct {
		policy snapshot.Retention
		want   []string
	}{
		{snapshot.Retention{}, []string{"04-11T00:00"}},
		{snapshot.Retention{Minimum: 3}, []string{"04-10T23:00", "04-10T23:30", "04-11T00:00"}},
		{snapshot.Retention{Hourly: 3}, []string{"04-10T22:30", "04-10T23:30", "04-11T00:00"}},
		{snapshot.Retention{Daily: 3}, []string{"04-09T23:30", "04-10T23:30", "04-11T00:00"}},
		{snapshot.Retention{Weekly: 3}, []string{"03-29T23:30", "04-05T23:30", "04-11T00:00"}},
		{snapshot.Retention{Monthly: 9}, []string{"01-31T23:30", "02-28T23:30", "03-31T23:30", "04-11T00:00"}},
	} {
		// With a log from the first to the last, and with none.
		for _, log := range [][]snapshot.Item{nil, {item(snapshot.Segment, 1, 1, 100*48, start)}} {
			list = append(slices.Clone(log), snapshots...)
			if got := when(tc.policy); !slices.Equal(got, tc.want) {
				t.Errorf("%+v keeps %d: %.200q, want %q", tc.policy, len(got), fmt.Sprint(got), tc.want)
			}
		}
	}
}

// stubborn keeps some objects, and fails at others.
type stubborn struct {
	*memory
	mu            sync.Mutex
	retains, fail string
	deleted       []string
}

func (s *stubborn) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.retains != "" && strings.Contains(name, s.retains):
		return fmt.Errorf("%w until tomorrow", snapshot.ErrRetained)
	case s.fail != "" && strings.Contains(name, s.fail):
		return errStore
	}
	s.deleted = append(s.deleted, name)
	return s.memory.Delete(ctx, name)
}

func TestPrune(t *testing.T) {
	t.Parallel()
	store := &stubborn{memory: newMemory(), retains: "snapshot/00000000000000000010-"}
	a := snapshot.New(store, "p", t.TempDir())
	newest := snapshot.Item{}
	for i := range uint64(5) {
		newest = putSnapshot(t, a, 1, 10*i, wantState("empty", 1, 10*i))
		putSegment(t, a, 1, 10*i+1, 10*i+10)
		must[snapshot.Item](t)(a.PutKeyring(ctx, head(1, 0, 10*i), fmt.Append(nil, "keyring ", i)))
	}
	other := [16]byte{9}
	h := head(1, 1, 10)
	h.Cluster = other
	must[snapshot.Item](t)(a.PutSegment(ctx, h, box(1), entriesOf(1, 10), nil))

	list := must[[]snapshot.Item](t)(a.List(ctx, cluster))
	verified := map[string]bool{newest.Name: true}
	_, drop := snapshot.Retain(list, snapshot.Retention{Minimum: 2}, verified)
	if len(drop) != 9 {
		t.Fatalf("%d go", len(drop))
	}
	store.fail = "/log/"
	done, err := a.Prune(ctx, drop)
	if !errors.Is(err, snapshot.ErrUnavailable) || done.Deleted != 2 || len(done.Retained) != 1 || done.Left != 6 {
		t.Errorf("%+v, %v", done, err)
	}
	for _, name := range store.deleted {
		if !strings.Contains(name, "/snapshot/") {
			t.Errorf("%s went before the snapshots were gone", name)
		}
	}
	store.fail = ""
	list = must[[]snapshot.Item](t)(a.List(ctx, cluster))
	_, drop = snapshot.Retain(list, snapshot.Retention{Minimum: 2}, verified)
	done, err = a.Prune(ctx, drop)
	if err != nil || done.Deleted != 6 || len(done.Retained) != 1 || done.Left != 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if state, last := replayed(t, a); last != 50 || state != wantState("empty", 1, 50) {
		t.Errorf("to %d: %s", last, state)
	}
	if left := must[[]snapshot.Item](t)(a.List(ctx, other)); len(left) != 1 {
		t.Error("another cluster's object went")
	}
	if done, err := a.Prune(ctx, drop); err != nil || done.Left != 0 {
		t.Errorf("again: %+v, %v", done, err)
	}
}
