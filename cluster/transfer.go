package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// ErrSilentPeer: the voter that was to lead does not answer, or does not get what
// the log has. Leadership stays where it is.
var ErrSilentPeer = errors.New("the voter that is to lead does not answer, or lags; leadership stays where it is")

// TransferLeadership hands leadership to the peer to, or to the voter that has
// most when to is "". Only the leader can; ErrNoLeader otherwise. ErrSilentPeer
// and ErrUnknownPeer mean that nothing was done.
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	if !n.leads() {
		return fmt.Errorf("%w: this peer does not lead", ErrNoLeader)
	}
	r := n.raft.Load()
	var others []raft.Server
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter && string(s.ID) != n.cfg.ID {
			others = append(others, s)
		}
	}
	named, voter := find(raft.Configuration{Servers: others}, to)
	switch {
	case to == n.cfg.ID:
		return nil
	case len(others) == 0:
		return fmt.Errorf("%w: there is no other voter", ErrUnknownPeer)
	case to != "" && !voter:
		return fmt.Errorf("%w: %q is not a voter", ErrUnknownPeer, to)
	case to != "":
		others = []raft.Server{named}
	}
	next, err := n.successor(ctx, r, others)
	if err != nil {
		return err
	}
	if !n.queue.hold() {
		return ErrStopped
	}
	n.transfers.Add(1)
	done := make(chan error, 1)
	go func() {
		defer n.queue.fly.Done()
		defer n.transfers.Add(-1)
		done <- n.queue.settled(r.LeadershipTransferToServer(next.ID, next.Address))
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("transfer leadership: %w", err)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// successor is the first of the candidates that has, by its own word and in this
// leader's term, everything that the log has now. It is asked for before the
// library is, which waits for a peer that is down, or that it sends nothing to for
// a while because it was, and refuses all proposals meanwhile (hashicorp/raft#696).
func (n *Node) successor(ctx context.Context, r *raft.Raft, candidates []raft.Server) (raft.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, takeOverWithin)
	defer cancel()
	term, last := r.CurrentTerm(), r.LastIndex()
	found := make(chan raft.Server, len(candidates))
	for _, s := range candidates {
		go func() {
			for ctx.Err() == nil {
				if conn, err := n.peers.get(string(s.ID)); err == nil {
					resp, err := peerpb.NewPeerClient(conn).Term(ctx, &peerpb.TermRequest{Scope: n.scope()})
					// The release before this one does not say what it has.
					if err == nil && resp.GetRefusal() == peerpb.Refusal_REFUSAL_NONE && resp.GetTerm() == term && (resp.GetLast() >= last || resp.GetLast() == 0) {
						found <- s
						return
					}
				}
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}()
	}
	select {
	case s := <-found:
		return s, nil
	case <-ctx.Done():
	}
	if len(candidates) == 1 {
		return raft.Server{}, fmt.Errorf("%w (%s)", ErrSilentPeer, candidates[0].ID)
	}
	return raft.Server{}, fmt.Errorf("%w (any other)", ErrSilentPeer)
}

// TimeoutNow asks a peer to stand for election at once, and bounds the wait for
// its word: the library, which leaves a leader that transfers unable to do
// anything else, would wait for ten seconds (hashicorp/raft#696). A peer that
// hears it later stands later, like any other candidate.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	answer := new(raft.TimeoutNowResponse)
	done := make(chan error, 1)
	go func() { done <- t.NetworkTransport.TimeoutNow(id, target, args, answer) }()
	timer := time.NewTimer(takeOverWithin)
	defer timer.Stop()
	select {
	case err := <-done:
		*resp = *answer
		return err
	case <-timer.C:
		return fmt.Errorf("%w (%s)", ErrSilentPeer, id)
	}
}

// takeOverWithin bounds each of the two waits for a peer that is to lead: until it
// has what the log has, and until it says that it stands for election.
const takeOverWithin = time.Second
