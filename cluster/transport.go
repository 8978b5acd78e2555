package cluster

import (
	"sync"
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
}

// peek is what the responder may see of Raft: methods that only read, safe for
// concurrent use.
type peek interface {
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	LastIndex() uint64
	CurrentTerm() uint64
}

func newTransport(inner *raft.NetworkTransport, grace time.Duration, p func() (peek, bool)) *transport {
	t := &transport{NetworkTransport: inner, out: make(chan raft.RPC), done: make(chan struct{}), peek: p, grace: grace}
	t.wg.Add(1)
	go t.pump()
	return t
}

func (t *transport) pump() {
	defer t.wg.Done()
	for {
		select {
		case rpc := <-t.NetworkTransport.Consumer():
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
