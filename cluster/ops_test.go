package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// load proposes unique commands at all peers until stop; it sorts them by what
// their proposers were told.
type load struct {
	wg   sync.WaitGroup
	stop chan struct{}

	mu                 sync.Mutex
	acked, lost, never map[string]bool
}

func startLoad(c *testCluster, writers int) *load {
	l := &load{stop: make(chan struct{}), acked: map[string]bool{}, lost: map[string]bool{}, never: map[string]bool{}}
	var nodes []*Node
	for _, p := range c.peers {
		nodes = append(nodes, c.nodes[p.ID])
	}
	for w := range writers {
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			n := nodes[w%len(nodes)]
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				cmd := fmt.Sprintf("w%d-%d", w, i)
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				_, err := n.Propose(ctx, []byte(cmd))
				cancel()
				l.mu.Lock()
				switch {
				case err == nil:
					l.acked[cmd] = true
				case errors.Is(err, ErrUnknownOutcome):
					l.lost[cmd] = true
				case errors.Is(err, ErrNoLeader), errors.Is(err, ErrNotReady), errors.Is(err, ErrStopped), errors.Is(err, ErrOverloaded):
					l.never[cmd] = true
				default:
					panic(err)
				}
				l.mu.Unlock()
				if errors.Is(err, ErrStopped) {
					return
				}
			}
		}()
	}
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// check compares what was said with what happened.
func (l *load) check(t *testing.T, applied []string) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	seen := map[string]bool{}
	for _, a := range applied {
		if seen[a] {
			t.Errorf("%s was applied twice", a)
		}
		seen[a] = true
		if l.never[a] {
			t.Errorf("%s was applied, but its proposer was told that it was not proposed", a)
		}
	}
	for a := range l.acked {
		if !seen[a] {
			t.Errorf("%s was acknowledged and is not there", a)
		}
	}
	t.Logf("%d acknowledged, %d unknown, %d certainly not proposed, %d applied", len(l.acked), len(l.lost), len(l.never), len(applied))
}

func TestAcknowledgementsOverLeaderShutdowns(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leader()
	l := startLoad(c, 12)
	for range 2 {
		at := l.count()
		eventually(t, "progress", func() bool { return l.count() > at+100 })
		old := c.leader()
		c.stop(old.cfg.ID)
		at = l.count()
		eventually(t, "progress without the old leader", func() bool { return l.count() > at+100 })
		c.start(old.cfg.ID)
		c.leader()
	}
	eventually(t, "the end of the load", func() bool { return l.count() > 500 })
	l.wait(t)
	l.check(t, c.same())
}

func (l *load) wait(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	l.stop = make(chan struct{})
}

func TestAcknowledgementsOverPartitions(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leader()
	l := startLoad(c, 12)
	for range 3 {
		at := l.count()
		eventually(t, "progress", func() bool { return l.count() > at+50 })
		old := c.leader()
		for _, p := range c.peers {
			if p.ID != old.cfg.ID {
				c.net.cut(old.cfg.ID, p.ID)
			}
		}
		at = l.count()
		eventually(t, "progress on the majority's side", func() bool { return l.count() > at+50 })
		c.net.heal()
		c.leader()
	}
	l.wait(t)
	c.leader()
	c.propose(c.nodes["n1"], "last")
	l.check(t, c.same())
}

// Whoever was acknowledged before a read began is seen by it, on every peer,
// while leadership moves.
func TestReadsAreLinearizable(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leader()
	var acked atomic.Uint64
	var rounds atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				r, err := c.nodes[c.peers[rand.IntN(3)].ID].Propose(context.Background(), fmt.Appendf(nil, "%d-%d", w, i))
				if err != nil {
					continue
				}
				for {
					was := acked.Load()
					if r.Index <= was || acked.CompareAndSwap(was, r.Index) {
						break
					}
				}
			}
		}()
	}
	for range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := c.peers[rand.IntN(3)].ID
				must := acked.Load()
				index, err := c.nodes[id].WaitRead(context.Background())
				if err != nil {
					continue
				}
				rounds.Add(1)
				sm := c.sms[id]
				sm.mu.Lock()
				saw := sm.index
				sm.mu.Unlock()
				if saw < must || index < must || saw < index {
					t.Errorf("%s: %d was acknowledged before the read, index %d, state at %d", id, must, index, saw)
				}
			}
		}()
	}
	for range 4 {
		at := rounds.Load()
		eventually(t, "reads", func() bool { return rounds.Load() > at+200 })
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = c.leader().TransferLeadership(ctx, "")
		cancel()
	}
	close(stop)
	wg.Wait()
}

