package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// vault is what is kept elsewhere, for any number of sets of peers.
type vault struct {
	mu      sync.Mutex
	claims  map[uint64]Attempt
	next    uint64
	id      [16]byte
	entries []string
	claimed func(Attempt) error // what becomes of a claim that has succeeded
	refuse  error               // claims are refused before anything happens
	reads   int
}

func newVault(entries ...string) *vault {
	return &vault{claims: map[uint64]Attempt{}, next: 8, id: vaultID, entries: entries}
}

var vaultID = [16]byte{1, 2, 3}

var errClaimed = errors.New("somebody else claimed it")

// origin is the vault as one peer sees it.
type origin struct {
	*vault
	node func() *Node                                             // nil until it was started
	hold func(ctx context.Context, id string, promote bool) error // before a peer is taken in
}

func (o origin) Read(_ context.Context, begun *Attempt) (Seeding, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reads++
	s := Seeding{ClusterID: o.id, Incarnation: o.next, Index: 1 << 20, Term: 6, StateIndex: 50, StateTerm: 5}
	if begun != nil {
		s.Incarnation = begun.Incarnation
	}
	var list [][]byte
	for _, e := range o.entries {
		list = append(list, []byte(e))
	}
	s.State = journalSnapshot{list, 50}
	return s, nil
}

func (o origin) Claim(_ context.Context, a Attempt) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refuse != nil {
		return o.refuse
	}
	if by, taken := o.claims[a.Incarnation]; taken && by.Nonce != a.Nonce {
		return fmt.Errorf("%w: %s", errClaimed, by.Peers[0].Address)
	}
	o.claims[a.Incarnation] = a
	if o.claimed != nil {
		return o.claimed(a)
	}
	return nil
}

func (o origin) TakeIn(ctx context.Context, id, address string, promote bool) error {
	if o.hold != nil {
		if err := o.hold(ctx, id, promote); err != nil {
			return err
		}
	}
	if o.node() == nil {
		return ErrNotReady
	}
	if promote {
		return o.node().Promote(ctx, id)
	}
	return o.node().AddLearner(ctx, id, address)
}

// restores has the peers begin with what v has.
func (c *testCluster) restores(v *vault, more func(id string, cfg *Config, o *origin)) {
	c.tune = func(id string, cfg *Config) {
		o := origin{vault: v, node: func() *Node {
			n, _ := c.latest.Load(id)
			node, _ := n.(*Node)
			return node
		}}
		cfg.ColdStart = true
		if more != nil {
			more(id, cfg, &o)
		}
		cfg.Origin = o
	}
}

// wholeAgain waits until all peers are voters with what was kept.
func (c *testCluster) wholeAgain(v *vault) {
	c.t.Helper()
	eventually(c.t, "all are voters", func() bool {
		for _, n := range c.nodes {
			voters := 0
			for _, m := range n.Status().Members {
				if m.Voter && n.raft.Load() != nil {
					voters++
				}
			}
			if voters != len(c.peers) {
				return false
			}
		}
		return true
	})
	c.leader()
	c.propose(c.nodes[c.peers[1].ID], "after")
	if got, want := strings.Join(c.same(), " "), strings.Join(append(append([]string(nil), v.entries...), "after"), " "); got != want {
		c.t.Errorf("%s, not %s", got, want)
	}
	for id, n := range c.nodes {
		if got, inc, ok := n.Identity(); !ok || got != vaultID || inc != 8 {
			c.t.Errorf("%s is of %x, incarnation %d", id, got, inc)
		}
		if s := n.Status(); s.LastTerm <= 6 || s.LastIndex <= 1<<20 {
			c.t.Errorf("%s goes on at entry %d of term %d, which the cluster before may have had", id, s.LastIndex, s.LastTerm)
		}
	}
	eventually(c.t, "nobody is awaited any more", func() bool { return !takesIn(c.nodes[c.peers[0].ID].marker.Load()) })
}

func problem(t *testing.T, n *Node, is error, words string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s says %v, %q", n.cfg.ID, is, words), func() bool {
		err := n.Status().Problem
		return errors.Is(err, is) && strings.Contains(err.Error(), words)
	})
}

