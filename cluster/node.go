package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
	"github.com/spike-ha/spike-ha/internal/heartbeat"
)

// Node is one running peer. Its methods may be used by any goroutine, at any
// time after Start.
type Node struct {
	cfg  Config
	log  *slog.Logger
	lock *os.File

	ctx     context.Context // ends when the node begins to stop
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines of the node itself
	gate    sync.Mutex     // guards closing; see begin
	closing bool
	done    chan struct{} // closed when all has stopped

	port      *port
	server    *grpc.Server
	peers     *peerClients
	transport *transport
	machine   *machine
	store     *checkedLog
	cache     *raft.LogCache
	running   atomic.Bool // run has begun
	live      atomic.Bool // Raft's goroutines run: see raftLog
	snapshots *checkedSnapshots

	raft     atomic.Pointer[raft.Raft] // nil until the cluster has formed
	raftGone chan struct{}             // closed when Raft answers nothing any more
	hangs    chan struct{}             // closed by the watchdog: Raft may never end
	queue    *queue
	places   places

	transfers atomic.Int32 // of leadership, asked for and under way
	members   sync.Mutex   // held while this peer, as leader, changes them
	alarms    *alarms
	stalls    atomic.Uint64 // writes to the log that took longer than Timing.Stall
	counters  counters
	started   time.Time    // of newNode
	beat      atomic.Int64 // when the watchdog looked last, in nanoseconds since started
	removed   atomic.Bool  // the leader says that this peer is no member
	reads     *reads
	hub       *hub

	handlerMu sync.RWMutex // guards handlers
	handlers  map[string]Handler

	formMu sync.Mutex // guards the marker file; held while a step is made durable
	marker atomic.Pointer[peerpb.Marker]

	failOnce sync.Once
	stopOnce sync.Once
	errMu    sync.Mutex // guards the rest
	err      error      // why the node stopped by itself
	problem  error      // why forming does not proceed; nil when it does
}

func newNode(c Config) *Node {
	n := &Node{
		cfg:      c,
		log:      c.Logger.With("peer", c.ID),
		started:  time.Now(),
		done:     make(chan struct{}),
		raftGone: make(chan struct{}),
		hangs:    make(chan struct{}),
		handlers: make(map[string]Handler),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for k, h := range c.Handlers {
		n.handlers[k] = h
	}
	n.machine = &machine{sm: c.StateMachine, fail: n.fail, took: &n.counters.apply}
	n.alarms = newAlarms(n.log)
	n.hub = newHub()
	n.queue = newQueue(n)
	n.reads = newReads(n)
	n.peers = newPeerClients(n)
	return n
}

// dialTimeout bounds connecting to a peer: an election's worth, so that an
// unreachable peer cannot hold up what the reachable ones decide.
func (n *Node) dialTimeout() time.Duration {
	return max(2*n.cfg.Timing.Election, 500*time.Millisecond)
}

// openData opens log and snapshots and checks all of them.
func (n *Node) openData(ctx context.Context) error {
	var err error
	if n.snapshots, err = openSnapshots(n.cfg.Dir, raftLogger(n.log)); err != nil {
		return err
	}
	newest, newestTerm, err := n.checkSnapshots()
	if err != nil {
		return err
	}
	if n.marker.Load() == nil {
		if err := dropUnwritten(filepath.Join(n.cfg.Dir, logFile)); err != nil {
			return err
		}
	}
	if n.store, err = openLog(n.cfg.Dir, n.cfg.SnapshotBytes); err != nil {
		return err
	}
	n.store.before = n.cfg.beforeStore
	if err := n.store.dropDiverging(newest, newestTerm); err != nil {
		return err
	}
	if err := n.store.verify(ctx, newest); err != nil {
		return err
	}
	if n.cache, err = raft.NewLogCache(logCacheSize, n.store); err != nil {
		return err
	}
	has, err := raft.HasExistingState(n.store, n.store.stable, n.snapshots)
	if err != nil {
		return err
	}
	switch phase := n.marker.Load().GetPhase(); {
	case phase < peerpb.Phase_PHASE_READY && has && !attempting(n.marker.Load()): // see seed
		return fmt.Errorf("%w: %s has Raft data, but no marker says of which cluster", ErrForeignData, n.cfg.Dir)
	case phase >= peerpb.Phase_PHASE_STARTED:
		// Snapshots count as state for the library, but term and vote are in the log
		// file alone; a peer that ever ran has a term.
		if term, err := n.store.stable.GetUint64(keyTerm); !has || err != nil || term == 0 {
			return fmt.Errorf("%w (%s)", ErrLostData, n.cfg.Dir)
		}
	}
	return nil
}

// checkSnapshots reads the newest snapshot through. The library would fall back
// to an older one, whose log has been compacted away already.
func (n *Node) checkSnapshots() (index, term uint64, err error) {
	dir := filepath.Join(n.cfg.Dir, "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), unfinished) { // cut short by a crash
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return 0, 0, err
			}
		}
	}
	list, err := n.snapshots.List()
	if err != nil || len(list) == 0 {
		return 0, 0, err
	}
	meta, rc, err := n.snapshots.Open(list[0].ID)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = rc.Close() }()
	if _, _, err := readSnapshotHead(rc); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", filepath.Join(dir, list[0].ID), err)
	}
	return meta.Index, meta.Term, nil
}

