package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/planted"
)

// WaitRead returns an index such that every proposal acknowledged anywhere
// before the call is at or below it, once this peer's own state machine has
// applied it. What is read from the state machine then is linearizable.
//
// It tries again, with a new round each time, as long as ctx allows
// (Timing.Patience if ctx has no deadline). Errors: ErrNoLeader, ErrNotReady,
// ErrStopped. The index belongs to this call; do not keep it for another.
func (n *Node) WaitRead(ctx context.Context) (uint64, error) {
	ctx, cancel := n.patient(ctx)
	defer cancel()
	if planted.Is(planted.ReadWithoutRound) {
		return n.Applied(), nil
	}
	for {
		if n.removed.Load() {
			return 0, n.whyNoLeader()
		}
		changed := n.hub.wait()
		index, err := n.reads.ask.do(ctx)
		if err == nil {
			err = n.waitApplied(ctx, index)
			if err == nil {
				failpoint.Hit(failpoint.ClusterReadApplied)
				return index, nil
			}
		}
		if n.ctx.Err() != nil {
			return 0, ErrStopped
		}
		pause := time.NewTimer(10 * time.Millisecond)
		select {
		case <-changed:
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		if ctx.Err() != nil {
			if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrNotReady) {
				err = fmt.Errorf("%w: %w", ErrNotReady, err)
			}
			return 0, err
		}
	}
}

func (n *Node) waitApplied(ctx context.Context, index uint64) error {
	ch, stop := n.machine.wait(index)
	defer stop()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: index %d is not applied here yet (at %d): %w", ErrNotReady, index, n.Applied(), context.Cause(ctx))
	case <-n.ctx.Done():
		return ErrStopped
	}
}

// Applied is the index of the last command that this peer's state machine has
// applied. It counts commands alone: other entries of the log never show in it.
func (n *Node) Applied() uint64 { return n.machine.applied.Load() }

// reads groups read-index rounds. ask is this peer's question to the leader,
// round the leader's question to the voters.
type reads struct {
	n     *Node
	ask   *rounds
	round *rounds

	ready   atomic.Uint64 // a term of this peer's in which it has committed
	barrier atomic.Bool   // one is under way

	mu   sync.Mutex // guards memo
	memo struct{ commit, command uint64 }
}

func newReads(n *Node) *reads {
	r := &reads{n: n}
	r.ask = newRounds(n, r.askLeader)
	r.round = newRounds(n, r.confirm)
	return r
}

// rounds shares one run of f among the callers that arrived before it began.
// A caller that arrives while a run is going on is never given that run's
// answer. A few runs may overlap, so that a lost message delays only those who
// waited for it.
type rounds struct {
	n     *Node
	f     func(context.Context) (uint64, error)
	slots chan struct{}

	mu   sync.Mutex // guards next
	next *round     // not yet begun
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

func newRounds(n *Node, f func(context.Context) (uint64, error)) *rounds {
	return &rounds{n: n, f: f, slots: make(chan struct{}, 2)}
}

// do joins the next run, or starts it. Runs outlive the callers, not the node.
func (g *rounds) do(ctx context.Context) (uint64, error) {
	g.mu.Lock()
	mine := g.next
	if mine == nil {
		mine = &round{done: make(chan struct{})}
		if !g.n.begin() {
			g.mu.Unlock()
			return 0, ErrStopped
		}
		g.next = mine
		go g.run(g.n.ctx, mine)
	}
	g.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrNotReady, context.Cause(ctx))
	}
}

func (g *rounds) run(life context.Context, r *round) {
	defer g.n.wg.Done()
	defer close(r.done)
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	case <-life.Done():
		r.err = ErrStopped
	}
	g.mu.Lock()
	g.next = nil // from here on callers get a later run
	g.mu.Unlock()
	if r.err == nil {
		r.index, r.err = g.f(life)
	}
}

// askLeader gets a read index from whoever leads.
func (r *reads) askLeader(ctx context.Context) (uint64, error) {
	begun := time.Now()
	index, err := r.askOnce(ctx)
	r.n.counters.rounds.Since(begun)
	if err != nil {
		r.n.counters.roundFailures.Add(1)
	}
	return index, err
}

