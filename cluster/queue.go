package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
	"github.com/spike-ha/spike-ha/internal/planted"
)

// Result of a proposal that was applied.
type Result struct {
	Index, Term uint64
	Data        []byte // what the state machine answered
}

// Propose has command ordered and applied, and returns once the leader has
// applied it; the entry is then on the disks of a majority. Any peer may be
// asked. Proposals made at about the same time share an entry.
//
// It waits for a leader as long as ctx allows (Timing.Patience if ctx has no
// deadline). ErrNoLeader, ErrNotReady, ErrOverloaded, ErrTooLarge and
// ErrStopped mean that the command was certainly not proposed; an error that
// wraps none of those is ErrUnknownOutcome. command must not be changed until
// Propose returns.
func (n *Node) Propose(ctx context.Context, command []byte) (Result, error) {
	if len(command) > n.cfg.MaxCommandBytes {
		return Result{}, fmt.Errorf("%w: command of %d bytes, at most %d", ErrTooLarge, len(command), n.cfg.MaxCommandBytes)
	}
	if n.removed.Load() {
		return Result{}, n.whyNoLeader()
	}
	ctx, cancel := n.patient(ctx)
	defer cancel()
	defer n.counters.proposals.Since(time.Now())
	n.counters.bytes.Add(uint64(len(command)))
	it := newItem(command, false)
	if err := n.queue.add(it); err != nil {
		n.counters.refused.Add(1)
		return Result{}, err
	}
	out := n.queue.await(ctx, it)
	switch {
	case out.err == nil:
		n.counters.applied.Add(1)
	case !errors.Is(out.err, ErrUnknownOutcome):
		n.counters.refused.Add(1)
	default:
		n.counters.unknown.Add(1)
	}
	return out.result, out.err
}

// patient bounds a context that has no bound of its own.
func (n *Node) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, n.cfg.Timing.Patience)
}

// item is one waiting proposal. Its state decides what may truthfully be said
// when its proposer gives up: queued → withdrawn is certain; taken → abandoned
// is not.
type item struct {
	command []byte
	remote  bool // came from a follower: never forwarded again
	state   atomic.Int32
	out     chan itemOutcome // cap 1
}

const (
	itemQueued int32 = iota
	itemTaken
	itemWithdrawn
	itemAbandoned
)

type itemOutcome struct {
	result Result
	err    error
}

func newItem(command []byte, remote bool) *item {
	return &item{command: command, remote: remote, out: make(chan itemOutcome, 1)}
}

// queue collects proposals into batches: what waits when a place is free goes
// as one Raft entry (on the leader) or one message to the leader. There are two
// places, so that one batch is collected and sent while another is on its way.
type queue struct {
	n     *Node
	wake  chan struct{} // cap 1: something was added
	slots chan struct{} // cap 2
	told  lastTold      // for planted.HeartbeatFastPath alone
	fly   sync.WaitGroup

	refusals atomic.Uint64 // for a transfer of leadership, so far
	outcomes atomic.Uint64 // other ones

	mu     sync.Mutex // guards the rest
	items  []*item    // also some that were withdrawn: see gone
	live   int        // of items, those still queued
	bytes  int        // of those
	closed bool
}

const inFlight = 2

func newQueue(n *Node) *queue {
	places := inFlight
	if planted.Is(planted.HeartbeatFastPath) {
		places = 64 // see lastTold
	}
	return &queue{n: n, wake: make(chan struct{}, 1), slots: make(chan struct{}, places)}
}

func (q *queue) add(items ...*item) error {
	size := 0
	for _, it := range items {
		size += len(it.command)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrStopped
	}
	if q.live+len(items) > maxQueued || q.bytes+size > maxQueuedBytes {
		return ErrOverloaded
	}
	q.items = append(q.items, items...)
	q.live += len(items)
	q.bytes += size
	q.poke()
	return nil
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) await(ctx context.Context, it *item) itemOutcome {
	select {
	case out := <-it.out:
		return out
	case <-ctx.Done():
	}
	for { // again moves it back from taken to queued, so neither may hold at first
		if it.state.CompareAndSwap(itemQueued, itemWithdrawn) {
			q.gone(it)
			why := ErrNotReady
			if q.n.leader() == "" {
				why = ErrNoLeader
			}
			return itemOutcome{err: fmt.Errorf("%w (not proposed: %w)", why, context.Cause(ctx))}
		}
		if it.state.CompareAndSwap(itemTaken, itemAbandoned) {
			select {
			case out := <-it.out: // just in time
				return out
			default:
				return itemOutcome{err: fmt.Errorf("%w (%w)", ErrUnknownOutcome, context.Cause(ctx))}
			}
		}
	}
}

