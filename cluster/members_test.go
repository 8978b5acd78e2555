package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// joiner makes a place for a peer that is in nobody's list.
func (c *testCluster) joiner(id string) (address string) {
	c.t.Helper()
	if c.lns[id] != nil {
		_ = c.lns[id].Close()
	}
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for address == "" || c.net.owner[address] != "" { // the system gives a port again that a stopped peer had
		ln := listen(c.t, "127.0.0.1:0")
		defer func() {
			if c.lns[id] != ln {
				_ = ln.Close()
			}
		}()
		c.lns[id], address = ln, ln.Addr().String()
	}
	c.net.owner[address] = id
	c.joins[id] = address
	return address
}

func (c *testCluster) member(at *Node, id string) (voter, known bool) {
	for _, m := range at.Status().Members {
		if m.ID == id {
			return m.Voter, true
		}
	}
	return false, false
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// promoted promotes id as soon as it has caught up.
func (c *testCluster) promoted(at *Node, id string) {
	c.t.Helper()
	eventually(c.t, id+" is promoted", func() bool {
		err := at.Promote(context.Background(), id)
		if err != nil && !errors.Is(err, ErrNotCaughtUp) {
			c.t.Fatalf("promote %s: %v", id, err)
		}
		return err == nil
	})
}

// The whole life of a member, asked for at a follower: it waits, is admitted,
// brought up by a snapshot, serves as a learner, votes, leads, leaves.
func TestJoinPromoteRemove(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.SnapshotBytes = 64 << 10 }
	c.startAll()
	l, f := c.leader(), c.follower()
	pad := string(bytes.Repeat([]byte("x"), 2048))
	for i := range 200 {
		c.propose(l, fmt.Sprint(i, pad))
	}
	eventually(t, "a snapshot and a short log", func() bool {
		first, err := l.store.FirstIndex()
		return err == nil && first > 20
	})

	address := c.joiner("n4")
	c.start("n4")
	n4 := c.nodes["n4"]
	eventually(t, "the joiner says that it waits", func() bool { return errors.Is(n4.Status().Problem, ErrNotAdmitted) })
	if s := n4.Status(); s.State != Forming || s.Formed {
		t.Errorf("before it was added: %+v", s)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "n4", markerFile)); !os.IsNotExist(err) {
		t.Errorf("a marker before it was added: %v", err)
	}
	must(t, f.AddLearner(short(t), "n4", address))
	must(t, f.AddLearner(short(t), "n4", address)) // again is no error
	if got := c.same(); len(got) != 200 {
		t.Errorf("%d commands", len(got))
	}
	if s := n4.Status(); s.SnapshotIndex == 0 || s.Problem != nil || s.State != Follower {
		t.Errorf("the learner: %+v", s)
	}
	if voter, known := c.member(l, "n4"); voter || !known {
		t.Error("it did not come in as a learner")
	}

	// It reads what was written elsewhere, and writes.
	for i := range 20 {
		c.propose(f, fmt.Sprint("w", i))
		if _, err := n4.WaitRead(short(t)); err != nil || !c.sms["n4"].has(fmt.Sprint("w", i)) {
			t.Fatalf("a learner's read missed write %d: %v", i, err)
		}
	}
	c.propose(n4, "by the learner")

	// A learner cannot lead, a voter can.
	if err := f.Transfer(short(t), "n4"); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("leadership for a learner: %v", err)
	}
	c.promoted(f, "n4")
	must(t, f.Promote(short(t), "n4"))
	must(t, f.Transfer(short(t), "n4"))
	eventually(t, "the new voter leads", func() bool { return n4.leads() })
	c.propose(f, "led by n4")

	// Restarted, with its list to join still configured, it is what it was.
	c.stop("n4")
	c.start("n4")
	n4 = c.nodes["n4"]
	c.leader()
	c.propose(n4, "after a restart")

	// The leader removes itself: another leads first.
	must(t, c.leaderIs("n4").Remove(short(t), "n4"))
	eventually(t, "the removed peer says so", func() bool {
		s := n4.Status()
		return s.State == Removed && errors.Is(s.Problem, ErrRemoved)
	})
	if _, err := n4.WaitRead(short(t)); !errors.Is(err, ErrRemoved) || !errors.Is(err, ErrNotReady) {
		t.Errorf("a removed peer reads: %v", err)
	}
	if _, err := n4.Propose(short(t), []byte("x")); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed peer writes: %v", err)
	}
	if _, err := n4.Call(short(t), "n1", "test", nil); err == nil || errors.Is(err, ErrNoHandler) {
		t.Errorf("a removed peer calls: %v", err)
	}
	c.propose(f, "without it")
	// What it has is good: added again, it goes on from there.
	must(t, f.AddLearner(short(t), "n4", address))
	c.same()
	eventually(t, "it is a member again", func() bool { s := n4.Status(); return s.State == Follower && s.Problem == nil })
}

