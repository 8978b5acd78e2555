package cluster

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func configuration(voters, learners []string) (c raft.Configuration) {
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Suffrage: raft.Voter})
	}
	for _, id := range learners {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Suffrage: raft.Nonvoter})
	}
	return c
}

// What counts is what this leader saw in this term: a new one, and a member that
// is new, begin anew.
func TestSightings(t *testing.T) {
	t.Parallel()
	conf := configuration([]string{"n1", "n2", "n3"}, []string{"n4"})
	begin := time.Now()
	at := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	alive := func(ids ...raft.ServerID) map[raft.ServerID]bool {
		m := map[raft.ServerID]bool{}
		for _, id := range ids {
			m[id] = true
		}
		return m
	}
	s := sightings{gap: time.Hour}
	for i, step := range []struct {
		term   uint64
		alive  map[raft.ServerID]bool
		minute int
		id     string
		silent int
	}{
		{1, alive(), 0, "", 0},                  // nobody was seen yet, nobody is dead
		{1, alive("n2", "n4"), 10, "n3", 10},    //
		{1, alive("n2", "n4"), 15, "n3", 15},    //
		{1, alive("n2", "n3"), 20, "n4", 5},     // it is back
		{2, alive("n2"), 30, "", 0},             // another term: from now on
		{2, alive("n2", "n4"), 31, "n3", 1},     //
		{2, alive("n2", "n3", "n4"), 90, "", 0}, //
		{2, alive("n3", "n4"), 140, "n2", 50},
		{2, alive("n3", "n4"), 1000, "", 0}, // this process was frozen, and heard nobody
		{3, alive("n3", "n4"), 2000, "", 0}, //
	} {
		id, silent := s.look(conf, "n1", step.term, step.alive, at(step.minute))
		if id != step.id || silent != time.Duration(step.silent)*time.Minute {
			t.Errorf("step %d: %q silent for %s, want %q for %d min", i, id, silent, step.id, step.silent)
		}
	}
	s = sightings{gap: time.Hour, least: 3} // so that n3 must stay, and n4 goes, although it was heard later
	s.look(conf, "n1", 1, alive("n2", "n4"), at(0))
	s.look(conf, "n1", 1, alive("n2", "n4"), at(10))
	if id, silent := s.look(conf, "n1", 1, alive("n2"), at(20)); id != "n4" || silent != 10*time.Minute {
		t.Errorf("%q silent for %s", id, silent)
	}
	for _, x := range []struct {
		conf raft.Configuration
		id   string
		want bool
	}{
		{configuration([]string{"n1", "n2", "n3", "n4"}, nil), "n4", true},
		{configuration([]string{"n1", "n2", "n3"}, nil), "n3", false},
		{configuration([]string{"n1", "n2", "n3"}, []string{"n4"}), "n4", true},
	} {
		if mayClean(x.conf, x.id, 3) != x.want {
			t.Errorf("%s of %v", x.id, x.conf.Servers)
		}
	}
}

// Of five, two die: the first goes, then the other; a third that dies stays,
// because three voters are the least.
func TestDeadMembersAreRemoved(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3", "n4", "n5")
	var mu sync.Mutex
	var buried []string
	c.tune = func(id string, cfg *Config) {
		cfg.DeadAfter, cfg.MinVoters = 500*time.Millisecond, 3
		cfg.Bury = func(ctx context.Context, dead string, _ time.Duration) error {
			mu.Lock()
			buried = append(buried, dead)
			mu.Unlock()
			return c.nodes[id].Remove(ctx, dead)
		}
	}
	c.startAll()
	l := c.leaderIs("n1")
	c.propose(l, "a")
	c.same()
	c.stop("n4")
	c.stop("n5")
	eventually(t, "both are removed", func() bool { return len(c.leader().Status().Members) == 3 })
	mu.Lock()
	if len(buried) < 2 {
		t.Errorf("removed: %v", buried)
	}
	count := len(buried)
	mu.Unlock()
	c.stop("n3")
	l = c.leader()
	for deadline := time.Now().Add(1500 * time.Millisecond); time.Now().Before(deadline); {
		c.propose(l, "b") // the rest goes on
		if len(l.Status().Members) != 3 {
			t.Fatal("below the least number of voters")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(buried) != count {
		t.Errorf("removed: %v", buried)
	}
}