// The coordinator dies at each step of a cold start, and what it began goes on when it is back.
func TestColdStartSurvivesACrashAtEachStep(t *testing.T) {
	t.Parallel()
	errCrash := errors.New("crashed")
	for step, crash := range map[string]func(reached func(), cfg *Config, o *origin){
		"none": func(reached func(), _ *Config, _ *origin) { reached() },
		"attempt": func(reached func(), cfg *Config, _ *origin) {
			cfg.afterMarker = func(ctx context.Context, p peerpb.Phase) error {
				if p == peerpb.Phase_PHASE_PREPARED {
					reached()
					<-ctx.Done()
				}
				return errCrash
			}
		},
		"claimed": func(reached func(), cfg *Config, o *origin) { // failed, but persisted
			o.vault.claimed = func(Attempt) error { reached(); return errCrash }
		},
		"refused": func(reached func(), cfg *Config, o *origin) { // failed
			o.vault.refuse = errCrash
			time.AfterFunc(time.Millisecond, reached)
		},
		"seeding": func(reached func(), cfg *Config, o *origin) {
			cfg.afterMarker = func(ctx context.Context, p peerpb.Phase) error {
				if p == peerpb.Phase_PHASE_STARTED {
					reached()
					<-ctx.Done()
					return errCrash
				}
				return nil
			}
		},
		"learner": func(reached func(), cfg *Config, o *origin) {
			o.hold = func(ctx context.Context, id string, promote bool) error { reached(); return errCrash }
		},
		"vote": func(reached func(), cfg *Config, o *origin) {
			o.hold = func(ctx context.Context, id string, promote bool) error {
				if id == "n3" && promote {
					reached()
					return errCrash
				}
				return nil
			}
		},
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a", "b")
			reached := make(chan struct{})
			var once sync.Once
			c.restores(v, func(id string, cfg *Config, o *origin) {
				if id == "n1" {
					crash(func() { once.Do(func() { close(reached) }) }, cfg, o)
				}
			})
			c.startAll()
			select {
			case <-reached:
			case <-time.After(20 * time.Second):
				t.Fatal("the step was not reached")
			}
			if step != "none" {
				c.stop("n1")
				v.mu.Lock()
				v.claimed, v.refuse = nil, nil
				v.mu.Unlock()
				c.restores(v, nil)
				c.start("n1")
			}
			c.wholeAgain(v)
			if len(v.claims) != 1 {
				t.Errorf("%d claims", len(v.claims))
			}
			// From here on the setting does nothing.
			reads := v.reads
			for _, p := range c.peers {
				c.stop(p.ID)
			}
			c.startAll()
			c.leader()
			c.propose(c.nodes["n2"], "restarted")
			if c.same(); v.reads != reads {
				t.Error("peers with data read what is kept elsewhere")
			}
		})
	}
}

// What a crash left of a seed is made anew: no marker speaks of it.
func TestColdStartDropsHalfASeed(t *testing.T) {
	t.Parallel()
	c, v := newTestCluster(t, "n1", "n2"), newVault("a")
	c.restores(v, func(_ string, _ *Config, o *origin) { o.vault.refuse = errors.New("not now") })
	c.startAll()
	eventually(t, "the attempt is durable", func() bool { return attempting(c.nodes["n1"].marker.Load()) })
	format := func() byte {
		b, err := os.ReadFile(filepath.Join(c.dir, "n1", markerFile))
		must(t, err)
		return b[11]
	}
	if format() != 2 {
		t.Error("a version before would go on and form an empty cluster")
	}
	n := c.nodes["n1"]
	c.stop("n1")
	must(t, n.openData(context.Background()))
	must(t, n.seed(Seeding{Index: 1 << 30, Term: 90, StateIndex: 60, StateTerm: 9, State: journalSnapshot{[][]byte{[]byte("half")}, 60}}))
	must(t, n.store.bolt.Close())
	v.refuse = nil
	c.restores(v, nil)
	c.start("n1")
	c.wholeAgain(v)
	if format() != 1 {
		t.Error("the format of a marker without an attempt changed")
	}
}

// Two sets of peers begin from the same place: one does, and the other says why not, for good.
func TestColdStartOfTwoSets(t *testing.T) {
	t.Parallel()
	v := newVault("a")
	one, two := newTestCluster(t, "n1", "n2"), newTestCluster(t, "n1", "n2")
	for _, c := range []*testCluster{one, two} {
		c.restores(v, nil)
	}
	for _, id := range []string{"n1", "n2"} {
		one.start(id)
		two.start(id)
	}
	eventually(t, "one begins, one does not", func() bool {
		a, b := one.nodes["n1"].Status(), two.nodes["n1"].Status()
		return a.Formed && errors.Is(b.Problem, errClaimed) || b.Formed && errors.Is(a.Problem, errClaimed)
	})
	won, lost := one, two
	if two.nodes["n1"].Status().Formed {
		won, lost = two, one
	}
	won.wholeAgain(v)
	v.mu.Lock()
	v.next = 9 // what the winner does since must not make the loser try again
	v.mu.Unlock()
	lost.stop("n1")
	lost.restores(v, nil)
	lost.start("n1")
	problem(t, lost.nodes["n1"], errClaimed, won.peers[0].Address)
	if len(v.claims) != 1 || lost.nodes["n2"].Status().Formed {
		t.Errorf("%d claims", len(v.claims))
	}
}

