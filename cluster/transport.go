package cluster

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// transport is the library's NetworkTransport with another way to answer
// heartbeats.
//
// The library answers them on the connection's goroutine, where they may
// depose a leader and set its term while its main loop is about to store an
// entry; the entry then carries the new term, forged (hashicorp/raft#695).
// Here a heartbeat goes to the main loop like every other message. When the
// loop is busy, typically with the disk, the responder answers in its place,
// if the answer changes nothing: see respond.
//
// NetworkTransport is embedded, not wrapped, because the library finds
// pre-vote by a type assertion.
type transport struct {
	*raft.NetworkTransport
	out   chan raft.RPC // to the main loop
	done  chan struct{}
	wg    sync.WaitGroup
	once  sync.Once
	peek  func() (peek, bool) // false until Raft runs
	grace time.Duration       // how long the main loop has the first say
	stock bool

	installs *installs
	mute     atomic.Bool   // to followers: see watchdog
	heard    sync.Map      // raft.ServerID → *atomic.Uint64: see answers
	advances atomic.Uint64 // entries that followers took, in messages
	commit   atomic.Uint64 // greatest index that a leader said is committed
}

// peek is what the responder may see of Raft: methods that only read, safe for
// concurrent use.
type peek interface {
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	LastIndex() uint64
	CurrentTerm() uint64
	AppliedIndex() uint64 // what the state machine was given
}

var errMute = errors.New("this leader's disk hangs; another peer should lead")

func newTransport(inner *raft.NetworkTransport, grace time.Duration, p func() (peek, bool), i *installs) *transport {
	t := &transport{NetworkTransport: inner, out: make(chan raft.RPC), done: make(chan struct{}), peek: p, grace: grace, installs: i}
	i.out, i.done = t.out, t.done
	t.wg.Add(1)
	go t.pump()
	return t
}

func (t *transport) pump() {
	defer t.wg.Done()
	for {
		select {
		case rpc := <-t.NetworkTransport.Consumer():
			switch req := rpc.Command.(type) {
			case *raft.InstallSnapshotRequest:
				raise(&t.commit, req.LastLogIndex)
				t.installs.take(rpc, req)
				continue
			case *raft.AppendEntriesRequest:
				raise(&t.commit, req.LeaderCommitIndex)
				t.installs.follows(req)
			}
			select {
			case t.out <- rpc:
			case <-t.done:
				return
			}
		case <-t.done:
			return
		}
	}
}

// Consumer is where the main loop takes its messages from.
func (t *transport) Consumer() <-chan raft.RPC { return t.out }

// SetHeartbeatHandler is called by the library with its own handler, which is
// not used.
func (t *transport) SetHeartbeatHandler(stock func(raft.RPC)) {
	if t.stock {
		t.NetworkTransport.SetHeartbeatHandler(stock)
		return
	}
	t.NetworkTransport.SetHeartbeatHandler(t.heartbeat)
}

// AppendEntries carries the leader's heartbeats, too.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.mute.Load() {
		return errMute
	}
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	if err == nil && (req.PrevLogEntry > 0 || req.LeaderCommitIndex > 0) { // not a heartbeat: its main loop answers
		t.answers(id).Add(1)
		if resp.Success && len(req.Entries) > 0 {
			t.advances.Add(1)
		}
	}
	return err
}

// answers counts how often a follower's main loop answered this leader.
func (t *transport) answers(id raft.ServerID) *atomic.Uint64 {
	n, ok := t.heard.Load(id)
	if !ok {
		n, _ = t.heard.LoadOrStore(id, new(atomic.Uint64))
	}
	return n.(*atomic.Uint64)
}

// probe asks the main loop for a sign of life. The loop refuses a message of a
// protocol version that does not exist before it looks at anything else. The
// channel is closed when it has.
func (t *transport) probe() <-chan struct{} {
	alive := make(chan struct{})
	answer := make(chan raft.RPCResponse, 1)
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		select {
		case t.out <- raft.RPC{Command: &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax + 1}}, RespChan: answer}:
		case <-t.done:
			return
		}
		select {
		case <-answer:
			close(alive)
		case <-t.done:
		}
	}()
	return alive
}

// Close ends the transport; the library calls it when Raft has shut down.
func (t *transport) Close() error {
	t.once.Do(func() { close(t.done) })
	err := t.NetworkTransport.Close()
	t.NetworkTransport.CloseStreams()
	t.wg.Wait()
	return err
}

// heartbeat runs on the goroutine of a connection, which waits for the answer.
func (t *transport) heartbeat(rpc raft.RPC) {
	timer := time.NewTimer(t.grace)
	defer timer.Stop()
	for {
		select {
		case t.out <- rpc:
			return
		case <-t.done:
			return
		case <-timer.C:
			if t.respond(rpc) {
				return
			}
			timer.Reset(t.grace)
		}
	}
}

// respond answers yes for a busy main loop if this peer follows the sender in
// the sender's term. It writes nothing.
//
// Why that is sound: the term is read last, and a term is published before any
// vote of it leaves. A term equal to the request's, read after the request
// arrived, shows that this peer had until then voted for no newer leader; that
// is all a yes means. State and leader, read before, may be out of date only if
// the term is, too, or if the loop has just begun to stand for election, which
// bumps the term before it asks anybody.
func (t *transport) respond(rpc raft.RPC) bool {
	req, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if !ok {
		return false
	}
	r, ok := t.peek()
	if !ok || r.State() != raft.Follower {
		return false
	}
	if _, leader := r.LeaderWithID(); leader == "" || string(leader) != string(req.ID) {
		return false
	}
	last := r.LastIndex()
	if r.CurrentTerm() != req.Term {
		return false
	}
	rpc.Respond(&raft.AppendEntriesResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: req.ProtocolVersion},
		Term:      req.Term,
		LastLog:   last,
		Success:   true,
	}, nil)
	return true
}
