package cluster

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/internal/heartbeat"
)

// transport carries Raft's messages: heartbeats in our way (see
// internal/heartbeat), snapshots through installs. It also notes what the
// watchdog and the status want to know of what passes.
type transport struct {
	*heartbeat.Transport
	wg     sync.WaitGroup // of probes: none begins once it is closed
	mu     sync.Mutex     // guards closed
	closed bool

	installs *installs
	mute     atomic.Bool   // to followers: see watchdog
	heard    sync.Map      // raft.ServerID → *atomic.Uint64: see answers
	advances atomic.Uint64 // entries that followers took, in messages
	commit   atomic.Uint64 // greatest index that a leader said is committed
}

type peek = heartbeat.Peek

var errMute = errors.New("this leader's disk hangs; another peer should lead")

func newTransport(inner *raft.NetworkTransport, grace time.Duration, p func() (peek, bool), i *installs) *transport {
	t := &transport{Transport: heartbeat.New(inner, grace, p), installs: i}
	i.out, i.done = t.Loop(), t.Done()
	t.Run(t.pass)
	return t
}

// pass sees every message that is not a heartbeat, and takes snapshots.
func (t *transport) pass(rpc raft.RPC) (taken bool) {
	switch req := rpc.Command.(type) {
	case *raft.InstallSnapshotRequest:
		raise(&t.commit, req.LastLogIndex)
		t.installs.take(rpc, req)
		return true
	case *raft.AppendEntriesRequest:
		raise(&t.commit, req.LeaderCommitIndex)
		t.installs.follows(req)
	}
	return false
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return alive
	}
	t.wg.Go(func() {
		if !t.Offer(raft.RPC{Command: &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax + 1}}, RespChan: answer}) {
			return
		}
		select {
		case <-answer:
			close(alive)
		case <-t.Done():
		}
	})
	return alive
}

// Close ends the transport; the library calls it when Raft has shut down.
func (t *transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	err := t.Transport.Close()
	t.wg.Wait()
	return err
}