// A leader that does not know yet that it was deposed must not answer.
func TestStaleLeaderCannotRead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		if id == "n1" { // believes in itself for long
			cfg.Timing = Timing{Heartbeat: 10 * time.Second, Election: 10 * time.Second, Lease: 10 * time.Second}
		}
	}
	c.startAll()
	eventually(t, "n1 leads", func() bool {
		l := c.leader()
		if l.cfg.ID == "n1" {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.TransferLeadership(ctx, "n1")
		return false
	})
	if _, err := c.nodes["n1"].WaitRead(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.net.cut("n1", "n2")
	c.net.cut("n1", "n3")
	eventually(t, "another leader", func() bool {
		return c.nodes["n2"].Status().State == Leads || c.nodes["n3"].Status().State == Leads
	})
	r := c.propose(c.nodes["n2"], "newer")
	if s := c.nodes["n1"].Status(); s.State != Leads {
		t.Fatalf("the old leader found out too early: %+v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if index, err := c.nodes["n1"].WaitRead(ctx); !errors.Is(err, ErrNotReady) {
		t.Errorf("the deposed leader answered %d (%v), acknowledged was %d", index, err, r.Index)
	}
}

func TestLearnersDoNotCount(t *testing.T) {
	t.Parallel()
	conf := raft.Configuration{Servers: []raft.Server{
		{ID: "a", Suffrage: raft.Voter}, {ID: "b", Suffrage: raft.Voter}, {ID: "c", Suffrage: raft.Voter},
		{ID: "l", Suffrage: raft.Nonvoter}, {ID: "s", Suffrage: raft.Staging},
	}}
	v := newTally(conf, "a")
	if v.won() || len(v.waiting) != 2 {
		t.Fatalf("%+v", v)
	}
	v.count("l", true)
	v.count("s", true)
	v.count("a", true) // oneself only once
	v.count("x", true)
	if v.won() {
		t.Error("won without a voter")
	}
	v.count("b", false)
	v.count("b", true) // only the first answer counts
	if v.won() || v.lost() {
		t.Errorf("after one no: %+v", v)
	}
	v.count("c", true)
	if !v.won() {
		t.Error("two of three is a majority")
	}
	if w := newTally(conf, "l"); w.yes != 0 || w.need != 2 {
		t.Errorf("a learner's own tally: %+v", w)
	}
	w := newTally(conf, "a")
	w.count("b", false)
	w.count("c", false)
	if !w.lost() {
		t.Error("two of three said no")
	}
}

// Without the barrier this would take the commit timeout.
func TestIdleFollowerCatchesUpAtOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Commit = time.Hour }
	c.startAll()
	l, f := c.leader(), c.follower()
	for i := range 5 {
		c.propose(l, fmt.Sprint(i))
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if _, err := f.WaitRead(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if !c.sms[f.cfg.ID].has(fmt.Sprint(i)) {
			t.Fatal("read before it was applied")
		}
	}
}

func TestSnapshotsAndCatchingUp(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.SnapshotBytes = 64 << 10 }
	c.startAll()
	l := c.leader()
	f := c.follower()
	c.propose(l, "first")
	c.stop(f.cfg.ID)
	pad := string(bytes.Repeat([]byte("x"), 2048))
	for i := range 400 {
		c.propose(l, fmt.Sprint(i, pad))
	}
	eventually(t, "a snapshot and a short log", func() bool {
		first, err := l.store.FirstIndex()
		return err == nil && first > 20 && l.Status().SnapshotIndex > 20
	})
	c.start(f.cfg.ID)
	if got := c.same(); len(got) != 401 {
		t.Errorf("%d commands", len(got))
	}
	if s := c.nodes[f.cfg.ID]; s.Applied() != l.Applied() {
		t.Errorf("applied %d, the leader %d", s.Applied(), l.Applied())
	}
	c.propose(c.nodes[f.cfg.ID], "second")
	before := c.same()
	c.stopAll()
	c.startAll()
	for id, n := range c.nodes {
		if _, err := n.WaitRead(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := c.sms[id].all(); len(got) != len(before) {
			t.Errorf("%s has %d commands after a restart, not %d", id, len(got), len(before))
		}
	}
	// A damaged snapshot is named, not skipped for an older one.
	c.stop("n1")
	list, err := filepath.Glob(filepath.Join(c.dir, "n1", "snapshots", "*", "state.bin"))
	must(t, err)
	for _, p := range list {
		b, err := os.ReadFile(p)
		must(t, err)
		b[len(b)-1] ^= 1
		must(t, os.WriteFile(p, b, 0o600))
	}
	if err := c.tryStart("n1"); !errors.Is(err, ErrCorruptSnapshot) {
		t.Errorf("damaged snapshot: %v", err)
	}
}

// A peer whose log file is gone has forgotten its term and vote, whatever
// snapshots are left: it must not vote again.
func TestLostLogBesideASnapshot(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "only")
	must(t, l.snapshot(l.raft.Load()))
	id := l.cfg.ID
	c.stop(id)
	must(t, os.Remove(filepath.Join(c.dir, id, logFile)))
	if err := c.tryStart(id); !errors.Is(err, ErrLostData) {
		t.Errorf("a peer started without its term and vote: %v", err)
	}
}

