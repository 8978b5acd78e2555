package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/snapshot"
)

var (
	ctx     = context.Background()
	cluster = [16]byte{0xc1, 0x05}
)

func head(incarnation, first, last uint64) snapshot.Header {
	return snapshot.Header{Cluster: cluster, Incarnation: incarnation, First: first, Last: last, Term: 3, Level: 2, Peer: "nexus-1", Created: time.Unix(1700000000, 0).UTC()}
}

func putSnapshot(t testing.TB, a *snapshot.Archive, incarnation, last uint64, state string) snapshot.Item {
	t.Helper()
	item, _, err := a.PutSnapshot(ctx, head(incarnation, 0, last), box(1), func(w io.Writer) error {
		_, err := io.WriteString(w, state)
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// putSegment stores the entries of a range; those that divide by 7 have no commands.
func putSegment(t testing.TB, a *snapshot.Archive, incarnation, first, last uint64) snapshot.Item {
	t.Helper()
	return must[snapshot.Item](t)(a.PutSegment(ctx, head(incarnation, first, last), box(1), entriesOf(first, last), nil))
}

func entriesOf(first, last uint64) (list []snapshot.LogEntry) {
	for i := first; i <= last; i++ {
		if i%7 != 0 {
			list = append(list, snapshot.LogEntry{Index: i, Term: 3, Data: fmt.Append(nil, "c", i)})
		}
	}
	return list
}

func wantState(state string, first, last uint64) string {
	for _, e := range entriesOf(first, last) {
		state += fmt.Sprintf(" %d:%s", e.Index, e.Data)
	}
	return state
}

// However the log was cut into segments, by however many shippers, with whatever overlaps: the state after each index is the one
// that the log gives.
func TestReplayOfAnySegmentation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		a := snapshot.New(newMemory(), "some/where", t.TempDir())
		const last = 60
		for range rapid.IntRange(1, 3).Draw(rt, "shippers") {
			for at := uint64(1); at <= last; {
				end := min(last, at+uint64(rapid.IntRange(0, 20).Draw(rt, "length")))
				_, err := a.PutSegment(ctx, head(1, at, end), box(1), entriesOf(at, end), nil)
				if err != nil && !errors.Is(err, snapshot.ErrExists) {
					rt.Fatal(err)
				}
				at = end + 1
			}
		}
		putSnapshot(t, a, 1, 0, "empty")
		middle := rapid.Uint64Range(1, last).Draw(rt, "snapshot")
		putSnapshot(t, a, 1, middle, wantState("empty", 1, middle))
		list, err := a.List(ctx, cluster)
		if err != nil {
			rt.Fatal(err)
		}
		index := rapid.Uint64Range(1, last).Draw(rt, "index")
		plan, err := snapshot.MakePlan(list, 0, index)
		if err != nil || plan.Last != index {
			rt.Fatalf("%+v: %v", plan, err)
		}
		if want := uint64(0); index >= middle && plan.Snapshot.Last == want {
			rt.Fatal("it does not begin with the newest snapshot before the index")
		}
		var s sum
		if _, _, err := a.Replay(ctx, plan, box(1), &s, nil); err != nil {
			rt.Fatal(err)
		}
		if want := wantState("empty", 1, index); s.state != want {
			rt.Fatalf("state %q, want %q", s.state, want)
		}
		all, err := snapshot.MakePlan(list, 0, 0)
		if err != nil || all.Last != last {
			rt.Fatalf("as far as it goes: %+v, %v", all, err)
		}
	})
}