// serve opens the port, and starts Raft when the cluster has formed before.
func (n *Node) serve() error {
	addr := idAddr(n.cfg.ID)
	t := n.cfg.Timing
	n.port = &port{
		ln: n.cfg.Listener, sec: n.cfg.Security, log: n.log, dialTCP: n.cfg.Dial,
		age: t.ConnAge, stale: max(3*t.Election, time.Second),
		member: n.admits, places: n.placesOf, found: n.places.found, greet: n.greet,
		raft: newHandOff(addr), rpc: newHandOff(addr),
		handshakes: make(chan struct{}, maxHandshakes),
		conns:      make(map[*peerConn]struct{}),
	}
	n.port.ctx, n.port.cancel = context.WithCancel(context.Background())
	s := stream{n.port.raft, n}
	peek := func() (peek, bool) {
		r := n.raft.Load()
		return r, r != nil
	}
	grace := heartbeat.Grace
	if n.cfg.unsafeNoResponder {
		grace = math.MaxInt64
	}
	n.transport = newTransport(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider:   s,
		Logger:                  raftLogger(n.log),
		Stream:                  s,
		MaxPool:                 3,
		MaxRPCsInFlight:         1, // no pipelining: hashicorp/raft#612
		Timeout:                 10 * time.Second,
		MsgpackUseNewTimeFormat: true,
	}), grace, peek, &installs{
		dir: n.cfg.Dir, limit: n.cfg.MaxSnapshotBytes, peek: peek, begin: n.begin, end: n.wg.Done,
		log: n.log, alarms: n.alarms, installed: n.diverges, counters: &n.counters,
	})
	n.server = newServer(n)
	if n.marker.Load().GetPhase() >= peerpb.Phase_PHASE_READY {
		return n.startRaft()
	}
	return nil
}

// run starts what works in the background.
func (n *Node) run() {
	n.port.serve()
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		_ = n.server.Serve(n.port.rpc)
	}()
	n.goDo(n.form)
	n.goDo(n.belong)
	n.goDo(n.fence)
	n.goDo(n.cleanup)
	n.goDo(n.queue.run)
	n.goDo(n.watch)
	go n.watchdog()
	n.goDo(n.compact)
	n.running.Store(true)
	if n.Err() != nil {
		go n.stop()
	}
}

// begin counts a goroutine that stop waits for; wg.Done must follow. It is false
// once the node stops.
func (n *Node) begin() bool {
	n.gate.Lock()
	defer n.gate.Unlock()
	if n.closing {
		return false
	}
	n.wg.Add(1)
	return true
}

func (n *Node) goDo(f func()) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		f()
	}()
}

// raftConfig is the library's configuration; see doc.go for the reasons.
func (n *Node) raftConfig() *raft.Config {
	t := n.cfg.Timing
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.ID)
	c.HeartbeatTimeout = t.Heartbeat
	c.ElectionTimeout = t.Election
	c.LeaderLeaseTimeout = t.Lease
	c.CommitTimeout = t.Commit
	c.MaxAppendEntries = 64
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false // it asks, and says so: belong
	c.NoSnapshotRestoreOnStart = false
	c.NoLegacyTelemetry = true
	c.SnapshotInterval = time.Hour // snapshots are triggered by bytes: compact
	c.SnapshotThreshold = math.MaxUint64 >> 1
	c.TrailingLogs = 1024
	c.Logger = raftLogger(n.log)
	return c
}