// What a read index is translated to must be reachable for a peer that was
// restored from a snapshot that ends in a barrier.
func TestReadAfterASnapshotThatEndsInABarrier(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "only")
	r := l.raft.Load()
	for range 3 {
		must(t, r.Barrier(time.Second).Error())
	}
	must(t, l.snapshot(r))
	if s := l.Status(); s.SnapshotIndex <= s.AppliedIndex {
		t.Fatalf("the snapshot does not end in a barrier: %+v", s)
	}
	id := l.cfg.ID
	c.stop(id)
	c.start(id)
	c.leader()
	for at, n := range c.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if _, err := n.WaitRead(ctx); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		cancel()
		if n.Applied() != c.nodes[id].Applied() {
			t.Errorf("%s applied %d, %s %d", at, n.Applied(), id, c.nodes[id].Applied())
		}
	}
}

func TestCorruptEntryAtStart(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	n := c.leader()
	for i := range 10 {
		c.propose(n, fmt.Sprintf("command-%d", i))
	}
	c.stopAll()
	path := filepath.Join(c.dir, "n1", logFile)
	db, err := bbolt.Open(path, 0o600, nil)
	must(t, err)
	var key []byte
	must(t, db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("logs"))
		k, v := b.Cursor().Last()
		key = bytes.Clone(k)
		v = bytes.Clone(v)
		i := bytes.Index(v, []byte("command-9"))
		v[i] ^= 0x20
		return b.Put(key, v)
	}))
	must(t, db.Close())
	var corrupt *ErrCorruptLog
	if err := c.tryStart("n1"); !errors.As(err, &corrupt) || corrupt.File != path || corrupt.Index != uint64(key[7]) {
		t.Errorf("flipped bit: %v", err)
	}
	db, err = bbolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		key[7]--
		return tx.Bucket([]byte("logs")).Delete(key)
	}))
	must(t, db.Close())
	if err := c.tryStart("n1"); !errors.As(err, &corrupt) || corrupt.Index != uint64(key[7]) {
		t.Errorf("missing entry: %v", err)
	}
}

// A checksum that does not match while running stops the peer, quietly.
func TestCorruptEntryAtRunTimeStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = reluctant
	c.startAll()
	l, f := c.leader(), c.follower()
	c.stop(f.cfg.ID)
	bad := c.propose(l, "bad").Index
	for i := range logCacheSize + 10 {
		c.propose(l, fmt.Sprint(i))
	}
	var e raft.Log
	must(t, l.store.bolt.GetLog(bad, &e))
	e.Data = append([]byte(nil), e.Data...)
	e.Data[len(e.Data)-1] ^= 1
	must(t, l.store.bolt.StoreLog(&e))
	c.start(f.cfg.ID) // needs the entry
	select {
	case <-l.Done():
	case <-time.After(time.Minute): // the library asks one that was silent for long after ten seconds only
		t.Fatal("the peer goes on with a damaged log")
	}
	var corrupt *ErrCorruptLog
	if err := l.Err(); !errors.As(err, &corrupt) || corrupt.Index != bad {
		t.Errorf("it stopped because of: %v", err)
	}
	delete(c.nodes, l.cfg.ID)
	c.leader()
	c.propose(f.fresh(c), "others go on")
	if got := c.same(); got[0] != "bad" {
		t.Errorf("the damage spread: %q", got[0])
	}
}

