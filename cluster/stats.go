package cluster

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/internal/measure"
)

// Stats are figures of this peer since it started. They only grow, but for the
// last snapshots'.
type Stats struct {
	Elections     uint64 // this peer stood for
	LeaderChanges uint64 // a leader was learnt of, another or again
	DiskStalls    uint64 // writes to the log longer than Timing.Stall

	Applied, Refused, Unknown uint64               // proposals made at this peer, by outcome
	ProposedBytes             uint64               // of their commands
	Proposals                 measure.Distribution // until they were answered
	Rounds                    measure.Distribution // of read indexes, asked for by this peer
	RoundFailures             uint64               // of those
	Apply                     measure.Distribution // of entries by the state machine

	Taken, Installed SnapshotStats // snapshots of its own; of a leader's, Raft's part included
	SnapshotFailures uint64        // of its own
	InstallFailures  uint64        // what another attempt came before is none
}

// SnapshotStats are of one kind of snapshot.
type SnapshotStats struct {
	Count uint64
	Took  time.Duration // the last one
	Bytes int64         // the last one
}

// counters are what Stats is made of. Safe for concurrent use.
type counters struct {
	applied, refused, unknown, bytes  atomic.Uint64
	proposals, rounds, apply          measure.Histogram
	roundFailures                     atomic.Uint64
	taken, installed                  snapshotCounter
	snapshotFailures, installFailures atomic.Uint64
}

type snapshotCounter struct {
	count        atomic.Uint64
	nanos, bytes atomic.Int64 // of the last one
}

func (s *snapshotCounter) note(took time.Duration, bytes int64) {
	s.nanos.Store(int64(took))
	s.bytes.Store(bytes)
	s.count.Add(1)
}

func (s *snapshotCounter) read() SnapshotStats {
	return SnapshotStats{s.count.Load(), time.Duration(s.nanos.Load()), s.bytes.Load()}
}

// Stats returns the figures, without waiting for anything.
func (n *Node) Stats() Stats {
	c := &n.counters
	return Stats{
		Elections: n.hub.elections.Load(), LeaderChanges: n.hub.leaders.Load(), DiskStalls: n.stalls.Load(),
		Applied: c.applied.Load(), Refused: c.refused.Load(), Unknown: c.unknown.Load(), ProposedBytes: c.bytes.Load(),
		Proposals: c.proposals.Read(), Rounds: c.rounds.Read(), RoundFailures: c.roundFailures.Load(), Apply: c.apply.Read(),
		Taken: c.taken.read(), Installed: c.installed.read(), SnapshotFailures: c.snapshotFailures.Load(), InstallFailures: c.installFailures.Load(),
	}
}

// Alive is nil unless this peer stands still for good, as far as can be seen from
// outside Raft: then it has stopped by itself or is about to, or not even the
// watchdog moves any more. It waits for nothing. Being sealed, without a leader
// or not formed is alive.
func (n *Node) Alive() error {
	if err := n.Err(); err != nil {
		return err
	}
	if since := time.Since(n.started) - time.Duration(n.beat.Load()); n.running.Load() && since > n.cfg.Timing.Disk {
		return ErrNoProgress
	}
	return nil
}

// Tolerance is how many more voters may fail before there is no majority, by
// what this leader sees: it asks the others for their term. The answer takes as
// long as the slowest is waited for. ErrNoLeader: this peer does not lead.
func (n *Node) Tolerance() (int, error) {
	r := n.raft.Load()
	if r == nil || !n.leads() {
		return 0, ErrNoLeader
	}
	conf, term := r.GetConfiguration().Configuration(), r.CurrentTerm()
	votes := newTally(conf, n.cfg.ID)
	for id := range n.answering(conf, term) {
		votes.count(string(id), true)
	}
	if r.State() != raft.Leader || r.CurrentTerm() != term {
		return 0, ErrNoLeader
	}
	return max(0, votes.yes-votes.need), nil
}

// raise sets v to at least to.
func raise(v *atomic.Uint64, to uint64) {
	for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}

func ahead(a, b uint64) uint64 {
	if a > b {
		return a - b
	}
	return 0
}
