package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// recovery is of the stopped peer id.
func (c *testCluster) recovery(id string) Recovery {
	return Recovery{Dir: filepath.Join(c.dir, id), Address: c.address(id), StateMachine: &journal{}, Logger: testLogger(id)}
}

// Two of three are lost for good: the third, recovered, has all that it held and
// takes the others back, wiped, as learners. Whoever comes back unwiped finds
// that it was left behind, also when the two are a majority of the old cluster
// and lead one of their own meanwhile.
func TestRecoverAfterLosingTheMajority(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.propose(c.leader(), "a")
	c.propose(c.leader(), "b")
	c.same()
	old, _, _ := c.nodes["n1"].Identity()
	for _, id := range []string{"n1", "n2", "n3"} {
		c.stop(id)
	}
	report, err := InspectData(context.Background(), filepath.Join(c.dir, "n1"))
	must(t, err)
	if report.ID != "n1" || report.ClusterID != old || report.Incarnation != 1 || len(report.Members) != 3 || report.LastIndex == 0 {
		t.Fatalf("%+v", report)
	}
	dry := c.recovery("n1")
	dry.DryRun = true
	_, _, err = Recover(context.Background(), dry)
	must(t, err)
	if again, err := InspectData(context.Background(), dry.Dir); err != nil || again.Incarnation != 1 || again.Recovering || again.LastIndex != report.LastIndex {
		t.Fatalf("a dry run changed something: %+v, %v", again, err)
	}
	before, incarnation, err := Recover(context.Background(), c.recovery("n1"))
	must(t, err)
	if incarnation <= 1 || before.LastIndex != report.LastIndex {
		t.Fatalf("%+v, %d", before, incarnation)
	}
	if _, again, err := Recover(context.Background(), c.recovery("n1")); err != nil || again != incarnation {
		t.Fatalf("once more: %d, %v", again, err)
	}
	c.start("n1")
	l := c.leader()
	c.propose(l, "c")
	if s := l.Status(); s.Incarnation != incarnation || s.ClusterID != old || len(s.Members) != 1 || s.AppliedIndex <= report.LastIndex+recoveryGap {
		t.Errorf("%+v", s)
	}
	if got := c.same(); len(got) != 3 || got[0] != "a" || got[2] != "c" {
		t.Fatalf("%q", got)
	}

	// The dead return. Each ends by itself and stays so.
	c.start("n2", "n3")
	for _, id := range []string{"n2", "n3"} {
		n := c.nodes[id]
		eventually(t, id+" is told", func() bool {
			select {
			case <-n.Done():
				return true
			default:
				return false
			}
		})
		if !errors.Is(n.Err(), ErrSuperseded) {
			t.Errorf("%s ended with %v", id, n.Err())
		}
		delete(c.nodes, id)
		if err := c.tryStart(id); !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s started again: %v", id, err)
		}
		if _, _, err := Recover(context.Background(), c.recovery(id)); !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s recovered: %v", id, err)
		}
	}
	for _, id := range []string{"n2", "n3"} {
		must(t, os.RemoveAll(filepath.Join(c.dir, id)))
		must(t, l.AddLearner(short(t), id, c.address(id)))
		c.start(id)
		c.promoted(l, id)
	}
	c.propose(c.leader(), "d")
	c.same()
}