// leaderIs makes id lead.
func (c *testCluster) leaderIs(id string) *Node {
	c.t.Helper()
	eventually(c.t, id+" leads", func() bool {
		if c.leader() == c.nodes[id] {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.leader().Transfer(ctx, id)
		return false
	})
	return c.nodes[id]
}

// A joiner may die after any durable step.
func TestJoiningSurvivesACrashAtEachStep(t *testing.T) {
	t.Parallel()
	for _, phase := range []peerpb.Phase{peerpb.Phase_PHASE_READY, peerpb.Phase_PHASE_STARTED} {
		t.Run(phase.String(), func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, "n1")
			c.startAll()
			c.propose(c.leader(), "first")
			must(t, c.nodes["n1"].AddLearner(short(t), "n2", c.joiner("n2")))
			reached := make(chan struct{})
			var once sync.Once
			c.tune = func(_ string, cfg *Config) {
				cfg.afterMarker = func(ctx context.Context, p peerpb.Phase) error {
					if p != phase {
						return nil
					}
					once.Do(func() { close(reached) })
					<-ctx.Done()
					return errors.New("crashed")
				}
			}
			c.start("n2")
			select {
			case <-reached:
			case <-time.After(20 * time.Second):
				t.Fatal("the step was not reached")
			}
			c.stop("n2")
			c.tune = nil
			c.start("n2")
			c.same()
			c.promoted(c.nodes["n2"], "n2")
			c.propose(c.nodes["n2"], "second")
			c.same()
		})
	}
}

func TestRemovalBelowAQuorumIsRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leaderIs("n1")
	c.propose(c.nodes["n1"], "a")
	c.stop("n3")
	for name, refused := range map[string]func(context.Context, string) error{
		"remove": c.nodes["n2"].Remove, "demote": c.nodes["n1"].Demote,
	} {
		var risk *QuorumError
		err := refused(short(t), "n2")
		if !errors.As(err, &risk) || !errors.Is(err, ErrQuorumAtRisk) || risk.Need != 2 || len(risk.Unreachable) != 1 || risk.Unreachable[0] != "n3" {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, c.nodes["n2"].Remove(short(t), "n3")) // the dead one may go
	must(t, c.nodes["n2"].Demote(short(t), "n1")) // the leader, which hands over
	eventually(t, "n2 leads alone", func() bool { return c.nodes["n2"].leads() })
	if voter, known := c.member(c.nodes["n2"], "n1"); voter || !known {
		t.Error("n1 is no learner")
	}
	if err := c.nodes["n2"].Remove(short(t), "n2"); !errors.Is(err, ErrQuorumAtRisk) {
		t.Errorf("the last voter: %v", err)
	}
	if err := c.nodes["n1"].Remove(short(t), "n9"); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("a stranger: %v", err)
	}
	c.propose(c.nodes["n1"], "b")
	// The learner does not count: the only voter goes on without it.
	c.stop("n1")
	c.propose(c.nodes["n2"], "c")
	// And the one that was away when it was removed finds out.
	c.start("n3")
	eventually(t, "n3 learns that it was removed", func() bool { return errors.Is(c.nodes["n3"].Status().Problem, ErrRemoved) })
}

