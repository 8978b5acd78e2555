package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// StateMachine is what the cluster replicates. Its methods must not keep or
// change the byte slices they are given: the Raft library shares them.
type StateMachine interface {
	// Apply applies the commands of one Raft entry, in order, and returns one
	// result per command. It is called once per entry, by one goroutine, in log
	// order, and must be a function of state and commands alone. An error means
	// that this peer cannot go on: nothing of the entry may have been applied,
	// nothing is acknowledged, and the peer stops with that error.
	Apply(index, term uint64, commands [][]byte) ([][]byte, error)
	// Snapshot captures the present state in O(1). It is called by the goroutine
	// of Apply; the result is written by another one while Apply goes on.
	Snapshot() (Snapshot, error)
	// Restore replaces the state, all or nothing. An error stops the peer.
	Restore(io.Reader) error
}

// Snapshot is a captured state.
type Snapshot interface {
	Write(io.Writer) error
}

// Security gives the peer port its mutual TLS. The configurations are cloned
// and their protocols, tickets and minimum version set here; they must not use
// GetConfigForClient.
type Security interface {
	// Server admits peers of the trusted domain only, each with a certificate.
	Server() *tls.Config
	// Client insists that the other side is the peer id.
	Client(id string) *tls.Config
	// Peer tells the id from the verified chain of a connection.
	Peer(tls.ConnectionState) (id string, err error)
}

// Peer is a configured member.
type Peer struct {
	ID      string
	Address string // host:port of its peer port, resolved at each dial
}

// Handler answers a Call of its kind. from is the authenticated caller. An
// error reaches the caller in words, as a RemoteError.
type Handler func(ctx context.Context, from string, payload []byte) ([]byte, error)

// Timing holds the clocks of a peer; zero values take the defaults. All peers
// should have the same.
type Timing struct {
	Heartbeat time.Duration // a follower that hears no leader for so long asks for an election; default 500 ms
	Election  time.Duration // a candidate tries again after so long; at least Heartbeat; default 500 ms
	Lease     time.Duration // a leader that hears no majority for so long steps down; at most Heartbeat; default 250 ms
	Commit    time.Duration // an idle follower learns the commit index after so long; default 10 ms
	Stall     time.Duration // a leader whose log takes so long to write once lets another lead; at most Disk; default 2 s
	Disk      time.Duration // a peer whose log takes so long to write once stops; default 10 s
	Progress  time.Duration // a peer whose Raft does not move for so long, although it could, stops to be started again, see watchdog; default 30 s
	Patience  time.Duration // bound on a call whose context has no deadline; default 10 s
	ConnAge   time.Duration // a connection is replaced after about so long, for rotated certificates; default 30 min
}

// Config describes one peer.
type Config struct {
	ID        string       // stable; equals the id in this peer's certificate
	Dir       string       // data directory, this peer's alone; made when missing
	Listener  net.Listener // the peer port; closed by the node
	Advertise string       // address under which the others reach it; default: its own entry in Peers. When the cluster has another, the leader is asked to change that. None: what the cluster has stays

	// Peers are the voters of the first bootstrap, this one included, identical
	// everywhere. Once the cluster has formed only the addresses matter.
	Peers []Peer

	// Join are members of a formed cluster, not necessarily all. A peer without
	// data that has them does not form a cluster: it waits until an operator adds
	// it (AddLearner) and comes in as a learner. Afterwards they are addresses to
	// begin with. Peers may then be empty.
	Join []Peer

	// ColdStart has Peers, when all of them are empty, begin with what Origin has rather
	// than form an empty cluster. On a peer with data it means nothing.
	ColdStart bool
	Origin    Origin // required with ColdStart, and to end a cold start that was begun

	// Levels tells which format level the state machine knows, and which it uses
	// now; a peer that knows less than the leader uses is not admitted. Optional.
	Levels func() (knows, uses uint32)

	// DeadAfter is how long a member may be silent before the leader has it removed
	// by Bury, which calls Remove (or refuses, or cannot); 0, the default: for ever.
	// No voter goes when fewer than MinVoters (default 3) would stay.
	DeadAfter time.Duration
	MinVoters int
	Bury      func(ctx context.Context, id string, silent time.Duration) error

	Security     Security
	StateMachine StateMachine
	Handlers     map[string]Handler // typed peer RPCs; more with Node.Handle
	Logger       *slog.Logger       // default: discard
	Timing       Timing

	SnapshotBytes    int64 // log bytes after which a snapshot is taken; default 16 MiB
	MaxSnapshotBytes int64 // largest snapshot taken from a leader; default 16 GiB. Twice its size must be free on the disk
	MaxCommandBytes  int   // largest proposal; default 2 MiB, at most 6 MiB

	// Dial replaces net.Dialer.DialContext, for hosts and tests that have a
	// network of their own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// unsafeNoResponder leaves all heartbeats to the main loop, to show in a test
	// what the responder is for.
	unsafeNoResponder bool
	// afterMarker is called when a marker is durable, for tests that crash there.
	afterMarker func(context.Context, peerpb.Phase) error
	// beforeStore is called before entries are stored, for disks that are slow
	// or fail.
	beforeStore func() error
}

