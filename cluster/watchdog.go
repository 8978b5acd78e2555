package cluster

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// watchdog looks at Raft from outside, and ends what does not end by itself.
//
// A leader whose disk hangs in one write (Timing.Stall) falls silent: its main
// loop waits for the disk, but its heartbeats would go on, and so nobody would
// take over (hashicorp/raft#503, #612). The loop steps down when it comes back
// and finds that it heard from nobody. A peer whose disk hangs for longer
// (Timing.Disk) stops with ErrDiskHangs. A peer whose Raft does not move although
// it could (Timing.Progress) stops with ErrNoProgress, to be started again:
//
//   - its main loop does not take a message, outside disk and installs;
//   - its state machine does not come back from an entry, or is not given one
//     that is committed;
//   - as leader it refuses proposals for a transfer of leadership that nobody
//     asked for (hashicorp/raft#696);
//   - as leader it commits nothing of what it has, although a majority of the
//     voters' main loops answer its appends and none of them is catching up.
//
// A leader without a majority is none of that: nobody answers, and it steps
// down. Nor are a snapshot's install, however long, or an idle cluster.
//
// All bounds are counted in ticks of its own, not read from a clock: a process
// that was frozen has not seen them pass, and setting the clock changes nothing.
type watchdog struct {
	n    *Node
	tick time.Duration

	writes        stuck
	machine       stuck
	commit        stuck
	loop, refused int // ticks
	alive         <-chan struct{}

	refusals, outcomes uint64 // of the queue, at the last tick
	answers            map[raft.ServerID]uint64
}

// stuck counts ticks during which a value stayed the same.
type stuck struct {
	last  [4]uint64
	ticks int
}

// at returns for how many ticks, this one included, what is looked at has been
// waiting with the same values.
func (s *stuck) at(waiting bool, values ...uint64) int {
	var now [4]uint64
	copy(now[:], values)
	if s.ticks++; !waiting || now != s.last {
		s.ticks = 0
	}
	s.last = now
	return s.ticks
}

func (n *Node) watchdog() {
	t := n.cfg.Timing
	w := &watchdog{n: n, tick: max(min(t.Disk, t.Stall, t.Progress)/8, time.Millisecond), answers: make(map[raft.ServerID]uint64)}
	ticker := time.NewTicker(w.tick)
	defer ticker.Stop()
	for {
		select {
		case <-n.done: // until then somebody may wait for Raft
			return
		case <-ticker.C:
		}
		n.beat.Store(int64(time.Since(n.started)))
		err := w.disk()
		if r := n.raft.Load(); err == nil && r != nil && r.State() != raft.Shutdown {
			err = w.progress(r)
		}
		if err != nil {
			close(n.hangs)
			n.fail(err)
			return
		}
	}
}

// in is a bound in ticks.
func (w *watchdog) in(d time.Duration) int { return int(max((d+w.tick-1)/w.tick, 1)) }

func (w *watchdog) disk() error {
	n := w.n
	writes := n.store.writes.Load()
	ticks := w.writes.at(writes%2 == 1, writes)
	switch {
	case ticks >= w.in(n.cfg.Timing.Disk):
		return ErrDiskHangs
	case ticks >= w.in(n.cfg.Timing.Stall):
		if !n.transport.mute.Swap(true) {
			n.stalls.Add(1)
			n.alarms.raise(AlarmDiskStalls, fmt.Sprintf("a write to the Raft log takes longer than %v: look at this peer's disk. If it led, another peer takes over; after %v in one write it stops",
				n.cfg.Timing.Stall, n.cfg.Timing.Disk))
		}
	default:
		if n.transport.mute.Swap(false) {
			n.alarms.clear(AlarmDiskStalls)
		}
	}
	return nil
}

func (w *watchdog) progress(r *raft.Raft) error {
	n := w.n
	bound := w.in(n.cfg.Timing.Progress)
	installing := n.transport.installs.underWay()

	if w.alive == nil {
		w.alive = n.transport.probe()
	}
	select {
	case <-w.alive:
		w.alive, w.loop = nil, 0
	default:
		if installing || w.writes.ticks > 0 {
			w.loop = 0
		} else if w.loop++; w.loop >= bound {
			return fmt.Errorf("%w: its main loop takes no message", ErrNoProgress)
		}
	}

	calls, applied, commit := n.machine.calls.Load(), r.AppliedIndex(), r.CommitIndex()
	if w.machine.at(calls%2 == 1 || applied < commit && !installing, calls, applied, commit) >= bound {
		return fmt.Errorf("%w: the state machine stays at index %d, committed is %d", ErrNoProgress, n.Applied(), commit)
	}

	leads := r.State() == raft.Leader
	refusals, outcomes := n.queue.refusals.Load(), n.queue.outcomes.Load()
	switch {
	case !leads || outcomes != w.outcomes || n.transfers.Load() > 0:
		w.refused = 0
	case refusals != w.refusals:
		w.refused++
	}
	w.refusals, w.outcomes = refusals, outcomes
	if w.refused >= min(bound, w.in(max(10*n.cfg.Timing.Election, 5*time.Second))) {
		return fmt.Errorf("%w: a transfer of leadership never ended, and it refuses proposals", ErrNoProgress)
	}

	waits := w.majority(r) && leads && r.LastIndex() > commit
	if w.commit.at(waits, commit, r.CurrentTerm(), n.transport.advances.Load()) >= bound {
		return fmt.Errorf("%w: index %d was not committed, although a majority answers", ErrNoProgress, commit+1)
	}
	return nil
}

// majority tells whether the main loops of a majority of the voters answered
// this leader's appends since the last tick.
func (w *watchdog) majority(r *raft.Raft) bool {
	votes := newTally(r.GetConfiguration().Configuration(), w.n.cfg.ID)
	for id := range votes.waiting {
		now := w.n.transport.answers(raft.ServerID(id)).Load()
		votes.count(id, now != w.answers[raft.ServerID(id)])
		w.answers[raft.ServerID(id)] = now
	}
	return votes.won()
}