// A crash at any step leaves a peer that does not start, and a recovery that the
// same call completes, to the same incarnation.
func TestRecoverySurvivesACrashAtEachStep(t *testing.T) {
	t.Parallel()
	steps := []string{"note that recovery begins", "fold the log into a snapshot", "drop the log", "note the new incarnation"}
	for _, at := range steps {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, "n1", "n2", "n3")
			c.tune = func(_ string, cfg *Config) { cfg.SnapshotBytes = 200 } // there is a snapshot to begin with
			c.startAll()
			for _, s := range []string{"a", "b", "c", "d"} {
				c.propose(c.leader(), s)
			}
			c.same()
			for _, id := range []string{"n1", "n2", "n3"} {
				c.stop(id)
			}
			crash := errors.New("crash")
			r := c.recovery("n1")
			r.afterStep = func(step string) error {
				if step == at {
					return crash
				}
				return nil
			}
			_, planned, err := Recover(context.Background(), r)
			if !errors.Is(err, crash) {
				t.Fatal(err)
			}
			if at != steps[3] {
				if err := c.tryStart("n1"); !errors.Is(err, ErrRecovering) {
					t.Fatalf("started: %v", err)
				}
				if s, err := InspectData(context.Background(), r.Dir); err != nil || !s.Recovering || s.LastIndex > recoveryGap {
					t.Fatalf("%+v, %v", s, err)
				}
			}
			_, incarnation, err := Recover(context.Background(), c.recovery("n1"))
			must(t, err)
			if incarnation != planned {
				t.Errorf("incarnation %d, planned was %d", incarnation, planned)
			}
			c.start("n1")
			c.propose(c.leader(), "e")
			if got := c.same(); len(got) != 5 {
				t.Fatalf("%q", got)
			}
			if s := c.nodes["n1"].Status(); s.AppliedIndex > 2*recoveryGap {
				t.Errorf("two gaps: %d", s.AppliedIndex)
			}
		})
	}
}

// What another survivor holds decides, as in an election.
func TestRecoveryAsksWhoIsNewest(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leaderIs("n1")
	c.propose(l, "a")
	c.same()
	c.stop("n3")
	c.propose(c.leader(), "b")
	c.same()
	c.stop("n1")
	c.stop("n2")
	newest, err := InspectData(context.Background(), filepath.Join(c.dir, "n1"))
	must(t, err)
	foreign, superseded := newest, newest
	foreign.ClusterID[0]++
	superseded.Incarnation++
	r := c.recovery("n3")
	for _, refused := range []struct {
		report Report
		want   error
	}{{newest, ErrNewerPeer}, {foreign, ErrForeignData}, {superseded, ErrSuperseded}, {Report{ID: "n3"}, ErrInvalidChange}} {
		r.Others = []Report{refused.report}
		if _, _, err := Recover(context.Background(), r); !errors.Is(err, refused.want) {
			t.Errorf("%+v: %v, want %v", refused.report, err, refused.want)
		}
	}
	empty := c.recovery("n3")
	empty.Dir = t.TempDir()
	if _, _, err := Recover(context.Background(), empty); !errors.Is(err, ErrNothingToRecover) {
		t.Error(err)
	}
	if s, err := InspectData(context.Background(), r.Dir); err != nil || s.Recovering || s.Incarnation != 1 {
		t.Errorf("refused, and changed: %+v, %v", s, err)
	}
	r.Others, r.Force = []Report{newest}, true
	if _, _, err := Recover(context.Background(), r); err != nil {
		t.Error(err)
	}
	for _, x := range []struct {
		a, b Report
		want bool
	}{{Report{LastTerm: 2, LastIndex: 1}, Report{LastTerm: 1, LastIndex: 9}, true}, {Report{LastTerm: 1, LastIndex: 9}, Report{LastTerm: 2, LastIndex: 1}, false},
		{Report{LastTerm: 1, LastIndex: 2}, Report{LastTerm: 1, LastIndex: 1}, true}, {Report{LastTerm: 1, LastIndex: 1}, Report{LastTerm: 1, LastIndex: 1}, false}} {
		if x.a.Newer(x.b) != x.want {
			t.Errorf("%+v newer than %+v: %v", x.a, x.b, !x.want)
		}
	}
}

// Who was removed, and is recovered by mistake, does not end those that go on
// without it, although they are of a lower incarnation now and may ask it.
func TestRecoveryOfARemovedPeerEndsNobody(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.propose(c.leaderIs("n1"), "a")
	c.same()
	c.stop("n3")
	must(t, c.nodes["n1"].Remove(short(t), "n3"))
	c.propose(c.nodes["n1"], "b")
	c.same()
	_, _, err := Recover(context.Background(), c.recovery("n3"))
	must(t, err)
	c.stop("n2") // so that n1 has no leader, and asks whom it can find
	c.start("n3")
	n1 := c.nodes["n1"]
	eventually(t, "n1 has asked n3", func() bool { return n1.Err() != nil || errors.Is(n1.Status().Problem, ErrForeignData) })
	if n1.Err() != nil {
		t.Fatalf("n1 ended: %v", n1.Err())
	}
	c.start("n2")
	if _, err := n1.Propose(short(t), []byte("c")); err != nil {
		t.Error(err)
	}
	eventually(t, "the problem is over", func() bool { return n1.Status().Problem == nil && c.nodes["n2"].Status().Problem == nil })
}