// All peers must be there, be empty, and be to do the same; the setting is one of all.
func TestColdStartRefuses(t *testing.T) {
	t.Parallel()
	t.Run("one is missing", func(t *testing.T) {
		t.Parallel()
		c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
		c.restores(v, nil)
		c.start("n1", "n2")
		problem(t, c.nodes["n1"], ErrNotReady, "every peer is seen to be empty")
		c.start("n3")
		c.wholeAgain(v)
	})
	t.Run("one has data", func(t *testing.T) {
		t.Parallel()
		c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
		c.startAll()
		c.propose(c.leader(), "here")
		c.same()
		for _, id := range []string{"n1", "n2"} {
			c.stop(id)
			must(t, os.RemoveAll(filepath.Join(c.dir, id)))
		}
		c.stop("n3")
		c.restores(v, nil)
		c.startAll()
		problem(t, c.nodes["n1"], ErrWiped, "peer n3 has the data of cluster")
		if v.reads != 0 {
			t.Error("what is kept elsewhere was read")
		}
	})
	t.Run("lists differ", func(t *testing.T) {
		t.Parallel()
		c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
		c.restores(v, func(id string, cfg *Config, _ *origin) {
			if id == "n3" {
				cfg.Peers = append(append([]Peer(nil), cfg.Peers...), Peer{"n4", "127.0.0.1:1"})
			}
		})
		c.startAll()
		problem(t, c.nodes["n1"], ErrPeersDiffer, "n4")
		problem(t, c.nodes["n3"], ErrPeersDiffer, "n4")
	})
	for _, without := range []string{"n1", "n3"} {
		t.Run(without+" without the setting", func(t *testing.T) {
			t.Parallel()
			c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
			c.restores(v, func(id string, cfg *Config, _ *origin) { cfg.ColdStart = id != without })
			c.startAll()
			problem(t, c.nodes["n1"], ErrNotRestoring, "")
			problem(t, c.nodes["n3"], ErrNotRestoring, "")
			for id, n := range c.nodes {
				if n.Status().Formed || n.marker.Load() != nil {
					t.Errorf("%s began something", id)
				}
			}
		})
	}
	t.Run("the setting is removed on the way", func(t *testing.T) {
		t.Parallel()
		c, v := newTestCluster(t, "n1", "n2"), newVault("a")
		c.restores(v, func(_ string, _ *Config, o *origin) { o.vault.refuse = errors.New("not now") })
		c.startAll()
		eventually(t, "the attempt is durable", func() bool { return attempting(c.nodes["n1"].marker.Load()) })
		c.stop("n1")
		c.stop("n2")
		c.tune = nil
		c.startAll()
		problem(t, c.nodes["n1"], ErrColdStart, "incarnation 8")
		c.stop("n1")
		c.stop("n2")
		v.refuse = nil
		c.restores(v, nil)
		c.startAll()
		c.wholeAgain(v)
	})
}

// Peers that come back with the data of before, and are a majority of before, learn that the cluster began again, and never serve it.
func TestColdStartEndsThePeersOfBefore(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{false, true} { // before they were taken in, and after
		t.Run(fmt.Sprint("taken in: ", taken), func(t *testing.T) {
			t.Parallel()
			c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
			c.startAll()
			c.propose(c.leader(), "old")
			c.same()
			was, _, _ := c.nodes["n1"].Identity()
			c.stopAll()
			for _, id := range []string{"n1", "n2", "n3"} {
				must(t, os.Rename(filepath.Join(c.dir, id), filepath.Join(c.dir, id+".old")))
			}
			v.id = was
			added := make(chan struct{})
			var once sync.Once
			c.restores(v, func(_ string, _ *Config, o *origin) {
				o.hold = func(_ context.Context, _ string, promote bool) error {
					if promote == taken {
						once.Do(func() { close(added) })
						return errors.New("not yet")
					}
					return nil
				}
			})
			c.startAll()
			<-added
			for _, id := range []string{"n2", "n3"} {
				c.stop(id)
				must(t, os.RemoveAll(filepath.Join(c.dir, id)))
				must(t, os.Rename(filepath.Join(c.dir, id+".old"), filepath.Join(c.dir, id)))
			}
			c.start("n2", "n3")
			for _, id := range []string{"n2", "n3"} {
				eventually(t, id+" ends", func() bool { return errors.Is(c.nodes[id].Err(), ErrSuperseded) })
				<-c.nodes[id].Done()
				delete(c.nodes, id)
				if err := c.tryStart(id); !errors.Is(err, ErrSuperseded) {
					t.Errorf("%s starts again: %v", id, err)
				}
			}
		})
	}
}

// Whom an operator removes after it was taken in stays out.
func TestColdStartTakesInOnce(t *testing.T) {
	t.Parallel()
	c, v := newTestCluster(t, "n1", "n2", "n3"), newVault("a")
	var mu sync.Mutex
	hold := errors.New("not yet")
	c.restores(v, func(_ string, _ *Config, o *origin) {
		o.hold = func(_ context.Context, id string, promote bool) error {
			mu.Lock()
			defer mu.Unlock()
			if promote && id == "n3" {
				return hold
			}
			return nil
		}
	})
	c.startAll()
	eventually(t, "only n3 is awaited", func() bool {
		l := c.nodes["n1"].marker.Load()
		return len(l.GetAwaited()) == 0 && len(l.GetLearning()) == 1
	})
	must(t, c.nodes["n2"].Remove(short(t), "n3"))
	mu.Lock()
	hold = nil
	mu.Unlock()
	eventually(t, "nobody is awaited", func() bool { return !takesIn(c.nodes["n1"].marker.Load()) })
	if _, known := c.member(c.nodes["n1"], "n3"); known {
		t.Error("n3 came back")
	}
}
