package snapshot_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
)

// log is a Source: a growing log, of which old entries can be compacted.
type log struct {
	mu      sync.Mutex
	last    uint64
	first   uint64 // what comes before is compacted
	keyring string
}

func (l *log) grow(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last += n
}

func (l *log) committed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *log) Entries(after uint64, _ int) ([]snapshot.LogEntry, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after >= l.last {
		return nil, after, nil
	}
	if after+1 < l.first {
		return nil, after, snapshot.ErrCompacted
	}
	through := min(l.last, after+5)
	return entriesOf(after+1, through), through, nil
}

func (l *log) State() (snapshot.Header, func(io.Writer) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last
	return snapshot.Header{Last: last, Term: 3, Level: 2}, func(w io.Writer) error {
		_, err := io.WriteString(w, wantState("empty", 1, last))
		return err
	}
}

func (l *log) Keyring() ([]byte, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []byte(l.keyring), l.last
}

// unreliable is a bucket that fails as stores do: nothing was done, or it was and nobody heard of it.
type unreliable struct {
	*memory
	mu    sync.Mutex
	every int // of so many calls one fails; 0: none, 1: all, down: all, and none is done
}

const down = -1

var errStore = fmt.Errorf("%w: 503 Slow Down", snapshot.ErrUnavailable)

func (u *unreliable) fails(per int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.every = per
}

func (u *unreliable) trip() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.every == down || u.every > 0 && rand.IntN(u.every) == 0
}

func (u *unreliable) persists() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.every != down && rand.IntN(2) == 0
}

func (u *unreliable) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	if u.trip() {
		if u.persists() {
			_ = u.memory.Create(ctx, name, size, body) // persisted all the same
		}
		return errStore
	}
	return u.memory.Create(ctx, name, size, body)
}

func shipper(a *snapshot.Archive, l *log, more func(*snapshot.ShipperConfig)) *snapshot.Shipper {
	cfg := snapshot.ShipperConfig{Archive: a, Source: l, Commits: snapshot.NewCommits(l.committed, time.Now), Cipher: box(1), Cluster: cluster, Incarnation: 1, Peer: "nexus-1"}
	if more != nil {
		more(&cfg)
	}
	return snapshot.NewShipper(cfg)
}

// replayed is the state to which the archive leads.
func replayed(t *testing.T, a *snapshot.Archive) (state string, last uint64) {
	t.Helper()
	list := must[[]snapshot.Item](t)(a.List(ctx, cluster))
	plan, err := snapshot.MakePlan(list, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var s sum
	if _, _, err := a.Replay(ctx, plan, box(1), &s, nil); err != nil {
		t.Fatal(err)
	}
	return s.state, plan.Last
}

// Two peers ship at once, are stopped and follow one another, the store fails, the log is compacted, keyrings change: what is in the
// archive leads to the state of the log, all of it within a second once the store works.
func TestShippers(t *testing.T) {
	t.Parallel()
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			store := &unreliable{memory: newMemory()}
			a := snapshot.New(store, "p", t.TempDir())
			l := &log{keyring: "first"}
			store.fails(3)
			stop := func() {}
			compacted := false
			for round := range 6 {
				run, cancel := context.WithCancel(t.Context())
				for range 1 + rand.IntN(2) {
					go shipper(a, l, func(c *snapshot.ShipperConfig) { c.SnapshotEvery = 20 * time.Second }).Run(run)
				}
				for range 10 + rand.IntN(20) {
					l.grow(rand.Uint64N(12))
					time.Sleep(rand.N(2 * time.Second))
				}
				if rand.IntN(2) == 0 {
					l.mu.Lock()
					l.keyring = fmt.Sprint("keyring ", round)
					l.mu.Unlock()
				}
				if rand.IntN(8) == 0 { // an outage, and what was not shipped is compacted meanwhile
					store.fails(1)
					l.grow(30)
					time.Sleep(5 * time.Second)
					l.mu.Lock()
					l.first, compacted = l.last-3, true
					l.mu.Unlock()
					store.fails(3)
				}
				stop()
				stop = cancel
			}
			l.grow(7)
			store.fails(0)
			time.Sleep(2 * time.Minute) // longer than any pause after an error
			l.grow(1)
			time.Sleep(1100 * time.Millisecond)
			synctest.Wait()
			stop()
			synctest.Wait()
			state, last := replayed(t, a)
			if last != l.last || state != wantState("empty", 1, l.last) {
				t.Errorf("the archive leads to index %d, the log to %d", last, l.last)
			}
			list := must[[]snapshot.Item](t)(a.List(ctx, cluster))
			first := slices.IndexFunc(list, func(i snapshot.Item) bool { return i.Kind == snapshot.Snapshot })
			for index := list[first].Last; index <= last && !compacted; index++ {
				if _, err := snapshot.MakePlan(list, 1, index); err != nil {
					t.Fatalf("no way back to index %d, though the log was there all the time: %v", index, err)
				}
			}
			item, err := snapshot.NewestKeyring(list)
			if err != nil {
				t.Fatal(err)
			}
			if _, b, err := a.ReadKeyring(ctx, item); err != nil || string(b) != l.keyring {
				t.Errorf("keyring %q, %v; it is %q", b, err, l.keyring)
			}
		})
	}
}

