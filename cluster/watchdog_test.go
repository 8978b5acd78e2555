package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func stopsWithoutProgress(t *testing.T, n *Node, why string) {
	t.Helper()
	select {
	case <-n.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on: %+v", n.Status())
	}
	if err := n.Err(); !errors.Is(err, ErrNoProgress) || !strings.Contains(err.Error(), why) {
		t.Errorf("it stopped because of %v", err)
	}
	if n.Alive() == nil {
		t.Error("it says that it is alive")
	}
}

// A leader whose disk hangs lets another lead long before it stops; when the
// disk comes back it follows, and what it was about to write is nowhere.
func TestLeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	var hung atomic.Pointer[string]
	release := make(chan struct{})
	c.tune = func(id string, cfg *Config) {
		cfg.Timing.Stall, cfg.Timing.Disk = 500*time.Millisecond, time.Hour
		cfg.beforeStore = func() error {
			if at := hung.Load(); at != nil && *at == id {
				<-release
			}
			return nil
		}
	}
	c.startAll()
	old := c.leader()
	c.propose(old, "before")
	hung.Store(&old.cfg.ID)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	lost := make(chan error, 1)
	go func() {
		_, err := old.Propose(ctx, []byte("lost"))
		lost <- err
	}()
	var next *Node
	eventually(t, "another leader", func() bool {
		for _, n := range c.nodes {
			if n != old && n.leads() {
				next = n
			}
		}
		return next != nil
	})
	c.propose(next, "during")
	if s := old.Status(); old.Stats().DiskStalls == 0 || len(s.Alarms) != 1 || s.Alarms[0].Kind != AlarmDiskStalls {
		t.Errorf("the old leader says %d stalls, alarms %v", old.Stats().DiskStalls, s.Alarms)
	}
	if old.Err() != nil {
		t.Errorf("it stopped: %v", old.Err())
	}
	hung.Store(nil)
	close(release)
	if err := <-lost; !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("the proposer was told: %v", err)
	}
	eventually(t, "the old leader to follow", func() bool { return old.Status().State == Follower && old.leader() != "" })
	c.propose(old, "after")
	if got := strings.Join(c.same(), " "); strings.Contains(got, "lost") || !strings.Contains(got, "during") || !strings.Contains(got, "after") {
		t.Errorf("applied %s", got)
	}
	if bad := compareLogs(c); bad != "" {
		t.Error(bad)
	}
	eventually(t, "the alarm to end", func() bool { return len(old.Status().Alarms) == 0 })
}

// offerSnapshot sends a snapshot to a peer that lags, as a leader does.
func offerSnapshot(l, to *Node) {
	r := to.raft.Load()
	req := &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(l.cfg.ID), Addr: []byte(l.cfg.ID)},
		SnapshotVersion: raft.SnapshotVersionMax, Term: r.CurrentTerm(), LastLogIndex: r.LastIndex() + 1000, LastLogTerm: r.CurrentTerm(),
		Configuration: raft.EncodeConfiguration(r.GetConfiguration().Configuration()), ConfigurationIndex: 1}
	to.transport.installs.take(raft.RPC{Command: req, Reader: strings.NewReader(""), RespChan: make(chan raft.RPCResponse, 1)}, req)
}

// A state machine that does not come back from an entry.
func TestStuckStateMachineStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Progress = time.Second }
	c.startAll()
	l, f := c.leader(), c.follower()
	hold := make(chan struct{})
	defer close(hold)
	sm := c.sms[f.cfg.ID]
	sm.mu.Lock()
	sm.hold = hold
	sm.mu.Unlock()
	c.propose(l, "stuck")
	delete(c.nodes, f.cfg.ID)
	eventually(t, "the entry", func() bool { return f.machine.calls.Load()%2 == 1 })
	offerSnapshot(l, f) // which it takes, and cannot restore: that excuses nothing
	eventually(t, "an install", f.transport.installs.underWay)
	stopsWithoutProgress(t, f, "the state machine stays")
	c.propose(c.leader(), "after")
	// The same data is whole: the next life of the process begins with it. Here
	// the first one holds the directory as long as its state machine hangs.
	if err := c.tryStart(f.cfg.ID); !errors.Is(err, ErrDirInUse) {
		t.Errorf("a second life began: %v", err)
	}
}

