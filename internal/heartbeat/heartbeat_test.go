package heartbeat

import (
	"errors"
	"io"
	"net"
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

// deaf is a network that nobody is on.
type deaf struct{ net.Listener }

func (deaf) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

func newDeaf(t *testing.T, grace time.Duration, p func() (Peek, bool)) *Transport {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := New(raft.NewNetworkTransport(deaf{listener}, 1, time.Second, io.Discard), grace, p)
	tr.Run(func(raft.RPC) bool { return false })
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
		tr := &Transport{peek: func() (Peek, bool) { return tc.raft, true }}
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
	tr := &Transport{peek: func() (Peek, bool) { return nil, false }}
	if rpc, _ := heartbeatOf("l", 1); tr.respond(rpc) {
		t.Error("answered before Raft runs")
	}
	vote := raft.RPC{Command: &raft.RequestVoteRequest{}, RespChan: make(chan raft.RPCResponse, 1)}
	tr.peek = func() (Peek, bool) { return fixedRaft{raft.Follower, "l", 0}, true }
	if tr.respond(vote) {
		t.Error("answered a vote")
	}
}

// A free main loop gets every heartbeat; a busy one those that change something.
func TestResponderLeavesTheMainLoopTheFirstSay(t *testing.T) {
	t.Parallel()
	follower := func() (Peek, bool) { return fixedRaft{raft.Follower, "l", 7}, true }

	free := newDeaf(t, time.Minute, follower)
	rpc, _ := heartbeatOf("l", 7)
	go free.heartbeat(rpc)
	if got := <-free.Consumer(); got.Command != rpc.Command {
		t.Error("the main loop got something else")
	}

	busy := newDeaf(t, time.Millisecond, follower)
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