// startRaft writes the first configuration, if a crash did not let it be
// written before, and starts the library. Called once, by Start or by forming
// (which holds formMu).
func (n *Node) startRaft() error {
	m := n.marker.Load()
	conf := n.raftConfig()
	if m.GetPhase() == peerpb.Phase_PHASE_READY {
		first := func() error { return n.bootstrap(conf, m) }
		if m.GetJoined() {
			first = func() error { return n.bootJoined(m) }
		}
		if err := first(); err != nil {
			return err
		}
	}
	log := raftLog{n.cache, &n.live, n.fail}
	stable := raftStable{n.store.stable, n.store, &n.live, n.fail}
	r, err := raft.NewRaft(conf, n.machine, log, stable, n.kept(), n.transport)
	if err != nil {
		if err := n.Err(); err != nil { // what Restore said, or the snapshots did
			if n.machine.stopped && !errors.Is(err, ErrCorruptSnapshot) && !errors.Is(err, ErrNewerFormat) && !unreadable(err) {
				err = fmt.Errorf("%w: %w", ErrCorruptSnapshot, err)
			}
			return err
		}
		return fmt.Errorf("start Raft: %w", err)
	}
	n.live.Store(true)
	n.raft.Store(r)
	n.hub.follow(r)
	n.log.Info("Raft runs", "cluster", fmt.Sprintf("%x", m.GetClusterId()), "incarnation", m.GetIncarnation(), "term", r.CurrentTerm(), "last", r.LastIndex())
	return nil
}

// kept are the snapshots for whoever uses them while the node runs: damage ends it.
func (n *Node) kept() raftSnapshots { return raftSnapshots{n.snapshots, n.fail} }

// bootstrap writes the configuration that all peers agreed on, and notes that
// it did. Raft has not run before: what a crash left of an earlier attempt is at
// most a first term without an entry, which the library would take for state.
func (n *Node) bootstrap(conf *raft.Config, m *peerpb.Marker) error {
	last, err := n.store.LastIndex()
	if err != nil {
		return err
	}
	if last == 0 {
		if err := n.store.stable.SetUint64(keyTerm, 0); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
		var c raft.Configuration
		for _, p := range m.GetPeers() {
			c.Servers = append(c.Servers, raft.Server{
				Suffrage: raft.Voter, ID: raft.ServerID(p.GetId()), Address: raft.ServerAddress(p.GetAddress()),
			})
		}
		if err := raft.BootstrapCluster(conf, n.cache, n.store.stable, n.snapshots, n.transport, c); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
	}
	return n.setMarker(m, peerpb.Phase_PHASE_STARTED)
}

// watch follows the library's observations, and stops the node when the library
// has stopped by itself.
func (n *Node) watch() {
	defer n.hub.end()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.hub.events:
			r := n.raft.Load()
			if r == nil {
				continue
			}
			_, leader := r.LeaderWithID()
			state := r.State()
			n.hub.publish(string(leader), state == raft.Leader)
			if state == raft.Shutdown && n.ctx.Err() == nil {
				n.fail(ErrRemoved)
			}
		}
	}
}

// diverges looks whether a snapshot that was installed left entries in the log
// that contradict it. The library keeps them, refuses all that should follow the
// snapshot, and is sent it again, for ever (hashicorp/raft#697). At a start they
// are dropped. Where the log ended before the snapshot they can be dropped at
// once: see dropDiverging.
func (n *Node) diverges(index, term uint64) {
	var l raft.Log
	err := n.store.GetLog(index, &l)
	switch {
	case err == nil && l.Term != term:
		n.fail(fmt.Errorf("%w: its log contradicts the snapshot that it was sent, at index %d", ErrNoProgress, index))
	case errors.Is(err, raft.ErrLogNotFound):
		first, last, err := n.store.bounds()
		if last = min(last, index); err == nil && first > 0 && first <= last {
			err = n.cache.DeleteRange(first, last) // none that the library appends from now on
		}
		if err != nil {
			n.fail(fmt.Errorf("truncate the Raft log: %w", err))
		}
	}
}

