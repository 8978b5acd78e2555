package cluster

import (
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// move gives a stopped peer another address, which its own list has from now on.
func (c *testCluster) move(id string) (address string) {
	c.t.Helper()
	address = c.joiner(id)
	delete(c.joins, id)
	c.peers = slices.Clone(c.peers) // others may have been started with the old list
	for i := range c.peers {
		if c.peers[i].ID == id {
			c.peers[i].Address = address
		}
	}
	return address
}

// knows waits until the committed configuration has the addresses of c.peers.
func (c *testCluster) knows() {
	c.t.Helper()
	eventually(c.t, "the new addresses in every configuration", func() bool {
		for _, n := range c.nodes {
			for _, m := range n.Status().Members {
				if m.Address != c.address(m.ID) {
					return false
				}
			}
		}
		return true
	})
}

// All peers get other addresses at once, and each is told the new ones of all.
func TestAllPeersMoveAtOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.propose(c.leader(), "a")
	c.same()
	for _, p := range c.peers {
		c.stop(p.ID)
	}
	for _, p := range c.peers {
		c.move(p.ID)
	}
	c.startAll()
	c.propose(c.leader(), "b")
	c.knows()
	c.same()
	if n := len(c.nodes["n1"].Status().Members); n != 3 {
		t.Errorf("%d members", n)
	}
	for _, m := range c.leader().Status().Members {
		if !m.Voter {
			t.Errorf("%s lost its vote", m.ID)
		}
	}
}

// Peers move one after the other, and nobody is told: each is found because it
// finds another. In the end no address is what anybody was configured with, but
// for its own.
func TestPeersMoveUnannounced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	first := slices.Clone(c.peers)
	own := map[string]string{}
	c.tune = func(id string, cfg *Config) {
		cfg.Peers = slices.Clone(first)
		for i := range cfg.Peers {
			if a := own[id]; cfg.Peers[i].ID == id && a != "" {
				cfg.Peers[i].Address = a
			}
		}
	}
	c.startAll()
	for i, p := range first {
		c.leader()
		c.stop(p.ID)
		own[p.ID] = c.move(p.ID)
		c.start(p.ID)
		c.propose(c.leader(), string(rune('a'+i)))
		c.knows()
	}
	c.same()
	// Now all at once, to where they are: the log remembers.
	for _, p := range first {
		c.stop(p.ID)
	}
	c.startAll()
	c.propose(c.leader(), "at last")
	c.same()
}

// A peer that says it is somewhere where it is not, or asks for another, changes
// nothing.
func TestMovesAreChecked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	other := newTestCluster(t, "n1", "n2", "n3")
	other.ca = c.ca // same trust domain and ids, another cluster
	nowhere := listen(t, "127.0.0.1:0")
	must(t, nowhere.Close())
	c.startAll()
	other.startAll()
	c.same()
	other.leader()
	// What is asked while nobody leads, as on a busy machine, is asked again.
	answer := func(ask func() error) (err error) {
		eventually(t, "an answer of n1, leading", func() bool {
			c.leaderIs("n1")
			err = ask()
			return !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrNotReady) && !errors.Is(err, ErrUnknownOutcome)
		})
		return err
	}
	for _, x := range []struct {
		id, address string
		want, cause error
	}{
		{"n2", "name-that-is-not.invalid:1", ErrAddress, nil},
		{"n2", nowhere.Addr().String(), ErrAddress, nil},
		{"n2", c.address("n3"), ErrMember, nil},
		{"n2", other.address("n3"), ErrAddress, ErrWrongPeer},
		{"n2", other.address("n2"), ErrAddress, ErrForeignData},
		{"n2", "no port", ErrInvalidChange, nil},
		{"n9", c.address("n2"), ErrUnknownPeer, nil},
	} {
		err := answer(func() error {
			return c.nodes["n1"].change(short(t), peerpb.ChangeRequest_OP_MOVE, x.id, x.address)
		})
		if !errors.Is(err, x.want) || x.cause != nil && !errors.Is(err, x.cause) {
			t.Errorf("%s to %s: %v, want %v, %v", x.id, x.address, err, x.want, x.cause)
		}
		var dns *net.DNSError
		if x.address == "name-that-is-not.invalid:1" && !errors.As(err, &dns) {
			t.Errorf("%v is not about the name", err)
		}
	}
	err := answer(func() error {
		return c.nodes["n2"].alterOnce(short(t), peerpb.ChangeRequest_OP_MOVE, "n3", nowhere.Addr().String())
	})
	if !errors.Is(err, ErrInvalidChange) {
		t.Errorf("n2 moved n3: %v", err)
	}
	c.knows()
}

// A peer that joins is moved like any other, and keeps having no vote.
func TestLearnerMoves(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		if id == "n4" {
			cfg.Advertise = c.joins[id]
		}
	}
	c.startAll()
	l := c.leader()
	must(t, l.AddLearner(short(t), "n4", c.joiner("n4")))
	c.start("n4")
	c.propose(l, "a")
	c.same()
	c.stop("n4")
	address := c.joiner("n4")
	c.start("n4")
	c.propose(l, "b")
	c.same()
	for _, id := range []string{"n1", "n2", "n3"} {
		eventually(t, id+" knows where n4 is", func() bool { return slices.Contains(c.nodes[id].placesOf("n4"), address) })
	}
	if voter, known := c.member(l, "n4"); voter || !known {
		t.Errorf("n4: member %t, voter %t", known, voter)
	}
}