func (n *Node) fresh(c *testCluster) *Node { return c.nodes[n.cfg.ID] }

// A command that the state machine does not know is never acknowledged.
func TestStateMachineThatCannotGoOnStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "fine")
	for _, sm := range c.sms {
		sm.mu.Lock()
		sm.refuse = "poison"
		sm.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := l.Propose(ctx, []byte("poison")); !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("the proposer was told: %v", err)
	}
	// The second leader meets the entry, too, and the last peer may then never
	// learn that it was committed.
	stopped := func() map[string]*Node {
		m := map[string]*Node{}
		for id, n := range c.nodes {
			select {
			case <-n.Done():
				m[id] = n
			default:
			}
		}
		return m
	}
	eventually(t, "two peers to stop", func() bool { return len(stopped()) >= 2 })
	for id, n := range stopped() {
		if n.Err() == nil {
			t.Errorf("%s stopped without a reason", id)
		}
		if _, err := n.Propose(ctx, []byte("x")); !errors.Is(err, ErrStopped) {
			t.Errorf("propose at a stopped peer: %v", err)
		}
		if _, err := n.WaitRead(ctx); !errors.Is(err, ErrStopped) {
			t.Errorf("read at a stopped peer: %v", err)
		}
		if s := n.Status(); s.State != Stopped || s.Problem == nil {
			t.Errorf("%+v", s)
		}
	}
	for id, sm := range c.sms {
		if got := sm.all(); len(got) != 1 {
			t.Errorf("%s applied %q", id, got)
		}
	}
}

// A leader whose disk hangs goes on sending heartbeats. It must stop all the
// same, in a bounded time, so that another leads.
func TestHangingDiskStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	var hung atomic.Pointer[string]
	release := make(chan struct{})
	c.tune = func(id string, cfg *Config) {
		cfg.Timing.Disk = time.Second
		cfg.beforeStore = func() error {
			if at := hung.Load(); at != nil && *at == id {
				<-release
			}
			return nil
		}
	}
	c.startAll()
	l := c.leader()
	c.propose(l, "before")
	hung.Store(&l.cfg.ID)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := l.Propose(ctx, []byte("during")); !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("the proposer was told: %v", err)
	}
	select {
	case <-l.Done():
	case <-ctx.Done():
		t.Fatal("the peer waits for its disk for ever")
	}
	if !errors.Is(l.Err(), ErrDiskHangs) {
		t.Errorf("it stopped because of %v", l.Err())
	}
	delete(c.nodes, l.cfg.ID)
	c.propose(c.leader(), "after")
	if err := c.tryStart(l.cfg.ID); !errors.Is(err, ErrDirInUse) {
		t.Errorf("a second life began while the first waits for the disk: %v", err)
	}
	close(release)
	hung.Store(nil)
	eventually(t, "the first life to end", func() bool { return c.tryStart(l.cfg.ID) == nil })
	c.propose(c.nodes[l.cfg.ID], "again")
	c.same()
}

// A leader that cannot write its log stops: it acknowledges nothing, and does
// not hold on to leadership.
func TestFailingDiskStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	var broken atomic.Pointer[string]
	c.tune = func(id string, cfg *Config) {
		cfg.beforeStore = func() error {
			if at := broken.Load(); at != nil && *at == id {
				return errors.New("no space left on device")
			}
			return nil
		}
	}
	c.startAll()
	l, f := c.leader(), c.follower()
	c.propose(l, "before")
	broken.Store(&l.cfg.ID)
	if _, err := l.Propose(context.Background(), []byte("during")); !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("the proposer was told: %v", err)
	}
	select {
	case <-l.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the peer goes on without a disk")
	}
	if l.Err() == nil {
		t.Error("it stopped without a reason")
	}
	delete(c.nodes, l.cfg.ID)
	c.leader() // else it may be forwarded to the one that is stopping
	c.propose(f, "after")
	if got := c.same(); len(got) != 2 {
		t.Errorf("%q", got)
	}
	broken.Store(nil)
	c.start(l.cfg.ID)
	c.leader()
	if got := c.same(); len(got) != 2 {
		t.Errorf("after it came back: %q", got)
	}
}

