package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fixedRaft is what the responder may look at; it has nothing to write with.
type fixedRaft struct {
	state  raft.RaftState
	leader string
	term   uint64
}

func (f fixedRaft) State() raft.RaftState { return f.state }
func (f fixedRaft) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	return raft.ServerAddress(f.leader), raft.ServerID(f.leader)
}
func (f fixedRaft) LastIndex() uint64    { return 42 }
func (f fixedRaft) CurrentTerm() uint64  { return f.term }
func (f fixedRaft) AppliedIndex() uint64 { return 40 }

type deafStream struct{ *handOff }

func (deafStream) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return nil, ErrStopped }

func newDeafTransport(t *testing.T, grace time.Duration, p func() (peek, bool)) *transport {
	inner := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: deafStream{newHandOff(idAddr("n1"))}, MaxPool: 1, MaxRPCsInFlight: 1, Timeout: time.Second, Logger: raftLogger(testLogger("")),
	})
	tr := newTransport(inner, grace, p, &installs{
		dir: t.TempDir(), limit: 1 << 20, peek: p, begin: func() bool { return true }, end: func() {},
		log: testLogger(""), alarms: newAlarms(testLogger("")), installed: func(uint64, uint64) {}, counters: new(counters),
	})
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func heartbeatOf(leader string, term uint64) (raft.RPC, chan raft.RPCResponse) {
	ch := make(chan raft.RPCResponse, 1)
	return raft.RPC{
		Command:  &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(leader), Addr: []byte(leader)}, Term: term},
		RespChan: ch,
	}, ch
}

// The responder answers in the main loop's place only what the loop would have
// answered without changing anything.
func TestResponderRule(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		raft   fixedRaft
		from   string
		term   uint64
		answer bool
	}{
		{"same leader, same term", fixedRaft{raft.Follower, "l", 7}, "l", 7, true},
		{"newer term", fixedRaft{raft.Follower, "l", 7}, "l", 8, false},
		{"older term", fixedRaft{raft.Follower, "l", 7}, "l", 6, false},
		{"another leader", fixedRaft{raft.Follower, "m", 7}, "l", 7, false},
		{"no leader", fixedRaft{raft.Follower, "", 7}, "l", 7, false},
		{"no leader, no sender", fixedRaft{raft.Follower, "", 7}, "", 7, false},
		{"candidate", fixedRaft{raft.Candidate, "l", 7}, "l", 7, false},
		{"leader", fixedRaft{raft.Leader, "l", 7}, "l", 7, false},
		{"shut down", fixedRaft{raft.Shutdown, "l", 7}, "l", 7, false},
	} {
		tr := &transport{peek: func() (peek, bool) { return tc.raft, true }}
		rpc, ch := heartbeatOf(tc.from, tc.term)
		if got := tr.respond(rpc); got != tc.answer || len(ch) != map[bool]int{true: 1}[got] {
			t.Errorf("%s: answered %v", tc.name, got)
		}
		if tc.answer {
			r := (<-ch).Response.(*raft.AppendEntriesResponse)
			if !r.Success || r.Term != tc.term || r.LastLog != 42 {
				t.Errorf("%s: %+v", tc.name, r)
			}
		}
	}
	tr := &transport{peek: func() (peek, bool) { return nil, false }}
	if rpc, _ := heartbeatOf("l", 1); tr.respond(rpc) {
		t.Error("answered before Raft runs")
	}
	vote := raft.RPC{Command: &raft.RequestVoteRequest{}, RespChan: make(chan raft.RPCResponse, 1)}
	tr.peek = func() (peek, bool) { return fixedRaft{raft.Follower, "l", 0}, true }
	if tr.respond(vote) {
		t.Error("answered a vote")
	}
}

// A free main loop gets every heartbeat; a busy one those that change something.
func TestResponderLeavesTheMainLoopTheFirstSay(t *testing.T) {
	t.Parallel()
	follower := func() (peek, bool) { return fixedRaft{raft.Follower, "l", 7}, true }

	free := newDeafTransport(t, time.Minute, follower)
	rpc, _ := heartbeatOf("l", 7)
	go free.heartbeat(rpc)
	if got := <-free.Consumer(); got.Command != rpc.Command {
		t.Error("the main loop got something else")
	}

	busy := newDeafTransport(t, time.Millisecond, follower)
	rpc, ch := heartbeatOf("l", 7)
	go busy.heartbeat(rpc)
	if r := (<-ch).Response.(*raft.AppendEntriesResponse); !r.Success {
		t.Error("the responder said no")
	}
	newer, ch := heartbeatOf("l", 8)
	go busy.heartbeat(newer)
	select {
	case <-ch:
		t.Error("the responder answered a newer term")
	case <-time.After(50 * time.Millisecond): // long past the grace
	}
	if got := <-busy.Consumer(); got.Command != newer.Command {
		t.Error("the main loop never got the newer term")
	}
}

var _ raft.WithPreVote = (*transport)(nil) // else pre-vote silently disappears