const (
	maxCallBytes    = 4 << 20 // payload of a Call, and of its answer
	maxMessageBytes = 8 << 20 // of any gRPC message
	maxQueued       = 8192    // proposals waiting in one peer
	maxQueuedBytes  = 64 << 20
	maxID           = 64
	maxKind         = 64
)

func (c *Config) complete() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Timing.Heartbeat, 500*time.Millisecond)
	def(&c.Timing.Election, max(500*time.Millisecond, c.Timing.Heartbeat))
	def(&c.Timing.Lease, c.Timing.Heartbeat/2)
	def(&c.Timing.Commit, 10*time.Millisecond)
	def(&c.Timing.Disk, 10*time.Second)
	def(&c.Timing.Stall, min(2*time.Second, c.Timing.Disk))
	def(&c.Timing.Progress, 30*time.Second)
	def(&c.Timing.Patience, 10*time.Second)
	def(&c.Timing.ConnAge, 30*time.Minute)
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 16 << 20
	}
	if c.MaxSnapshotBytes == 0 {
		c.MaxSnapshotBytes = 16 << 30
	}
	if c.MaxCommandBytes == 0 {
		c.MaxCommandBytes = 2 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.MinVoters <= 0 {
		c.MinVoters = 3
	}
	switch {
	case c.ColdStart && (c.Origin == nil || len(c.Peers) == 0):
		return errors.New("cluster: ColdStart needs Origin and Peers")
	case c.DeadAfter > 0 && c.Bury == nil:
		return errors.New("cluster: DeadAfter needs Bury")
	case c.Dir == "" || c.Listener == nil || c.Security == nil || c.StateMachine == nil:
		return errors.New("cluster: Dir, Listener, Security and StateMachine are required")
	case c.MaxCommandBytes > 6<<20 || c.MaxCommandBytes < 0 || c.SnapshotBytes < 0 || c.MaxSnapshotBytes < 0 || c.MaxSnapshotBytes > math.MaxInt64/4:
		return errors.New("cluster: MaxCommandBytes, SnapshotBytes or MaxSnapshotBytes out of range")
	case len(c.Peers) > 100 || len(c.Join) > 100:
		return errors.New("cluster: more than 100 peers")
	}
	peers := append([]Peer(nil), c.Peers...)
	sort.Slice(peers, func(i, j int) bool { return peers[i].ID < peers[j].ID })
	self := false
	addresses := make(map[string]bool)
	for i, p := range peers {
		if err := validID(p.ID); err != nil {
			return err
		}
		if i > 0 && peers[i-1].ID == p.ID || p.Address == "" || addresses[p.Address] {
			return fmt.Errorf("cluster: peer %s is listed twice, has no address, or shares one", p.ID)
		}
		addresses[p.Address] = true
		if p.ID == c.ID {
			self = true
			if c.Advertise == "" {
				c.Advertise = p.Address
			}
		}
	}
	if err := validID(c.ID); err != nil {
		return err
	}
	for _, p := range c.Join {
		if err := validID(p.ID); err != nil {
			return err
		}
		if p.ID == c.ID || p.Address == "" {
			return fmt.Errorf("cluster: %q, to join, is this peer itself or has no address", p.ID)
		}
	}
	if !self && (len(c.Join) == 0 || len(c.Peers) > 0) {
		return fmt.Errorf("cluster: this peer, %q, is not in its own list of peers", c.ID)
	}
	c.Peers = peers
	return nil
}

func validID(id string) error {
	if id == "" || len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) {
		return fmt.Errorf("cluster: %q is not a peer id: 1 to %d letters, digits, '-', '_' or '.'", id, maxID)
	}
	return nil
}

// Start opens and checks the data, serves the peer port, and forms or resumes
// the cluster in the background. A peer with a formed cluster on disk has its
// state restored from the snapshot when Start returns; the tail of the log
// follows once a leader is known. ctx bounds Start only.
//
// Errors: ErrDirInUse, ErrForeignData, ErrNewerFormat, ErrCorruptMarker,
// *ErrCorruptLog, ErrCorruptSnapshot, ErrLostData, or what the state machine
// said. The listener is closed when Start fails.
func Start(ctx context.Context, c Config) (_ *Node, err error) {
	defer func() {
		if err != nil && c.Listener != nil {
			_ = c.Listener.Close()
		}
	}()
	if err := c.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	n := newNode(c)
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if n.lock, err = lockDir(c.Dir); err != nil {
		return nil, err
	}
	m, err := readMarker(c.Dir)
	if err != nil {
		return nil, err
	}
	if m != nil && m.GetSelf() != c.ID {
		return nil, fmt.Errorf("%w: %s holds the data of peer %q, this peer is %q", ErrForeignData, c.Dir, m.GetSelf(), c.ID)
	}
	switch m.GetPhase() {
	case peerpb.Phase_PHASE_RECOVERING:
		return nil, fmt.Errorf("%s: %w", c.Dir, ErrRecovering)
	case peerpb.Phase_PHASE_SUPERSEDED:
		return nil, fmt.Errorf("%s: %w", c.Dir, ErrSuperseded)
	}
	n.marker.Store(m)
	if err := n.openData(ctx); err != nil {
		return nil, err
	}
	if err := n.serve(); err != nil {
		return nil, err
	}
	n.run()
	return n, nil
}