// A second recovery, after a wrong address say, still looks for those whom the
// first one has left behind.
func TestRecoveriesAddUp(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.propose(c.leader(), "a")
	c.same()
	for _, id := range []string{"n1", "n2", "n3"} {
		c.stop(id)
	}
	wrong := c.recovery("n1")
	wrong.Address = "192.0.2.1:1"
	_, first, err := Recover(context.Background(), wrong)
	must(t, err)
	if _, second, err := Recover(context.Background(), c.recovery("n1")); err != nil || second <= first {
		t.Fatalf("%d after %d, %v", second, first, err)
	}
	c.start("n1")
	c.propose(c.leader(), "b")
	c.start("n2", "n3") // a majority of the old cluster
	for _, id := range []string{"n2", "n3"} {
		eventually(t, id+" is told", func() bool { return errors.Is(c.nodes[id].Err(), ErrSuperseded) })
		c.stop(id)
	}
}

// A peer that was let in, and was sent nothing yet, has nothing to go on from.
func TestNothingToRecoverFromAnEmptyLearner(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	c.propose(c.leader(), "a")
	must(t, c.nodes["n1"].AddLearner(short(t), "n2", c.joiner("n2")))
	started := make(chan struct{})
	c.tune = func(_ string, cfg *Config) {
		cfg.afterMarker = func(ctx context.Context, p peerpb.Phase) error {
			if p == peerpb.Phase_PHASE_STARTED {
				close(started)
				<-ctx.Done()
			}
			return ctx.Err()
		}
	}
	c.start("n2")
	<-started
	c.stop("n2")
	if _, _, err := Recover(context.Background(), c.recovery("n2")); !errors.Is(err, ErrNothingToRecover) {
		t.Error(err)
	}
}

// A running peer whose newest entry is in its snapshot alone, as after an install,
// says of it what its data directory says: recoveries are decided by that.
func TestLastTermIsOfTheLastEntry(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2")
	c.startAll()
	c.propose(c.leader(), "a")
	c.same()
	c.stop("n1")
	c.stop("n2")
	_, _, err := Recover(context.Background(), c.recovery("n1")) // leaves a snapshot and no log
	must(t, err)
	want, err := InspectData(context.Background(), filepath.Join(c.dir, "n1"))
	must(t, err)
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Heartbeat, cfg.Timing.Election = time.Hour, time.Hour }
	c.start("n1")
	if s := c.nodes["n1"].Status(); s.LastIndex != want.LastIndex || s.LastTerm != want.LastTerm || want.LastTerm == 0 {
		t.Errorf("it says entry %d of term %d, and holds entry %d of term %d", s.LastIndex, s.LastTerm, want.LastIndex, want.LastTerm)
	}
}

// Only a higher incarnation of its own cluster ends a peer.
func TestWhatDoesNotSupersede(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	n := c.leader()
	own, incarnation, _ := n.Identity()
	foreign := own
	foreign[0]++
	n.heed(foreign[:], incarnation+1)
	n.heed(nil, incarnation+1)
	n.heed(own[:], incarnation)
	n.heed(own[:], incarnation-1)
	if m, err := readMarker(n.cfg.Dir); err != nil || m.GetPhase() != peerpb.Phase_PHASE_STARTED || n.Err() != nil {
		t.Fatalf("%v, %v, %v", m, err, n.Err())
	}
	n.heed(own[:], incarnation+1)
	if m, err := readMarker(n.cfg.Dir); err != nil || m.GetPhase() != peerpb.Phase_PHASE_SUPERSEDED || !errors.Is(n.Err(), ErrSuperseded) {
		t.Fatalf("%v, %v, %v", m, err, n.Err())
	}
}
