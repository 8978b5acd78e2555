package forged

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/internal/heartbeat"
)

// Handler is a way to answer heartbeats.
type Handler string

// The handlers.
const (
	Stock Handler = "stock" // the library's, on the connection's goroutine
	Ours  Handler = "ours"  // the product's
	Loop  Handler = "loop"  // the main loop alone: as safe as ours, but not as live
)

// network is TCP on the loopback, with links that can be cut: connections end,
// and new ones are refused.
type network struct {
	mu    sync.Mutex // guards the rest
	cut   map[[2]int]bool
	conns map[net.Conn][2]int
}

var errCut = errors.New("this link is cut")

// isolate cuts a node off from all others.
func (n *network) isolate(node int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range nodes {
		n.cut[[2]int{node, other}], n.cut[[2]int{other, node}] = true, true
	}
	for conn, link := range n.conns {
		if n.cut[link] {
			conn.Close()
			delete(n.conns, conn)
		}
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// stream is the network as a node sees it. Addresses are names of listeners.
type stream struct {
	net.Listener
	network *network
	from    int
	peers   []*node
}

func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	link := [2]int{s.from, 0}
	for _, p := range s.peers {
		if string(address) == p.listener.Addr().String() {
			link[1] = p.number
		}
	}
	conn, err := net.DialTimeout("tcp", string(address), timeout)
	if err != nil {
		return nil, err
	}
	s.network.mu.Lock()
	defer s.network.mu.Unlock()
	if s.network.cut[link] {
		conn.Close()
		return nil, errCut
	}
	s.network.conns[conn] = link
	return conn, nil
}

// entry is what a log or a state machine holds at an index.
type entry struct {
	term uint64
	kind raft.LogType
	data string
}

// disk is a log in memory that can hang, and remembers all that was ever stored.
type disk struct {
	*raft.InmemStore
	hang atomic.Pointer[chan struct{}] // StoreLogs waits until it is closed
	hung atomic.Bool                   // one has waited

	mu     sync.Mutex // guards stored
	stored map[uint64][]entry
}

func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *disk) StoreLogs(logs []*raft.Log) error {
	if hang := d.hang.Load(); hang != nil {
		d.hung.Store(true)
		<-*hang
	}
	d.mu.Lock()
	for _, l := range logs {
		d.stored[l.Index] = append(d.stored[l.Index], entry{l.Term, l.Type, string(l.Data)})
	}
	d.mu.Unlock()
	return d.InmemStore.StoreLogs(logs)
}

// machine remembers what it was given.
type machine struct {
	mu      sync.Mutex // guards the rest
	applied map[uint64]entry
	last    uint64
}

func (m *machine) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied[l.Index] = entry{l.Term, l.Type, string(l.Data)}
	m.last = l.Index
	return nil
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.ErrUnsupported }
func (m *machine) Restore(io.ReadCloser) error         { return errors.ErrUnsupported }

// node is one of three that run Raft.
type node struct {
	number    int
	listener  net.Listener
	transport raft.Transport
	disk      *disk
	machine   *machine
	raft      atomic.Pointer[raft.Raft]
}

const nodes = 3

// timing is heartbeat and election timeout, and the leader's lease.
type timing struct{ heartbeat, lease time.Duration }

// start runs three nodes in this process; the caller stops them.
func start(h Handler, timings [nodes]timing) (c *cluster, err error) {
	c = &cluster{network: &network{cut: map[[2]int]bool{}, conns: map[net.Conn][2]int{}}, acked: map[uint64]string{}}
	var members raft.Configuration
	for i := range nodes {
		n := &node{number: i, machine: &machine{applied: map[uint64]entry{}}, disk: &disk{InmemStore: raft.NewInmemStore(), stored: map[uint64][]entry{}}}
		if n.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			c.stop()
			return nil, err
		}
		c.nodes = append(c.nodes, n)
		address := raft.ServerAddress(n.listener.Addr().String())
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(address), Address: address})
	}
	for i, n := range c.nodes {
		config := raft.DefaultConfig()
		config.LocalID = members.Servers[i].ID
		config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = timings[i].heartbeat, timings[i].heartbeat, timings[i].lease
		config.SnapshotThreshold, config.SnapshotInterval = math.MaxUint64>>1, time.Hour
		config.NoLegacyTelemetry = true
		config.Logger = hclog.NewNullLogger()
		n.transport = n.answering(h, &stream{n.listener, c.network, i, c.nodes})
		snapshots := raft.NewDiscardSnapshotStore()
		err := raft.BootstrapCluster(config, n.disk, n.disk, snapshots, n.transport, members)
		if err == nil {
			var r *raft.Raft
			if r, err = raft.NewRaft(config, n.machine, n.disk, n.disk, snapshots, n.transport); err == nil {
				n.raft.Store(r)
			}
		}
		if err != nil {
			c.stop()
			return nil, err
		}
	}
	return c, nil
}

// answering is the transport with a handler.
func (n *node) answering(h Handler, s *stream) raft.Transport {
	inner := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: s, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: time.Second, Logger: hclog.NewNullLogger()})
	grace := heartbeat.Grace
	switch h {
	case Stock:
		return inner
	case Loop:
		grace = math.MaxInt64
	}
	t := heartbeat.New(inner, grace, func() (heartbeat.Peek, bool) {
		r := n.raft.Load()
		return r, r != nil
	})
	t.Run(func(raft.RPC) bool { return false })
	return t
}

// write proposes, and does not wait for the outcome.
func (c *cluster) write(n *node, data string) {
	f := n.raft.Load().Apply([]byte(data), 4*time.Millisecond)
	c.writes.Go(func() {
		if f.Error() == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.acked[f.Index()] = data
		}
	})
}

func (n *node) leads() bool { return n.raft.Load().State() == raft.Leader }

func (n *node) term() uint64 { return n.raft.Load().CurrentTerm() }

// same compares what two entries say.
func (e entry) same(o entry) bool {
	return e.kind == o.kind && bytes.Equal([]byte(e.data), []byte(o.data))
}