func (r *reads) askOnce(ctx context.Context) (uint64, error) {
	n := r.n
	ctx, cancel := context.WithTimeout(ctx, n.roundTimeout())
	defer cancel()
	if n.leads() {
		return r.round.do(ctx)
	}
	leader := n.leader()
	if leader == "" || leader == n.cfg.ID {
		return 0, n.whyNoLeader()
	}
	conn, err := n.peers.get(leader)
	if err != nil {
		return 0, fmt.Errorf("%w: leader %s: %w", ErrNotReady, leader, err)
	}
	resp, err := peerpb.NewPeerClient(conn).ReadIndex(ctx, &peerpb.ReadIndexRequest{Scope: n.scope(), Applied: n.Applied()})
	if err != nil {
		return 0, fmt.Errorf("%w: leader %s: %w", ErrNotReady, leader, err)
	}
	switch resp.GetRefusal() {
	case peerpb.Refusal_REFUSAL_NONE:
		return resp.GetIndex(), nil
	case peerpb.Refusal_REFUSAL_NOT_LEADER:
		return 0, fmt.Errorf("%w (%s leads no longer)", ErrNoLeader, leader)
	default:
		return 0, fmt.Errorf("%w: leader %s: %v", ErrNotReady, leader, resp.GetRefusal())
	}
}

func (n *Node) roundTimeout() time.Duration { return max(n.cfg.Timing.Heartbeat, 200*time.Millisecond) }

func (s service) ReadIndex(ctx context.Context, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	if !s.n.ours(req.GetScope()) {
		return &peerpb.ReadIndexResponse{Refusal: peerpb.Refusal_REFUSAL_FOREIGN}, nil
	}
	if !s.n.leads() {
		return &peerpb.ReadIndexResponse{Refusal: peerpb.Refusal_REFUSAL_NOT_LEADER}, nil
	}
	index, err := s.n.reads.round.do(ctx)
	switch {
	case errors.Is(err, ErrNoLeader):
		return &peerpb.ReadIndexResponse{Refusal: peerpb.Refusal_REFUSAL_NOT_LEADER}, nil
	case errors.Is(err, errNoMajority):
		return &peerpb.ReadIndexResponse{Refusal: peerpb.Refusal_REFUSAL_NO_MAJORITY}, nil
	case err != nil:
		return &peerpb.ReadIndexResponse{Refusal: peerpb.Refusal_REFUSAL_NOT_READY}, nil
	}
	if req.GetApplied() < index {
		s.n.reads.push()
	}
	return &peerpb.ReadIndexResponse{Index: index}, nil
}

var errNoMajority = fmt.Errorf("%w: no majority of the voters confirmed the leader's term", ErrNotReady)

// confirm is one read-index round of the leader. Everything it relies on was
// asked for after it began:
//
// The leader of term T takes its commit index c; an entry of T at or below c
// shows that nothing committed before T is above c. Then it asks the voters for
// their terms. A voter's term never falls, and is published before a vote of it
// leaves; so a voter that answers T had not voted in any later term when it was
// asked. Were there a later leader with something committed before the round
// began, a majority had voted for it by then, and one of the two majorities'
// common members would answer with the later term. So c covers everything that
// was acknowledged before the round began.
func (r *reads) confirm(ctx context.Context) (uint64, error) {
	n := r.n
	ra := n.raft.Load()
	if ra == nil {
		return 0, ErrNotReady
	}
	term := ra.CurrentTerm()
	if ra.State() != raft.Leader {
		return 0, ErrNoLeader
	}
	commit := ra.CommitIndex()
	if r.ready.Load() != term {
		// Entries of a leader's own term have only such above them, so this
		// need be seen once in a term.
		var l raft.Log
		err := n.cache.GetLog(commit, &l)
		if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			n.fail(err)
		}
		if err != nil || l.Term != term {
			return 0, fmt.Errorf("%w: the leader has not committed in its term %d yet", ErrNotReady, term)
		}
		r.ready.Store(term)
	}
	if err := r.poll(ctx, ra, term); err != nil {
		return 0, err
	}
	failpoint.Hit(failpoint.ClusterReadConfirmed)
	index, err := r.command(commit)
	if err != nil {
		return 0, err
	}
	if ra.State() != raft.Leader || ra.CurrentTerm() != term {
		return 0, ErrNoLeader
	}
	return index, nil
}

