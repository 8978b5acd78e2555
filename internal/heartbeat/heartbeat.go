// Package heartbeat is a transport for hashicorp/raft that answers heartbeats
// in another way than the library, which lets a deposed leader forge entries
// (hashicorp/raft#695). It is a package of its own so that tests/jepsen/forged
// can attack the very code that the product runs with.
package heartbeat

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/internal/planted"
)

// Transport is the library's NetworkTransport with another way to answer
// heartbeats.
//
// The library answers them on the connection's goroutine, where they may
// depose a leader and set its term while its main loop is about to store an
// entry; the entry then carries the new term, forged. Here a heartbeat goes to
// the main loop like every other message. When the loop is busy, typically with
// the disk, the responder answers in its place, if the answer changes nothing:
// see respond.
//
// NetworkTransport is embedded, not wrapped, because the library finds
// pre-vote by a type assertion.
type Transport struct {
	*raft.NetworkTransport
	loop  chan raft.RPC // to the main loop
	done  chan struct{}
	wg    sync.WaitGroup
	once  sync.Once
	peek  func() (Peek, bool)
	grace time.Duration
}

// Grace is how long the product lets the main loop have the first say.
const Grace = 8 * time.Millisecond

// Peek is what the responder may see of Raft: methods that only read, safe for
// concurrent use.
type Peek interface {
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
	LastIndex() uint64
	CurrentTerm() uint64
	AppliedIndex() uint64 // what the state machine was given
}

var _ raft.WithPreVote = (*Transport)(nil) // else pre-vote silently disappears

// New wraps inner. The main loop has the first say for as long as grace. peek's second
// result is false until Raft runs. Run must follow.
func New(inner *raft.NetworkTransport, grace time.Duration, peek func() (Peek, bool)) *Transport {
	return &Transport{NetworkTransport: inner, loop: make(chan raft.RPC), done: make(chan struct{}), peek: peek, grace: grace}
}

// Run begins to carry messages from the connections to the main loop, but for
// those that take takes for itself, which is asked one after the other.
func (t *Transport) Run(take func(raft.RPC) bool) {
	t.wg.Go(func() {
		for {
			select {
			case rpc := <-t.NetworkTransport.Consumer():
				if !take(rpc) && !t.Offer(rpc) {
					return
				}
			case <-t.done:
				return
			}
		}
	})
}

// Consumer is where the main loop takes its messages from.
func (t *Transport) Consumer() <-chan raft.RPC { return t.loop }

// Loop is the other end of Consumer, and Done is closed when nobody takes
// anything from it any more.
func (t *Transport) Loop() chan<- raft.RPC { return t.loop }

// Done is closed by Close.
func (t *Transport) Done() <-chan struct{} { return t.done }

// Offer waits until the main loop takes rpc; false when the transport was closed.
func (t *Transport) Offer(rpc raft.RPC) bool {
	select {
	case t.loop <- rpc:
		return true
	case <-t.done:
		return false
	}
}

// SetHeartbeatHandler is called by the library with its own handler, which is
// not used.
func (t *Transport) SetHeartbeatHandler(stock func(raft.RPC)) {
	if planted.Is(planted.HeartbeatFastPath) {
		t.NetworkTransport.SetHeartbeatHandler(stock)
		return
	}
	t.NetworkTransport.SetHeartbeatHandler(t.heartbeat)
}

// Close ends the transport; the library calls it when Raft has shut down.
func (t *Transport) Close() error {
	t.once.Do(func() { close(t.done) })
	err := t.NetworkTransport.Close()
	t.CloseStreams()
	t.wg.Wait()
	return err
}

// heartbeat runs on the goroutine of a connection, which waits for the answer.
func (t *Transport) heartbeat(rpc raft.RPC) {
	timer := time.NewTimer(t.grace)
	defer timer.Stop()
	for {
		select {
		case t.loop <- rpc:
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
func (t *Transport) respond(rpc raft.RPC) bool {
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