func TestGaps(t *testing.T) {
	t.Parallel()
	a := snapshot.New(newMemory(), "", t.TempDir())
	list := func() []snapshot.Item { return must[[]snapshot.Item](t)(a.List(ctx, cluster)) }
	if _, err := snapshot.MakePlan(list(), 0, 0); !errors.Is(err, snapshot.ErrNothing) {
		t.Errorf("an empty archive: %v", err)
	}
	putSegment(t, a, 1, 1, 10)
	if _, err := snapshot.MakePlan(list(), 1, 5); !errors.Is(err, snapshot.ErrNothing) {
		t.Errorf("no snapshot: %v", err)
	}
	putSnapshot(t, a, 1, 10, "s")
	putSegment(t, a, 1, 11, 20)
	putSegment(t, a, 1, 25, 30)
	if _, err := snapshot.NewestKeyring(list()); !errors.Is(err, snapshot.ErrNoKeyring) {
		t.Errorf("no keyring: %v", err)
	}
	for index, want := range map[uint64]snapshot.GapError{0: {20, 25, 25}, 22: {20, 25, 25}, 28: {20, 28, 25}, 40: {20, 40, 25}} {
		var gap *snapshot.GapError
		if _, err := snapshot.MakePlan(list(), 1, index); !errors.As(err, &gap) || *gap != want {
			t.Errorf("to %d: %v, want %+v", index, err, want)
		}
	}
	if plan, err := snapshot.MakePlan(list(), 1, 20); err != nil || len(plan.Segments) != 1 {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err := snapshot.MakePlan(list(), 1, 5); !errors.Is(err, snapshot.ErrNothing) {
		t.Errorf("to before the first snapshot: %v", err)
	}
	// A snapshot closes the gap; another incarnation does not.
	putSnapshot(t, a, 2, 26, "other")
	if plan, err := snapshot.MakePlan(list(), 0, 0); err != nil || plan.Snapshot.Incarnation != 2 || plan.Last != 26 || len(plan.Segments) > 0 {
		t.Errorf("%+v, %v", plan, err)
	}
	putSnapshot(t, a, 1, 24, "s")
	if plan, err := snapshot.MakePlan(list(), 1, 0); err != nil || plan.Last != 30 {
		t.Errorf("%+v, %v", plan, err)
	}
}

// Each byte of each object counts, and so do its place and its key.
func TestDamagedObjects(t *testing.T) {
	t.Parallel()
	m := newMemory()
	a := snapshot.New(m, "p", t.TempDir())
	items := []snapshot.Item{
		putSnapshot(t, a, 1, 10, "the state"), putSegment(t, a, 1, 11, 20),
		must[snapshot.Item](t)(a.PutKeyring(ctx, head(1, 0, 10), []byte("sealed keyring"))),
		must[snapshot.Item](t)(putAudit(a, box(1), 1, "nexus-1", 1, 9)),
	}
	read := func(item snapshot.Item, key box) error {
		switch item.Kind {
		case snapshot.Snapshot:
			return a.ReadSnapshot(ctx, item, key, func(h snapshot.Header, r io.Reader) error {
				b, err := io.ReadAll(r)
				if err == nil && (string(b) != "the state" || h.Peer != "nexus-1") {
					t.Errorf("read %q", b)
				}
				return err
			})
		case snapshot.Segment:
			n := 0
			_, err := a.ReadSegment(ctx, item, key, func(snapshot.LogEntry) error { n++; return nil })
			if err == nil && n != len(entriesOf(11, 20)) {
				t.Errorf("%d entries", n)
			}
			return err
		case snapshot.Audit:
			got, err := readAudit(a, item, key)
			if err == nil && got != "records 1 to 9" {
				t.Errorf("read %q", got)
			}
			return err
		}
		_, b, err := a.ReadKeyring(ctx, item)
		if err == nil && string(b) != "sealed keyring" {
			t.Errorf("read %q", b)
		}
		return err
	}
	known := func(err error) bool {
		return errors.Is(err, snapshot.ErrDamaged) || errors.Is(err, snapshot.ErrFormat) || errors.Is(err, snapshot.ErrForeign)
	}
	for _, item := range items {
		if err := read(item, 1); err != nil {
			t.Fatal(err)
		}
		if err := read(item, 2); item.Kind != snapshot.Keyring && !errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%s under another key: %v", item.Kind, err)
		}
		good := m.objects["p/"+item.Name]
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 4
			m.objects["p/"+item.Name] = bad
			if err := read(item, 1); !known(err) {
				t.Errorf("%s with byte %d changed: %v", item.Kind, i, err)
			}
			m.objects["p/"+item.Name] = good[:i]
			if err := read(item, 1); !known(err) {
				t.Errorf("%s cut at byte %d: %v", item.Kind, i, err)
			}
		}
		m.objects["p/"+item.Name] = append(bytes.Clone(good), 0)
		if err := read(item, 1); !known(err) {
			t.Errorf("%s with a byte more: %v", item.Kind, err)
		}
		m.objects["p/"+item.Name] = good
	}
	// An object in the place of another, of the same cluster and key.
	other := putSegment(t, a, 1, 21, 30)
	m.objects["p/"+other.Name] = m.objects["p/"+items[1].Name]
	if err := read(other, 1); !errors.Is(err, snapshot.ErrForeign) {
		t.Errorf("a segment in the place of another: %v", err)
	}
	if _, err := a.Head(ctx, snapshot.Item{Object: snapshot.Object{Name: "v1/none"}}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
}

// What was once written is read for good, and names are those of the format.
func TestNames(t *testing.T) {
	t.Parallel()
	a := snapshot.New(newMemory(), "", t.TempDir())
	for _, item := range []snapshot.Item{putSnapshot(t, a, 7, 10, ""), putSegment(t, a, 7, 11, 20), must[snapshot.Item](t)(a.PutKeyring(ctx, head(7, 0, 12), []byte("k")))} {
		item.Size = 0
		if again, ok := snapshot.ParseName(item.Name); !ok || again != item {
			t.Errorf("%+v, %+v", again, item)
		}
	}
	list := must[[]snapshot.Item](t)(a.List(ctx, cluster))
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	want := []string{
		"v1/c1050000000000000000000000000000/00000000000000000007/keyring/00000000000000000012-8254c329",
		"v1/c1050000000000000000000000000000/00000000000000000007/log/00000000000000000011-00000000000000000020",
		"v1/c1050000000000000000000000000000/00000000000000000007/snapshot/00000000000000000010-00000000000000000003",
	}
	if !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	if _, err := a.PutSegment(ctx, head(7, 11, 20), box(1), entriesOf(11, 20), nil); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	for _, bad := range []snapshot.Header{head(0, 1, 2), head(1, 3, 2), head(1, 0, 2)} {
		if _, err := a.PutSegment(ctx, bad, box(1), nil, nil); !errors.Is(err, snapshot.ErrFormat) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := a.PutSegment(ctx, head(1, 5, 9), box(1), entriesOf(4, 6), nil); err == nil {
		t.Error("a segment with an entry from before it")
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("v1/c1050000000000000000000000000000/00000000000000000007/log/00000000000000000011-00000000000000000020")
	f.Add("v1/c1050000000000000000000000000000/00000000000000000007/keyring/00000000000000000012-8254c329")
	f.Add("v1/c1050000000000000000000000000000/00000000000000000007/claim")
	f.Add("v1/c1050000000000000000000000000000/00000000000000000007/audit/nexus-1/00000000000000000021-00000000000000000030")
	f.Fuzz(func(t *testing.T, name string) {
		if item, ok := snapshot.ParseName(name); ok && item.Name != name {
			t.Fatal(item)
		}
	})
}
