package cluster

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fixedRaft is what the transport may look at; it has nothing to write with.
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