// poll asks the voters for their term, and returns once a majority, this peer
// included if it is a voter, is in term.
func (r *reads) poll(ctx context.Context, ra *raft.Raft, term uint64) error {
	n := r.n
	votes := newTally(ra.GetConfiguration().Configuration(), n.cfg.ID)
	switch {
	case votes.won() || planted.Is(planted.LeaderUnasked):
		return nil
	case planted.Is(planted.VerifyLeader):
		return ra.VerifyLeader().Error()
	}
	ctx, cancel := context.WithTimeout(ctx, n.roundTimeout())
	defer cancel()
	type answer struct {
		id string
		ok bool
	}
	answers := make(chan answer, len(votes.waiting))
	for id := range votes.waiting {
		go func() {
			conn, err := n.peers.get(id)
			if err == nil {
				var resp *peerpb.TermResponse
				resp, err = peerpb.NewPeerClient(conn).Term(ctx, &peerpb.TermRequest{Scope: n.scope()})
				if err == nil && (resp.GetRefusal() != peerpb.Refusal_REFUSAL_NONE || resp.GetTerm() != term) {
					err = ErrNotReady
				}
			}
			answers <- answer{id, err == nil}
		}()
	}
	for !votes.won() {
		if votes.lost() {
			return errNoMajority
		}
		select {
		case a := <-answers:
			votes.count(a.id, a.ok)
		case <-ctx.Done():
			return errNoMajority
		}
	}
	return nil
}

// tally counts voters' answers, once each. Learners have no say.
type tally struct {
	waiting   map[string]bool
	yes, need int
}

func newTally(c raft.Configuration, self string) *tally {
	t := &tally{waiting: make(map[string]bool)}
	voters := 0
	for _, s := range c.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if string(s.ID) == self {
			t.yes++
		} else {
			t.waiting[string(s.ID)] = true
		}
	}
	t.need = voters/2 + 1
	return t
}

func (t *tally) count(id string, yes bool) {
	if !t.waiting[id] {
		return
	}
	delete(t.waiting, id)
	if yes {
		t.yes++
	}
}

func (t *tally) won() bool  { return t.yes >= t.need }
func (t *tally) lost() bool { return t.yes+len(t.waiting) < t.need }

// command translates a commit index into one that every state machine reaches:
// the greatest command index at or below it, or a later one that is applied
// here already (and so committed). Elections, barriers and configurations make
// entries that no state machine sees.
//
// It walks down from commit to what is applied. Entries in between can be
// missing only if a snapshot covers them, and so the state machine had them:
// then what is applied is read again. Applied counts commands on every peer,
// restored ones included (see machine), so an asker gets there from any
// snapshot.
func (r *reads) command(commit uint64) (uint64, error) {
	applied := r.n.machine.applied.Load()
	if applied >= commit {
		return applied, nil
	}
	r.mu.Lock()
	memo := r.memo
	r.mu.Unlock()
	found := uint64(0)
	for i := commit; ; i-- {
		if i == memo.commit && memo.command >= applied {
			found = memo.command
			break
		}
		if i <= applied {
			found = applied
			break
		}
		var l raft.Log
		err := r.n.cache.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			return r.n.machine.applied.Load(), nil
		}
		if err != nil {
			r.n.fail(err)
			return 0, err
		}
		if l.Type == raft.LogCommand {
			found = i
			break
		}
	}
	r.mu.Lock()
	if commit > r.memo.commit {
		r.memo.commit, r.memo.command = commit, found
	}
	r.mu.Unlock()
	return found, nil
}

// push makes the commit index reach a follower that lags. It travels only with
// the next entries, or after the commit timeout; if nothing is on its way a
// barrier is, one at a time.
func (r *reads) push() {
	ra := r.n.raft.Load()
	if ra == nil || ra.LastIndex() > ra.CommitIndex() || !r.barrier.CompareAndSwap(false, true) {
		return
	}
	if !r.n.queue.hold() {
		r.barrier.Store(false)
		return
	}
	go func() {
		defer r.n.queue.fly.Done()
		defer r.barrier.Store(false)
		_ = r.n.queue.settled(ra.Barrier(time.Second))
	}()
}