// A main loop that waits for something that never comes.
func TestStuckMainLoopStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Progress = time.Second }
	c.startAll()
	l, f := c.leader(), c.follower()
	blocked := make(chan raft.Observation) // the library waits for the reader of a blocking observer
	o := raft.NewObserver(blocked, true, nil)
	f.raft.Load().RegisterObserver(o)
	for _, p := range c.peers { // it observes that it has no leader any more
		c.net.cut(f.cfg.ID, p.ID)
	}
	eventually(t, "no leader", func() bool { _, id := f.raft.Load().LeaderWithID(); return id == "" })
	delete(c.nodes, f.cfg.ID)
	offerSnapshot(l, f) // which it does not take
	stopsWithoutProgress(t, f, "its main loop")
	for { // lets it end, for the leak test
		select {
		case <-blocked:
			continue
		case <-time.After(500 * time.Millisecond):
		}
		if lock, err := lockDir(filepath.Join(c.dir, f.cfg.ID)); err == nil {
			_ = lock.Close()
			return
		}
	}
}

// A leader refuses proposals for a transfer that nobody has asked for.
func TestTransferThatNeverEndsStopsTheLeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Progress = time.Second }
	c.startAll()
	l := c.leader()
	for { // what the queue notes when the library says so
		l.queue.refusals.Add(1)
		select {
		case <-l.Done():
		case <-time.After(10 * time.Millisecond):
			continue
		}
		break
	}
	delete(c.nodes, "n1")
	stopsWithoutProgress(t, l, "a transfer")
}

// A leader commits nothing of what it has: that is its fault only if a majority
// answers.
func TestLeaderThatCommitsNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		cfg.Timing.Progress = 500 * time.Millisecond
		if id == "n1" { // goes on leading without a majority
			cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = time.Hour, time.Hour, time.Hour
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
	l := c.nodes["n1"]
	c.propose(l, "before")
	c.net.cut("n1", "n2")
	c.net.cut("n1", "n3")
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = l.Propose(ctx, []byte("alone"))
	}()
	eventually(t, "an entry that is not committed", func() bool { s := l.Status(); return s.LastIndex > s.CommitIndex })
	pause := time.NewTimer(2 * time.Second)
	<-pause.C
	if s := l.Status(); s.State != Leads || l.Err() != nil {
		t.Fatalf("without a majority: %v, %v", s.State, l.Err())
	}
	delete(c.nodes, "n1")
	for { // as if their main loops answered, and the library counted nothing
		l.transport.answers("n2").Add(1)
		select {
		case <-l.Done():
		case <-time.After(5 * time.Millisecond):
			continue
		}
		break
	}
	stopsWithoutProgress(t, l, "was not committed")
}

// What does not count as standing still.
func TestQuietIsNotStuck(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Progress = 300 * time.Millisecond }
	c.startAll()
	l := c.leader()
	c.propose(l, "before")
	quiet := func() {
		pause := time.NewTimer(time.Second)
		<-pause.C
		for id, n := range c.nodes {
			if err := n.Err(); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
		}
	}
	quiet() // idle
	for _, p := range c.peers {
		if p.ID != l.cfg.ID {
			c.net.cut(l.cfg.ID, p.ID)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	_, _ = l.Propose(ctx, []byte("alone")) // it leads no longer, or finds that out
	cancel()
	quiet()
	c.net.heal()
	c.propose(c.leader(), "after")
	c.same()
}

// compareLogs says where the logs or state machines of the nodes contradict each other; "" for nowhere.
func compareLogs(c *testCluster) string {
	type at struct{ index, term uint64 }
	type entry struct{ peer, data string }
	seen := map[at]entry{}
	for id, n := range c.nodes {
		last, _ := n.store.LastIndex()
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if n.store.GetLog(i, &l) != nil {
				continue
			}
			k, e := at{l.Index, l.Term}, entry{id, fmt.Sprint(l.Type, string(l.Data))}
			if o, ok := seen[k]; ok && o.data != e.data {
				return fmt.Sprintf("index %d term %d: %q on %s, %q on %s", i, l.Term, o.data, o.peer, e.data, id)
			}
			seen[k] = e
		}
	}
	a, b := c.sms["n2"].all(), c.sms["n1"].all()
	if fmt.Sprint(a) != fmt.Sprint(b) {
		return fmt.Sprintf("state machines differ: %d and %d commands", len(a), len(b))
	}
	return ""
}
