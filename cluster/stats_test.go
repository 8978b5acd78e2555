package cluster

import (
	"context"
	"errors"
	"testing"
	"time"
)

// The figures follow what happens: proposals by outcome, rounds, applied
// entries, elections, snapshots.
func TestStats(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l, f := c.leader(), c.follower()
	before, there := f.Stats(), l.Stats()
	for range 3 {
		c.propose(f, "abc")
	}
	if _, err := f.Propose(context.Background(), make([]byte, f.cfg.MaxCommandBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := f.WaitRead(context.Background()); err != nil {
		t.Fatal(err)
	}
	s := f.Stats()
	if s.Applied-before.Applied != 3 || s.ProposedBytes-before.ProposedBytes != 9 || s.Proposals.Count()-before.Proposals.Count() != 3 || s.Refused != 0 || s.Unknown != 0 {
		t.Errorf("proposals: %+v, before %+v", s, before)
	}
	if s.Rounds.Count() <= before.Rounds.Count() || s.Apply.Count() <= before.Apply.Count() {
		t.Errorf("%d rounds, %d entries; before %d, %d", s.Rounds.Count(), s.Apply.Count(), before.Rounds.Count(), before.Apply.Count())
	}
	if now := l.Stats(); now.Applied != there.Applied || now.Elections == 0 || now.LeaderChanges == 0 || s.LeaderChanges == 0 {
		t.Errorf("the leader: %+v, before %+v", now, there)
	}
	if err := l.snapshot(l.raft.Load()); err != nil {
		t.Fatal(err)
	}
	if taken := l.Stats().Taken; taken.Count != 1 || taken.Bytes <= 0 || taken.Took <= 0 {
		t.Errorf("taken: %+v", taken)
	}

	// How many may fail is the leader's to say, by who answers it.
	if n, err := l.Tolerance(); n != 1 || err != nil {
		t.Errorf("of three: %d, %v", n, err)
	}
	if _, err := f.Tolerance(); !errors.Is(err, ErrNoLeader) {
		t.Errorf("a follower: %v", err)
	}
	c.stop(f.cfg.ID)
	if n, err := l.Tolerance(); n != 0 || err != nil {
		t.Errorf("of three, one down: %d, %v", n, err)
	}
	if err := l.Alive(); err != nil {
		t.Errorf("the leader: %v", err)
	}
}

// A peer lags by what a leader said is committed, also when it has not got it.
func TestLag(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	f := c.follower()
	c.propose(f, "a")
	var s Status
	eventually(t, "told of what is committed, and no lag", func() bool {
		s = f.Status()
		heard := f.transport.commit.Load()
		return s.Lag == 0 && heard > 0 && heard >= s.CommitIndex && s.AppliedIndex > 0
	})
	raise(&f.transport.commit, s.CommitIndex+7)
	if got := f.Status().Lag; got != 7 {
		t.Errorf("7 entries away: %d", got)
	}
}

// A peer whose watchdog does not look any more is not alive; see also
// stopsWithoutProgress.
func TestAlive(t *testing.T) {
	t.Parallel()
	n := &Node{cfg: Config{Timing: Timing{Disk: time.Second}}, started: time.Now().Add(-time.Minute)}
	if err := n.Alive(); err != nil {
		t.Errorf("not running yet: %v", err)
	}
	n.running.Store(true)
	if err := n.Alive(); !errors.Is(err, ErrNoProgress) {
		t.Errorf("nobody looked for a minute: %v", err)
	}
	n.beat.Store(int64(time.Minute))
	if err := n.Alive(); err != nil {
		t.Errorf("looked just now: %v", err)
	}
}