// What a shipper says of itself: how far behind it is while the store is down, and that it has caught up.
func TestShippingStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &unreliable{memory: newMemory()}
		a := snapshot.New(store, "", t.TempDir())
		l := &log{keyring: "k"}
		l.grow(3)
		commits := snapshot.NewCommits(l.committed, time.Now)
		s := shipper(a, l, func(c *snapshot.ShipperConfig) { c.Commits = commits })
		run, cancel := context.WithCancel(t.Context())
		defer cancel()
		go commits.Run(run)
		go s.Run(run)
		time.Sleep(3 * time.Second)
		if st := s.Status(); !st.Active || st.Shipped != 3 || st.Behind != 0 || st.Error != "" || st.Snapshot.Last != 3 {
			t.Errorf("%+v", st)
		}
		store.fails(down)
		time.Sleep(time.Hour)
		if st := s.Status(); st.Behind != 0 {
			t.Errorf("nothing has changed, and it is behind: %+v", st)
		}
		l.grow(4)
		time.Sleep(10 * time.Second)
		if st := s.Status(); st.Shipped != 3 || st.Behind < 10*time.Second || st.Behind > 11*time.Second || st.Error == "" {
			t.Errorf("in an outage: %+v", st)
		}
		// The next leader knows how old what is missing is, once it knows what is missing.
		next := shipper(a, l, func(c *snapshot.ShipperConfig) { c.Commits = commits })
		running, end := context.WithCancel(run)
		go next.Run(running)
		time.Sleep(500 * time.Millisecond)
		time.Sleep(time.Minute)
		if st := next.Status(); st.Shipped != 3 || st.Behind < 70*time.Second || st.Behind > 72*time.Second {
			t.Errorf("after a change of leaders: %+v", st)
		}
		end()
		store.fails(0)
		time.Sleep(time.Minute)
		if st := s.Status(); st.Shipped != 7 || st.Behind != 0 || st.Error != "" {
			t.Errorf("after it: %+v", st)
		}
		if _, last := replayed(t, a); last != 7 {
			t.Errorf("the archive leads to %d", last)
		}
		time.Sleep(2 * time.Hour)
		if st := s.Status(); st.Snapshot.Last != 7 {
			t.Errorf("no snapshot was made on schedule: %+v", st)
		}
		objects := len(store.objects)
		time.Sleep(5 * time.Hour)
		if now := len(store.objects); now != objects {
			t.Errorf("%d objects were made while nothing happened", now-objects)
		}
		cancel()
		synctest.Wait()
		if s.Status().Active {
			t.Error("it is active after its end")
		}
	})
}

// Nothing goes into the archive whose key is not there before it.
func TestKeyringGoesFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		a := snapshot.New(&keyringFirst{store, t}, "", t.TempDir())
		l := &log{keyring: "k"}
		l.grow(3)
		run, cancel := context.WithCancel(t.Context())
		defer cancel()
		go shipper(a, l, nil).Run(run)
		for range 5 {
			l.grow(2)
			time.Sleep(2 * time.Second)
		}
	})
}

type keyringFirst struct {
	*memory
	t *testing.T
}

func (k *keyringFirst) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	if item, ok := snapshot.ParseName(name); ok && item.Kind != snapshot.Keyring {
		if len(names(k.t, k.memory)) == 0 {
			k.t.Errorf("%s came before the keyring", name)
		}
	}
	return k.memory.Create(ctx, name, size, body)
}

func names(t testing.TB, m *memory) (list []string) {
	for o, err := range m.List(ctx, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if item, ok := snapshot.ParseName(o.Name); ok && item.Kind == snapshot.Keyring {
			list = append(list, o.Name)
		}
	}
	return list
}