func TestOverloadIsRefusedEarly(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	n := c.leader()
	hold := make(chan struct{})
	sm := c.sms["n1"]
	sm.mu.Lock()
	sm.hold = hold
	sm.mu.Unlock()
	var over, unknown, never atomic.Int64
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range maxQueued + 2000 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := n.Propose(ctx, fmt.Append(nil, i))
			switch {
			case errors.Is(err, ErrOverloaded):
				over.Add(1)
			case errors.Is(err, ErrUnknownOutcome):
				unknown.Add(1)
			case errors.Is(err, ErrNotReady):
				never.Add(1)
			default:
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	close(hold)
	if over.Load() < 1000 || unknown.Load() > inFlight*maxBatchCommands || unknown.Load() == 0 {
		t.Errorf("%d refused, %d unknown, %d never proposed", over.Load(), unknown.Load(), never.Load())
	}
	sm.mu.Lock()
	sm.hold = nil
	sm.mu.Unlock()
	c.propose(n, "after")
	if got := len(c.sms["n1"].all()); got > int(unknown.Load())+1 {
		t.Errorf("%d applied, %d unknown: some were told that they were not proposed", got, unknown.Load())
	}
	if _, err := n.Propose(context.Background(), make([]byte, 3<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestCalls(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		cfg.Handlers = map[string]Handler{
			"who": func(_ context.Context, from string, p []byte) ([]byte, error) {
				return []byte(id + "<" + from + ":" + string(p)), nil
			},
			"no":   func(context.Context, string, []byte) ([]byte, error) { return nil, errors.New("not today") },
			"huge": func(context.Context, string, []byte) ([]byte, error) { return make([]byte, maxCallBytes+1), nil },
		}
	}
	c.startAll()
	l, f := c.leader(), c.follower()
	ctx := context.Background()
	for _, to := range []string{Leader, l.cfg.ID, f.cfg.ID} {
		want := to
		if to == Leader {
			want = l.cfg.ID
		}
		got, err := f.Call(ctx, to, "who", []byte("x"))
		if err != nil || string(got) != want+"<"+f.cfg.ID+":x" {
			t.Errorf("call %s: %q, %v", to, got, err)
		}
	}
	var remote *RemoteError
	if _, err := f.Call(ctx, Leader, "no", nil); !errors.As(err, &remote) || remote.Message != "not today" || remote.Peer != l.cfg.ID {
		t.Errorf("refused: %v", err)
	}
	if _, err := f.Call(ctx, Leader, "what", nil); !errors.Is(err, ErrNoHandler) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err := f.Call(ctx, "n9", "who", nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("unknown peer: %v", err)
	}
	if _, err := f.Call(ctx, Leader, "who", make([]byte, maxCallBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := f.Call(ctx, Leader, "huge", nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("answer too large: %v", err)
	}
	l.Handle("later", func(context.Context, string, []byte) ([]byte, error) { return nil, nil })
	if _, err := f.Call(ctx, Leader, "later", nil); err != nil {
		t.Error(err)
	}
}

func TestLeadershipMovesAndIsAnnounced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l, f := c.leader(), c.follower()
	mine, theirs := l.LeaderChanges(), f.LeaderChanges()
	if !<-mine {
		t.Error("the leader was not told that it leads")
	}
	if err := f.TransferLeadership(context.Background(), ""); !errors.Is(err, ErrNoLeader) {
		t.Errorf("transfer by a follower: %v", err)
	}
	if err := l.TransferLeadership(context.Background(), "n9"); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("transfer to a stranger: %v", err)
	}
	must(t, l.TransferLeadership(context.Background(), f.cfg.ID))
	if <-mine || !<-theirs {
		t.Error("announced the wrong way round")
	}
	if got := c.leader(); got != f {
		t.Errorf("%s leads", got.cfg.ID)
	}
	c.stop(l.cfg.ID)
	if _, open := <-mine; open {
		t.Error("the channel stays open after the end")
	}
}

// Connections are replaced before their certificates grow old, without anybody
// losing leadership.
func TestConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) {
		cfg.Timing = Timing{Heartbeat: time.Second, Election: time.Second, Lease: time.Second, ConnAge: 200 * time.Millisecond}
	}
	c.startAll()
	l := c.leader()
	term := l.Status().Term
	seen := map[string]bool{}
	proposed := 0
	eventually(t, "connections were replaced several times", func() bool {
		proposed++
		c.propose(l, fmt.Sprint(proposed))
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		for conn := range c.net.conns {
			seen[conn.LocalAddr().String()] = true
		}
		return len(seen) >= 24
	})
	if s := l.Status(); s.State != Leads || s.Term != term {
		t.Errorf("leadership was lost: %+v", s)
	}
}