// A main loop that is stuck in the disk longer than the heartbeat timeout does
// not cost the leader its leadership.
func TestSlowDiskKeepsTheLeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	var slow atomic.Int64
	c.tune = func(_ string, cfg *Config) {
		cfg.Timing = Timing{Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond, Lease: 100 * time.Millisecond}
		cfg.beforeStore = func() error { time.Sleep(time.Duration(slow.Load())); return nil }
	}
	c.startAll()
	l := c.leader()
	term := l.Status().Term
	slow.Store(int64(500 * time.Millisecond))
	c.propose(l, "slow")
	slow.Store(0)
	c.propose(l, "fast")
	if s := l.Status(); s.State != Leads || s.Term != term {
		t.Errorf("leadership was lost: %+v", s)
	}
}

// Both followers' disks stall for a second, twice the heartbeat timeout that peers
// run with, again and again: nobody stands for election, and what was proposed
// meanwhile is applied.
func TestStalledFollowersElectNobody(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	var slow atomic.Int64
	var leader atomic.Pointer[string]
	c.tune = func(id string, cfg *Config) {
		cfg.Timing = Timing{} // the defaults
		cfg.beforeStore = func() error {
			if l := leader.Load(); l != nil && *l != id {
				time.Sleep(time.Duration(slow.Load())) // the fault
			}
			return nil
		}
	}
	c.startAll()
	l := c.leader()
	leader.Store(&l.cfg.ID)
	term := l.Status().Term
	for range 3 {
		slow.Store(int64(time.Second))
		c.propose(l, "while the disks stall")
		slow.Store(0)
		c.propose(l, "afterwards")
	}
	for id, n := range c.nodes {
		if s := n.Status(); s.Term != term || s.Leader != l.cfg.ID {
			t.Errorf("%s is in term %d and follows %s; it was term %d of %s", id, s.Term, s.Leader, term, l.cfg.ID)
		}
	}
}

// Scenario S1 of hashicorp/raft#695: a leader whose clock stood still meets the
// next one's first heartbeat while it is about to store an entry. With the
// library's own heartbeat handler many tries forge entries
// (CLUSTER_STOCK_HEARTBEATS=1 shows it, and fails); CLUSTER_S1_TRIES sets how
// many tries are made.
func TestDeposedLeaderForgesNoEntry(t *testing.T) {
	t.Parallel()
	tries := 6
	if v, err := strconv.Atoi(os.Getenv("CLUSTER_S1_TRIES")); err == nil {
		tries = v
	}
	stock := os.Getenv("CLUSTER_STOCK_HEARTBEATS") != ""
	forged := 0
	for i := range tries {
		if bad := deposeFrozenLeader(t, stock); bad != "" {
			forged++
			t.Logf("try %d: %s", i, bad)
		}
	}
	if forged > 0 {
		t.Errorf("%d of %d tries broke the log (stock heartbeats: %v)", forged, tries, stock)
	}
}

func deposeFrozenLeader(t *testing.T, stock bool) string {
	c := newTestCluster(t, "n1", "n2", "n3")
	defer c.stopAll()
	c.tune = func(id string, cfg *Config) {
		cfg.unsafeStockHeartbeats = stock
		if id == "n1" {
			cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = 30*fast.Heartbeat, 30*fast.Election, 30*fast.Lease
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
	old := c.nodes["n1"].raft.Load()
	c.propose(c.nodes["n1"], "before")
	term := old.CurrentTerm()
	c.net.cut("n1", "n2")
	c.net.cut("n1", "n3")
	var next *Node
	eventually(t, "another leader", func() bool {
		for _, id := range []string{"n2", "n3"} {
			if c.nodes[id].Status().State == Leads {
				next = c.nodes[id]
				return true
			}
		}
		return false
	})
	c.propose(next, "between")
	// Long enough for the new leader to try entries ever more rarely, while its
	// heartbeats stay frequent: one of these comes first.
	longer := time.NewTimer(600 * time.Millisecond)
	<-longer.C
	var wg sync.WaitGroup
	c.net.heal()
	// The first write meets the main loop where the heartbeat has left it: still
	// waiting for something to do as leader, in a term that is no longer its own.
	eventuallyAt(t, time.Millisecond, "the old leader hears of the next", func() bool { return old.CurrentTerm() != term })
	for i := range 20 { // straight at the old leader's Raft: nothing stands in front
		f := old.Apply(encodeEnvelope([][]byte{fmt.Appendf(nil, "old-%d", i)}), time.Second)
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = f.Error()
		}()
		wait := time.NewTimer(5 * time.Millisecond)
		<-wait.C
	}
	wg.Wait()
	for i := range 3 {
		// A broken log may let no proposal through.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := c.nodes[c.peers[i].ID].Propose(ctx, fmt.Append(nil, "after-", i))
		cancel()
		if err != nil && !stock {
			t.Error(err)
		}
	}
	// The same index and term must hold the same entry on all disks.
	deadline := time.Now().Add(3 * time.Second)
	for {
		bad := compareLogs(c)
		if bad == "" || time.Now().After(deadline) {
			return bad
		}
		time.Sleep(20 * time.Millisecond)
	}
}

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