// gone frees the place of a withdrawn item, and now and then its memory.
func (q *queue) gone(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.live--
	q.bytes -= len(it.command)
	if len(q.items) > 2*q.live+maxBatchCommands {
		q.items = slices.DeleteFunc(q.items, func(it *item) bool { return it.state.Load() == itemWithdrawn })
	}
}

// take removes the next batch, leaving out what its proposers gave up.
func (q *queue) take() []*item {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []*item
	size, i := 0, 0
	for ; i < len(q.items) && len(batch) < maxBatchCommands; i++ {
		it := q.items[i]
		if len(batch) > 0 && size+len(it.command) > maxBatchBytes {
			break
		}
		if it.state.CompareAndSwap(itemQueued, itemTaken) {
			batch = append(batch, it)
			size += len(it.command)
		}
	}
	q.live -= len(batch)
	q.bytes -= size
	clear(q.items[:i])
	if q.items = q.items[i:]; len(q.items) == 0 {
		q.items = nil // lets the array go
	}
	return batch
}

// again puts back, in front, what was certainly not proposed; a remote item's
// follower decides for itself.
func (q *queue) again(batch []*item, why error) {
	var back []*item
	size := 0
	for _, it := range batch {
		if it.remote {
			it.answer(itemOutcome{err: why})
		} else if it.state.CompareAndSwap(itemTaken, itemQueued) {
			back = append(back, it)
			size += len(it.command)
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		for _, it := range back {
			it.answer(itemOutcome{err: ErrStopped})
		}
		return
	}
	q.items = append(back, q.items...)
	q.live += len(back)
	q.bytes += size
	q.poke()
}

func (it *item) answer(o itemOutcome) { it.out <- o }

// refuseRemote answers the items of followers when this peer does not lead.
func (q *queue) refuseRemote() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = slices.DeleteFunc(q.items, func(it *item) bool {
		if !it.remote {
			return false
		}
		if it.state.CompareAndSwap(itemQueued, itemTaken) {
			q.live--
			q.bytes -= len(it.command)
			it.answer(itemOutcome{err: ErrNotReady})
		}
		return true
	})
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) == 0
}

// run sends batches until the node stops.
func (q *queue) run() {
	for {
		select {
		case <-q.n.ctx.Done():
			return
		case <-q.wake:
		}
		for !q.empty() {
			select {
			case <-q.n.ctx.Done():
				return
			case q.slots <- struct{}{}:
			}
			if !q.dispatch() {
				<-q.slots
			}
		}
	}
}

// dispatch sends one batch, or waits a little for a leader. It reports whether
// the slot was used.
func (q *queue) dispatch() bool {
	changed := q.n.hub.wait()
	r := q.n.raft.Load()
	local := r != nil && r.State() == raft.Leader
	if planted.Is(planted.HeartbeatFastPath) && r != nil {
		local = q.told.leads(r)
	}
	leader := q.n.leader()
	if !local {
		q.refuseRemote()
		if leader == "" || leader == q.n.cfg.ID {
			q.pause(changed)
			return false
		}
	}
	if !q.hold() {
		return false
	}
	batch := q.take()
	if !local {
		batch = slices.DeleteFunc(batch, func(it *item) bool {
			if it.remote { // came after refuseRemote
				it.answer(itemOutcome{err: ErrNotReady})
			}
			return it.remote
		})
	}
	if len(batch) == 0 {
		q.fly.Done()
		return false
	}
	go func() {
		defer q.fly.Done()
		var back error
		if local {
			back = q.propose(r, batch)
		} else {
			back = q.forward(leader, batch)
		}
		if back != nil {
			// Not proposed: leadership is moving. Keep the slot meanwhile, so
			// that the queue does not spin.
			q.pause(changed)
			q.again(batch, back)
		}
		<-q.slots
	}()
	return true
}

// pause waits for a change of leadership, or a moment.
func (q *queue) pause(changed <-chan struct{}) {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-q.n.ctx.Done():
	}
}

// propose makes batch one Raft entry and answers its items. It returns an error
// when the batch was certainly not proposed.
func (q *queue) propose(r *raft.Raft, batch []*item) error {
	commands := make([][]byte, len(batch))
	for i, it := range batch {
		commands[i] = it.command
	}
	f := r.ApplyLog(raft.Log{Data: encodeEnvelope(commands)}, 10*time.Second)
	err := q.settled(f)
	if errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		q.refusals.Add(1)
	} else {
		q.outcomes.Add(1)
	}
	if notProposed(err) {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	var applied *applyResult
	if err == nil {
		if applied, _ = f.Response().(*applyResult); applied == nil || applied.err != nil {
			err = errMachineStopped
		}
	}
	for i, it := range batch {
		if err != nil {
			it.answer(itemOutcome{err: fmt.Errorf("%w: %w", ErrUnknownOutcome, err)})
			continue
		}
		it.answer(itemOutcome{result: Result{Index: f.Index(), Term: applied.term, Data: applied.results[i]}})
	}
	return nil
}