// fail stops the node without ceremony: something that it must not survive.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		if n.ctx.Err() != nil {
			return // stopping anyway
		}
		n.errMu.Lock()
		n.err = err
		n.errMu.Unlock()
		n.log.Error("this peer stops", "reason", err)
		if n.running.Load() {
			go n.stop()
		} // else run does, or Start fails
	})
}

// Done is closed when the node has stopped, by Shutdown or by itself.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node stopped by itself; nil while it runs and after Shutdown.
func (n *Node) Err() error {
	n.errMu.Lock()
	defer n.errMu.Unlock()
	return n.err
}

// Shutdown hands leadership over, if this peer leads, and stops. ctx bounds the
// handing over; stopping itself takes what the disk takes. It may be called
// more than once.
func (n *Node) Shutdown(ctx context.Context) error {
	if n.ctx.Err() == nil {
		if r := n.raft.Load(); r != nil && r.State() == raft.Leader {
			tctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timing.Election)
			if err := n.TransferLeadership(tctx, ""); err != nil && n.ctx.Err() == nil {
				n.log.Info("stopping while leader", "reason", err)
			}
			cancel()
		}
	}
	go n.stop()
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop, in this order: refuse new work; let what is under way in Raft be
// answered, for the library forgets it at shutdown; Raft; then the connections,
// which Raft was using; the files last.
func (n *Node) stop() {
	n.stopOnce.Do(func() {
		n.cancel()
		n.gate.Lock()
		n.closing = true
		n.gate.Unlock()
		n.queue.settle(2 * n.cfg.Timing.Lease)
		ended := make(chan struct{}) // Raft's goroutines are
		// A form step under way may be about to start Raft.
		n.formMu.Lock()
		r := n.raft.Load()
		n.formMu.Unlock()
		if r != nil {
			go func() {
				defer close(ended)
				n.hub.unfollow(r)
				_ = r.Shutdown().Error() // closes the transport, too
			}()
			select {
			case <-ended:
			case <-n.hangs:
			}
		} else {
			close(ended)
		}
		close(n.raftGone)
		_ = n.transport.Close()
		n.server.Stop()
		n.peers.close()
		n.port.close()
		// Nobody hears this peer any more. What waits for a disk that hangs must not
		// keep the process from ending; the files stay locked as long as it does.
		finish := func() {
			<-ended
			n.wg.Wait()
			n.queue.fly.Wait()
			n.queue.drop()
			n.release()
		}
		select {
		case <-n.hangs:
			go finish()
		default:
			finish()
		}
		close(n.done)
	})
}

// release frees what Start took, as far as it came.
func (n *Node) release() {
	n.cancel()
	if n.transport != nil {
		_ = n.transport.Close()
		n.server.Stop()
	}
	n.peers.close()
	if n.port != nil {
		n.port.close()
	}
	if n.store != nil {
		if err := n.store.bolt.Close(); err != nil {
			n.log.Error("close the Raft log", "error", err)
		}
	}
	if n.lock != nil {
		_ = n.lock.Close()
	}
}

// compact takes a snapshot when the log has grown by Config.SnapshotBytes, and
// keeps about as many bytes of older entries for followers that lag a little.
func (n *Node) compact() {
	pause := time.Duration(0) // a snapshot that failed is not tried again at once
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case <-n.ctx.Done():
			return
		case <-n.store.grown:
		}
		r := n.raft.Load()
		if r == nil {
			continue
		}
		err := n.snapshot(r)
		if err == nil || n.ctx.Err() != nil {
			pause = 0
			continue
		}
		pause = min(max(2*pause, time.Second), time.Minute)
		n.log.Warn("a snapshot failed", "error", err, "next try in", pause)
	}
}

func (n *Node) snapshot(r *raft.Raft) error {
	size, count := n.store.bytes.Load(), n.store.entries.Load()
	rc := r.ReloadableConfig()
	rc.TrailingLogs = uint64(min(max(count, 64), 1<<14))
	if err := r.ReloadConfig(rc); err != nil {
		return err
	}
	begun := time.Now()
	err := r.Snapshot().Error()
	switch {
	case err == nil:
		if list, err := n.kept().List(); err == nil && len(list) > 0 {
			n.counters.taken.note(time.Since(begun), list[0].Size)
		}
	case !errors.Is(err, raft.ErrNothingNewToSnapshot):
		n.counters.snapshotFailures.Add(1)
		return err
	}
	n.store.bytes.Add(-size)
	n.store.entries.Add(-count)
	return nil
}
