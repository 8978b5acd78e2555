package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Changes of membership, on the leader. One at a time: members holds the place,
// and the library gets the index of the configuration that the decision was
// made on, so that a change which came in between makes it fail rather than
// meet a configuration that nobody has looked at.

// promoteBound is how many entries a learner may be behind when it becomes a
// voter: an election that waits for it must not wait long.
const promoteBound = 64

// change does what req asks for, or says why not.
func (n *Node) change(ctx context.Context, op peerpb.ChangeRequest_Op, id, address string) error {
	r := n.raft.Load()
	if r == nil || !n.leads() {
		return errNotLeader
	}
	if op == peerpb.ChangeRequest_OP_TRANSFER {
		err := n.TransferLeadership(ctx, id)
		if err != nil && !errors.Is(err, ErrUnknownPeer) && !errors.Is(err, ErrSilentPeer) && !errors.Is(err, ErrNoLeader) && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", ErrNotReady, err)
		}
		return err
	}
	if !n.members.TryLock() {
		return ErrChangeUnderWay
	}
	defer n.members.Unlock()
	// A new leader's configuration may hold a change that was never committed.
	round, cancel := context.WithTimeout(ctx, 2*n.roundTimeout())
	_, err := n.reads.round.do(round)
	cancel()
	if err != nil {
		return err
	}
	index, err := n.configurationIndex(r)
	if err != nil {
		return err
	}
	conf := r.GetConfiguration().Configuration()
	server, known := find(conf, id)
	if op != peerpb.ChangeRequest_OP_ADD && !known {
		return fmt.Errorf("%w: %q", ErrUnknownPeer, id)
	}
	voter := server.Suffrage == raft.Voter && known
	switch op {
	case peerpb.ChangeRequest_OP_ADD:
		if done, err := mayAdd(conf, id, address); done || err != nil {
			return err
		}
		n.log.Info("adding a learner", "id", id, "address", address)
		return n.commit(ctx, r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), index, changeTimeout))
	case peerpb.ChangeRequest_OP_PROMOTE:
		if voter {
			return nil
		}
		if err := n.caughtUp(ctx, r, id); err != nil {
			return err
		}
		n.log.Info("promoting a learner", "id", id)
		return n.commit(ctx, r.AddVoter(server.ID, server.Address, index, changeTimeout))
	case peerpb.ChangeRequest_OP_MOVE:
		done, err := mayMove(conf, server, address)
		if err == nil && !done {
			err = n.findAt(ctx, id, address)
		}
		if done || err != nil {
			return err
		}
		switch { // see address.go
		case id == n.cfg.ID:
			n.log.Info("this peer has moved", "from", server.Address, "to", address)
			return n.commit(ctx, r.AddVoter(server.ID, raft.ServerAddress(address), index, changeTimeout))
		case voter:
			if self, ok := find(conf, n.cfg.ID); ok && n.cfg.Advertise != "" && string(self.Address) != n.cfg.Advertise {
				// Or those that moved would take leadership from one another before they used it.
				return fmt.Errorf("%w: the leader has moved, too, and says so first", ErrNotReady)
			}
			n.log.Info("a voter has moved: it leads, to say so", "id", id, "from", server.Address, "to", address)
			if err := n.TransferLeadership(ctx, id); err != nil {
				return fmt.Errorf("%w: %w", ErrNotReady, err)
			}
		}
		return nil
	case peerpb.ChangeRequest_OP_DEMOTE, peerpb.ChangeRequest_OP_REMOVE:
		remove := op == peerpb.ChangeRequest_OP_REMOVE
		if !voter && !remove {
			return nil
		}
		if voter {
			if err := n.safeWithout(ctx, r, conf, id); err != nil {
				return err
			}
		}
		if id == n.cfg.ID { // somebody else must lead, and does it then
			if err := n.TransferLeadership(ctx, ""); err != nil {
				return fmt.Errorf("%w: %w", ErrNotReady, err)
			}
			return errNotLeader
		}
		n.log.Info("a member leaves the configuration, or becomes a learner", "id", id, "removed", remove)
		if remove {
			return n.commit(ctx, r.RemoveServer(server.ID, index, changeTimeout))
		}
		return n.commit(ctx, r.DemoteVoter(server.ID, index, changeTimeout))
	}
	return fmt.Errorf("%w: this version does not know the change %d", ErrInvalidChange, op)
}

// changeTimeout bounds the wait for the library's attention, not for the commit.
const changeTimeout = 5 * time.Second