// settled waits for the library's answer, which it may owe for ever once it has
// shut down.
func (q *queue) settled(f raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- f.Error() }()
	select {
	case err := <-answer:
		return err
	case <-q.n.raftGone:
	}
	select {
	case err := <-answer:
		return err
	default:
		return raft.ErrRaftShutdown
	}
}

// notProposed tells the errors that the library gives only before an entry is
// stored. ErrRaftShutdown is not among them: it also ends entries that were
// committed but not yet applied.
func notProposed(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, raft.ErrEnqueueTimeout)
}

// forward sends batch to the leader and answers its items. It returns an error
// when all of the batch was certainly not proposed.
func (q *queue) forward(leader string, batch []*item) error {
	ctx, cancel := context.WithTimeout(q.n.ctx, q.n.cfg.Timing.Patience)
	defer cancel()
	go q.n.whileLedBy(ctx, leader, cancel)
	conn, err := q.n.peers.ready(ctx, leader)
	if err != nil {
		return fmt.Errorf("%w: leader %s: %w", ErrNotReady, leader, err)
	}
	req := &peerpb.ProposeRequest{Scope: q.n.scope(), Commands: make([][]byte, len(batch))}
	for i, it := range batch {
		req.Commands[i] = it.command
	}
	resp, err := peerpb.NewPeerClient(conn).Propose(ctx, req)
	if err == nil && len(resp.GetResults()) != len(batch) {
		err = fmt.Errorf("%d answers to %d proposals", len(resp.GetResults()), len(batch))
	}
	if err != nil {
		for _, it := range batch {
			it.answer(itemOutcome{err: fmt.Errorf("%w: forwarded to leader %s: %w", ErrUnknownOutcome, leader, err)})
		}
		return nil
	}
	var back []*item
	for i, it := range batch {
		switch a := resp.GetResults()[i]; a.GetOutcome() {
		case peerpb.Outcome_OUTCOME_APPLIED:
			it.answer(itemOutcome{result: Result{Index: a.GetIndex(), Term: a.GetTerm(), Data: a.GetData()}})
		case peerpb.Outcome_OUTCOME_NOT_PROPOSED:
			back = append(back, it)
		case peerpb.Outcome_OUTCOME_OVERLOADED:
			it.answer(itemOutcome{err: fmt.Errorf("leader %s: %w", leader, ErrOverloaded)})
		case peerpb.Outcome_OUTCOME_TOO_LARGE:
			it.answer(itemOutcome{err: fmt.Errorf("leader %s: %w", leader, ErrTooLarge)})
		default:
			it.answer(itemOutcome{err: fmt.Errorf("%w: leader %s could not tell", ErrUnknownOutcome, leader)})
		}
	}
	if len(back) == len(batch) {
		return ErrNotReady
	}
	q.again(back, ErrNotReady)
	return nil
}

// whileLedBy calls lost when there is another leader than leader, unless ctx ends
// first. One that was cut off or frozen says nothing, and whoever waits for its
// answer keeps others waiting.
func (n *Node) whileLedBy(ctx context.Context, leader string, lost func()) {
	for {
		changed := n.hub.wait()
		if now := n.leader(); now != "" && now != leader {
			lost()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// settle refuses new proposals and waits for those handed to Raft: the library
// leaves some unanswered when it shuts down, but answers all while it runs.
func (q *queue) settle(limit time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.drop()
	done := make(chan struct{})
	go func() {
		q.fly.Wait()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
	case <-q.n.hangs: // nothing will answer them
	case <-t.C:
		q.n.log.Warn("proposals are still under way; their outcome stays unknown")
	}
}

// drop answers what was never taken.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if it.state.CompareAndSwap(itemQueued, itemTaken) {
			it.answer(itemOutcome{err: ErrStopped})
		} // else withdrawn; gone finds nothing left to free but its own count
	}
	q.items, q.live, q.bytes = nil, 0, 0
}

// hold counts something else that the library owes an answer to, for settle. It
// is false once the node stops; otherwise fly.Done must follow.
func (q *queue) hold() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.fly.Add(1)
	return true
}
