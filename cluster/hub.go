package cluster

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// hub tells the rest of the node that leadership moved, without ever making
// the library wait: its observations are only a hint to look again, so one that
// finds the buffer full may be dropped.
type hub struct {
	events   chan raft.Observation
	observer *raft.Observer

	elections, leaders atomic.Uint64 // this peer stood for; learnt of

	mu      sync.Mutex    // guards the rest
	changed chan struct{} // closed and replaced at each change
	leads   bool
	subs    []chan bool
	ended   bool
}

func newHub() *hub {
	h := &hub{events: make(chan raft.Observation, 64), changed: make(chan struct{})}
	h.observer = raft.NewObserver(h.events, false, func(o *raft.Observation) bool {
		switch seen := o.Data.(type) { // the library sees to it that each is counted
		case raft.RaftState:
			if seen == raft.Candidate {
				h.elections.Add(1)
			}
			return true
		case raft.LeaderObservation:
			if seen.LeaderID != "" {
				h.leaders.Add(1)
			}
			return true
		}
		return false
	})
	return h
}

func (h *hub) follow(r *raft.Raft) {
	r.RegisterObserver(h.observer)
	select {
	case h.events <- raft.Observation{}: // what happened before
	default:
	}
}

func (h *hub) unfollow(r *raft.Raft) { r.DeregisterObserver(h.observer) }

func (h *hub) publish(_ string, leads bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
	if leads == h.leads {
		return
	}
	h.leads = leads
	for _, s := range h.subs {
		offer(s, leads)
	}
}

// offer leaves the newest value in a channel of capacity 1.
func offer(s chan bool, v bool) {
	select {
	case <-s:
	default:
	}
	s <- v
}

// wait returns a channel that is closed when anything about leadership changes
// after the call.
func (h *hub) wait() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for _, s := range h.subs {
		close(s)
	}
	h.subs = nil
}

func (h *hub) subscribe() <-chan bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := make(chan bool, 1)
	if h.ended {
		close(s)
		return s
	}
	if h.leads {
		s <- true
	}
	h.subs = append(h.subs, s)
	return s
}

// LeaderChanges returns a new channel that says whether this peer leads, each
// time that changes; beginning with true if it leads now. A slow receiver sees
// only the newest value. It is closed when the node stops.
func (n *Node) LeaderChanges() <-chan bool { return n.hub.subscribe() }