func TestLearnerThatLagsIsNotPromoted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	for i := range 10 {
		c.propose(l, fmt.Sprint(i))
	}
	must(t, l.AddLearner(short(t), "n4", c.joiner("n4")))
	// Nobody there at all.
	var behind *NotCaughtUpError
	if err := l.Promote(short(t), "n4"); !errors.As(err, &behind) || behind.Commit < 10 || behind.Bound == 0 {
		t.Errorf("promote a learner that is not there: %v", err)
	}
	c.tune = func(id string, cfg *Config) {
		if id == "n4" { // few entries behind, but for ever
			hold := make(chan struct{})
			c.sms["n4"].hold = hold
			t.Cleanup(func() { close(hold) })
		}
	}
	c.start("n4")
	eventually(t, "the learner hears the leader", func() bool { return c.nodes["n4"].leader() != "" })
	if err := c.follower().Promote(short(t), "n4"); !errors.As(err, &behind) || behind.Applied != 0 {
		t.Errorf("promote an empty learner: %v", err)
	}
	if voter, _ := c.member(l, "n4"); voter {
		t.Error("it votes")
	}
}

// A wiped voter must not vote again. Removed and added, it is a learner.
func TestWipedVoterRejoinsAsLearner(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"n1", "n3"} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, "n1", "n2", "n3")
			c.startAll()
			c.leaderIs("n2")
			c.propose(c.nodes["n2"], "a")
			c.stop(id)
			must(t, os.RemoveAll(filepath.Join(c.dir, id)))
			c.start(id) // as configured for forming
			n := c.nodes[id]
			eventually(t, "the wiped voter says so", func() bool { return errors.Is(n.Status().Problem, ErrWiped) })
			err := c.nodes["n2"].AddLearner(short(t), id, c.address(id))
			if !errors.Is(err, ErrMember) {
				t.Errorf("added while it is a voter: %v", err)
			}
			must(t, c.nodes["n2"].Remove(short(t), id))
			eventually(t, "it waits to be added", func() bool { return errors.Is(n.Status().Problem, ErrNotAdmitted) })
			if n.Status().Formed {
				t.Error("it took part before it was added")
			}
			must(t, c.nodes["n2"].AddLearner(short(t), id, c.address(id)))
			c.same()
			if voter, known := c.member(c.nodes["n2"], id); voter || !known {
				t.Error("it is not a learner")
			}
			c.promoted(n, id)
			c.propose(n, "b")
			c.same()
			if p := n.Status().Problem; p != nil {
				t.Error(p)
			}
		})
	}
}

// A voter comes back elsewhere: the others are still configured with the place
// where it was, and the log knows better.
func TestMemberThatMoved(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leaderIs("n1")
	c.propose(l, "a")
	c.stop("n3")
	must(t, os.RemoveAll(filepath.Join(c.dir, "n3")))
	must(t, l.Remove(short(t), "n3"))
	before := c.peers
	address := c.joiner("n3")
	c.peers = c.peers[:2]
	must(t, l.AddLearner(short(t), "n3", address))
	c.start("n3")
	c.same()
	c.promoted(l, "n3")
	c.stop("n2")
	c.propose(l, "by n1 and n3") // which is a quorum only if they find each other
	c.stop("n1")
	c.peers = before
	c.start("n1")
	c.propose(c.leader(), "after a restart")
	c.same()
}

// While a peer was away all others were replaced: it knows none of those that
// call it, and believes them all the same.
func TestAwayWhileAllOthersWereReplaced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "a")
	c.same()
	c.stop("n3")
	for _, id := range []string{"m1", "m2"} {
		eventually(t, id+" is added", func() bool {
			return c.leader().AddLearner(short(t), id, c.joiner(id)) == nil
		})
		c.start(id)
		c.same()
		c.promoted(c.nodes["n1"], id)
	}
	for _, id := range []string{"n1", "n2"} {
		must(t, c.nodes["m1"].Remove(short(t), id))
		c.stop(id)
	}
	c.propose(c.nodes["m2"], "without those it knew")
	c.start("n3")
	c.same()
	if _, err := c.nodes["n3"].WaitRead(short(t)); err != nil {
		t.Error(err)
	}
	c.stop("m2") // n3's vote and disk count
	c.propose(c.nodes["n3"], "b")
}