func find(c raft.Configuration, id string) (raft.Server, bool) {
	for _, s := range c.Servers {
		if string(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// mayAdd checks an addition; done when it is there already.
func mayAdd(c raft.Configuration, id, address string) (done bool, err error) {
	if err := validID(id); err != nil {
		return false, fmt.Errorf("%w: %w", ErrInvalidChange, err)
	}
	if err := validAddress(address); err != nil {
		return false, err
	}
	if len(c.Servers) >= 100 {
		return false, fmt.Errorf("%w: the cluster has 100 members", ErrInvalidChange)
	}
	for _, s := range c.Servers {
		switch same := string(s.Address) == address; {
		case string(s.ID) == id && same && s.Suffrage != raft.Voter:
			return true, nil
		case string(s.ID) == id:
			return false, fmt.Errorf("%w: %s at %s; if it lost its data or moved, remove it first", ErrMember, id, s.Address)
		case same:
			return false, fmt.Errorf("%w: the member %s has the address %s", ErrMember, s.ID, address)
		}
	}
	return false, nil
}

// commit waits until the library has committed a change.
func (n *Node) commit(ctx context.Context, f raft.IndexFuture) error {
	if !n.queue.hold() {
		return ErrUnknownOutcome // it was handed over already
	}
	done := make(chan error, 1)
	go func() {
		defer n.queue.fly.Done()
		done <- n.queue.settled(f)
	}()
	select {
	case err := <-done:
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
			return errNotLeader
		case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		// What is left the library says before it stores anything: the configuration
		// changed since it was looked at, or must not become what was asked for.
		return fmt.Errorf("%w: %w", ErrChangeUnderWay, err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, context.Cause(ctx))
	}
}

// configurationIndex is where the newest configuration is in the log. The
// library does not tell (its future's index is always 0), and its statistics
// neither.
func (n *Node) configurationIndex(r *raft.Raft) (uint64, error) {
	for i := r.LastIndex(); i > 0; i-- {
		var l raft.Log
		err := n.cache.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			break
		}
		if err != nil {
			n.fail(err)
			return 0, err
		}
		if l.Type == raft.LogConfiguration {
			return i, nil
		}
	}
	list, err := n.kept().List()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if len(list) == 0 || list[0].ConfigurationIndex == 0 {
		return 0, fmt.Errorf("%w: the present configuration is not in the log", ErrNotReady)
	}
	return list[0].ConfigurationIndex, nil
}

// caughtUp looks twice: the learner must be near the commit index both times,
// and by the second have applied all that was committed at the first. Being
// near alone says nothing of an empty learner in a young cluster.
func (n *Node) caughtUp(ctx context.Context, r *raft.Raft, id string) error {
	first, err := n.reads.command(r.CommitIndex())
	if err != nil {
		return err
	}
	behind := func(applied, commit uint64) error { return &NotCaughtUpError{id, applied, commit, promoteBound} }
	applied, err := n.askTerm(ctx, r.CurrentTerm(), id)
	if err != nil {
		return fmt.Errorf("%w: %w", behind(0, first), err)
	}
	if applied+promoteBound < first {
		return behind(applied, first)
	}
	deadline := time.Now().Add(max(n.cfg.Timing.Heartbeat, 100*time.Millisecond))
	for pause := 5 * time.Millisecond; ; pause *= 2 {
		commit, err := n.reads.command(r.CommitIndex())
		if err != nil {
			return err
		}
		if applied, err = n.askTerm(ctx, r.CurrentTerm(), id); err != nil {
			return fmt.Errorf("%w: %w", behind(applied, commit), err)
		}
		if applied >= first && applied+promoteBound >= commit {
			return nil
		}
		if time.Now().After(deadline) {
			return behind(applied, commit)
		}
		n.reads.push() // an idle follower learns the commit index late
		select {
		case <-ctx.Done():
			return behind(applied, commit)
		case <-time.After(pause):
		}
	}
}

// safeWithout says whether those voters that are left without id are alive in
// sufficient number to go on.
func (n *Node) safeWithout(ctx context.Context, r *raft.Raft, conf raft.Configuration, id string) error {
	ctx, cancel := context.WithTimeout(ctx, n.dialTimeout()+n.roundTimeout())
	defer cancel()
	term := r.CurrentTerm()
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer, len(conf.Servers))
	voters, alive, asked := 0, 0, 0
	for _, s := range conf.Servers {
		if s.Suffrage != raft.Voter || string(s.ID) == id {
			continue
		}
		voters++
		if string(s.ID) == n.cfg.ID {
			alive++
			continue
		}
		asked++
		go func() {
			_, err := n.askTerm(ctx, term, string(s.ID))
			answers <- answer{string(s.ID), err}
		}()
	}
	risk := &QuorumError{ID: id, Voters: voters, Need: voters/2 + 1}
	for range asked {
		if a := <-answers; a.err != nil {
			risk.Unreachable = append(risk.Unreachable, a.id)
		} else {
			alive++
		}
	}
	if alive >= risk.Need {
		return nil
	}
	return risk
}

// askTerm asks a peer for what it has applied, and insists that it follows term.
func (n *Node) askTerm(ctx context.Context, term uint64, id string) (applied uint64, err error) {
	conn, err := n.peers.ready(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("peer %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, n.roundTimeout())
	defer cancel()
	resp, err := peerpb.NewPeerClient(conn).Term(ctx, &peerpb.TermRequest{Scope: n.scope()})
	switch {
	case err != nil:
		return 0, fmt.Errorf("peer %s: %w", id, err)
	case resp.GetRefusal() != peerpb.Refusal_REFUSAL_NONE:
		return 0, fmt.Errorf("peer %s: %v", id, resp.GetRefusal())
	case resp.GetTerm() != term:
		return 0, fmt.Errorf("peer %s is in term %d, not %d", id, resp.GetTerm(), term)
	}
	return resp.GetApplied(), nil
}
