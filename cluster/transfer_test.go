package cluster

import (
	"errors"
	"testing"
)

// A voter that is down is not given leadership, by name or because it had most: the
// leader stays able to do everything. One that has just come back may be.
func TestTransferToAPeerThatIsDown(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	down := c.follower()
	id := down.cfg.ID
	c.propose(l, "before")
	c.same()
	c.stop(id)
	for range 20 { // the leader tries it less and less often
		c.propose(l, "while it is down")
	}
	term := l.Status().Term
	if err := l.Transfer(t.Context(), id); !errors.Is(err, ErrSilentPeer) {
		t.Errorf("to a peer that is down: %v", err)
	}
	if s := l.Status(); s.State != Leads || s.Term != term {
		t.Errorf("the leader is %s in term %d, and was in %d", s.State, s.Term, term)
	}
	c.propose(l, "at once")

	c.start(id)
	eventually(t, "it answers", func() bool { return c.nodes[id].Status().Leader != "" })
	if err := l.Transfer(t.Context(), id); err != nil && !errors.Is(err, ErrSilentPeer) {
		t.Errorf("to a peer that has just come back: %v", err)
	}
	c.propose(c.leader(), "at once, too")

	l = c.leader()
	down = c.follower()
	c.stop(down.cfg.ID)
	must(t, l.Transfer(t.Context(), ""))
	if now := c.leader().cfg.ID; now == l.cfg.ID || now == down.cfg.ID {
		t.Errorf("%s leads after %s handed over, and %s is down", now, l.cfg.ID, down.cfg.ID)
	}
}