// Of two changes at once one is made, or both one after the other; never one
// on a configuration that was not looked at.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	addresses := map[string]string{}
	for i := range 8 {
		id := fmt.Sprint("m", i)
		addresses[id] = c.joiner(id)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := map[string]bool{}
	nodes := []*Node{c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]}
	i := 0
	for id, address := range addresses {
		at := nodes[i%3]
		i++
		wg.Go(func() {
			err := at.AddLearner(short(t), id, address)
			if err != nil && !errors.Is(err, ErrChangeUnderWay) {
				t.Errorf("%s: %v", id, err)
			}
			mu.Lock()
			defer mu.Unlock()
			made[id] = err == nil
		})
	}
	wg.Wait()
	some := false
	for id, ok := range made {
		_, known := c.member(l, id)
		if known != ok {
			t.Errorf("%s: answered %v, member %v", id, ok, known)
		}
		some = some || ok
	}
	if !some {
		t.Error("none was made")
	}
	// The precondition itself: a configuration that is no longer the newest.
	r := l.raft.Load()
	index, err := l.configurationIndex(r)
	must(t, err)
	f := r.AddNonvoter("late", raft.ServerAddress("127.0.0.1:1"), index-1, time.Second)
	if err := l.commit(short(t), f); !errors.Is(err, ErrChangeUnderWay) {
		t.Errorf("on an old configuration: %v", err)
	}
	must(t, l.snapshot(r)) // the index also comes from a snapshot
	if again, err := l.configurationIndex(r); err != nil || again != index {
		t.Errorf("index %d, then %d (%v)", index, again, err)
	}
}

func TestAdditionsAreChecked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	l := c.leader()
	for name, tc := range map[string]struct {
		id, address string
		want        error
	}{
		"a voter":         {"n1", "127.0.0.1:1", ErrMember},
		"another's place": {"n2", c.peers[0].Address, ErrMember},
		"no id":           {"", "127.0.0.1:1", ErrInvalidChange},
		"a path":          {"a/b", "127.0.0.1:1", ErrInvalidChange},
		"no address":      {"n2", "", ErrInvalidChange},
		"no port":         {"n2", "host", ErrInvalidChange},
	} {
		if err := l.AddLearner(short(t), tc.id, tc.address); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who comes with another id, another cluster's data or too old a version stays out.
func TestJoinersThatMayNot(t *testing.T) {
	t.Parallel()
	c, other := newTestCluster(t, "n1"), newTestCluster(t, "n1")
	c.tune = func(id string, cfg *Config) {
		cfg.Levels = func() (uint32, uint32) { return 3, 3 }
		switch id {
		case "old":
			cfg.Levels = func() (uint32, uint32) { return 2, 2 }
		case "liar":
			cfg.Security = c.ca.identity(t, "n7")
		}
	}
	c.startAll()
	other.startAll()
	l := c.leader()
	c.propose(l, "a")
	o := other.leader()
	other.propose(o, "of another cluster")
	for _, id := range []string{"old", "liar", "foreign"} {
		must(t, l.AddLearner(short(t), id, c.joiner(id)))
	}
	must(t, o.AddLearner(short(t), "foreign", other.joiner("foreign")))
	other.start("foreign")
	other.same()
	other.stop("foreign")
	must(t, os.Rename(filepath.Join(other.dir, "foreign"), filepath.Join(c.dir, "foreign")))

	c.start("old", "liar", "foreign")
	for id, want := range map[string]error{"old": ErrLevel, "liar": ErrWrongPeer, "foreign": ErrForeignData} {
		n := c.nodes[id]
		eventually(t, id+" says why", func() bool { return errors.Is(n.Status().Problem, want) })
		if c.sms[id].has("a") {
			t.Errorf("%s got our entries", id)
		}
	}
	// Another life of the same cluster.
	c.stop("foreign")
	dir := filepath.Join(c.dir, "foreign")
	m, err := readMarker(dir)
	must(t, err)
	id, inc, _ := l.Identity()
	m.ClusterId = id[:]
	must(t, writeMarker(dir, m))
	c.stop("n1")
	m, err = readMarker(filepath.Join(c.dir, "n1"))
	must(t, err)
	m.Incarnation = inc + 1
	must(t, writeMarker(filepath.Join(c.dir, "n1"), m))
	c.start("n1", "foreign")
	<-c.nodes["foreign"].Done()
	if err := c.nodes["foreign"].Err(); !errors.Is(err, ErrSuperseded) {
		t.Errorf("another incarnation: %v", err)
	}
	if c.sms["foreign"].has("a") {
		t.Error("another incarnation got our entries")
	}
}
