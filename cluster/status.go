package cluster

import (
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// State is what a peer is doing.
type State string

const (
	Forming   State = "forming" // does not run Raft yet; Status.Problem says why
	Follower  State = "follower"
	Candidate State = "candidate"
	Leads     State = "leader"
	Removed   State = "removed" // was a member; serves nothing until it is added again
	Stopped   State = "stopped"
)

// Status is a picture of a peer; its parts are read one after the other.
type Status struct {
	ID            string
	State         State
	Leader        string // id; "" when none is known
	Term          uint64
	LastIndex     uint64 // of the log
	LastTerm      uint64 // of its last entry
	CommitIndex   uint64
	CommitCommand uint64 // greatest command index at or below CommitIndex: where AppliedIndex gets to
	AppliedIndex  uint64 // greatest command applied, see Node.Applied
	SnapshotIndex uint64
	Lag           uint64  // entries that a leader said are committed, and that are not applied here
	Alarms        []Alarm // that are on, by kind
	Members       []Member
	LastContact   time.Duration // since this peer heard the leader; 0 on the leader, -1 when it never did
	ClusterID     [16]byte
	Incarnation   uint64
	Formed        bool
	Problem       error // why forming or joining does not proceed, why the peer stopped, or ErrRemoved
}

// Member is a server in the latest configuration; before forming, a configured peer.
type Member struct {
	ID, Address string
	Voter       bool
}

// Status takes its picture without waiting for Raft or the disk.
func (n *Node) Status() Status {
	s := Status{ID: n.cfg.ID, State: Forming, LastContact: -1, AppliedIndex: n.Applied(), Alarms: n.alarms.list()}
	s.ClusterID, s.Incarnation, s.Formed = n.Identity()
	n.errMu.Lock()
	if s.Problem = n.err; s.Problem == nil {
		s.Problem = n.problem
	}
	n.errMu.Unlock()
	r := n.raft.Load()
	if r == nil {
		for _, p := range n.cfg.Peers {
			s.Members = append(s.Members, Member{p.ID, p.Address, true})
		}
		if n.ctx.Err() != nil {
			s.State = Stopped
		}
		return s
	}
	state := r.State()
	switch {
	case n.ctx.Err() != nil || state == raft.Shutdown:
		s.State = Stopped
	case n.removed.Load():
		s.State = Removed
	case state == raft.Leader:
		s.State = Leads
	case state == raft.Candidate:
		s.State = Candidate
	default:
		s.State = Follower
	}
	s.Leader = n.leader()
	s.Term, s.LastIndex, s.CommitIndex = r.CurrentTerm(), r.LastIndex(), r.CommitIndex()
	stats := r.Stats()
	s.SnapshotIndex, _ = strconv.ParseUint(stats["last_snapshot_index"], 10, 64)
	last := "last_log_term"
	if s.LastIndex == s.SnapshotIndex { // the log may be empty, or end before
		last = "last_snapshot_term"
	}
	s.LastTerm, _ = strconv.ParseUint(stats[last], 10, 64)
	s.CommitCommand = s.CommitIndex
	if s.State != Stopped {
		if command, err := n.reads.command(s.CommitIndex); err == nil {
			s.CommitCommand = command
		}
	}
	s.Lag = ahead(n.transport.commit.Load(), max(s.CommitIndex, s.SnapshotIndex)) + ahead(s.CommitCommand, s.AppliedIndex)
	if state == raft.Leader {
		s.LastContact = 0
	} else if t := r.LastContact(); !t.IsZero() {
		s.LastContact = time.Since(t)
	}
	for _, m := range r.GetConfiguration().Configuration().Servers {
		s.Members = append(s.Members, Member{string(m.ID), string(m.Address), m.Suffrage == raft.Voter})
	}
	return s
}

func (n *Node) leads() bool {
	r := n.raft.Load()
	return r != nil && r.State() == raft.Leader && n.ctx.Err() == nil
}

// leader is the id of the leader that this peer knows of, or "".
func (n *Node) leader() string {
	r := n.raft.Load()
	if r == nil {
		return ""
	}
	_, id := r.LeaderWithID()
	return string(id)
}

// Removed tells whether this peer knows that it is no member any more.
func (n *Node) Removed() bool { return n.removed.Load() }

func (n *Node) whyNoLeader() error {
	if n.removed.Load() {
		return fmt.Errorf("%w: %w", ErrNotReady, ErrRemoved)
	}
	if n.raft.Load() == nil {
		return fmt.Errorf("%w: the cluster has not formed", ErrNotReady)
	}
	return ErrNoLeader
}
