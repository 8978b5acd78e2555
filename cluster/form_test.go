package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// A peer that dies right after a step became durable goes on from there.
func TestFormingSurvivesACrashAtEachStep(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"n1", "n2"} { // the coordinator, and another
		for _, phase := range []peerpb.Phase{peerpb.Phase_PHASE_PREPARED, peerpb.Phase_PHASE_READY, peerpb.Phase_PHASE_STARTED} {
			t.Run(fmt.Sprintf("%s/%s", id, phase), func(t *testing.T) {
				t.Parallel()
				c := newTestCluster(t, "n1", "n2", "n3")
				reached := make(chan struct{})
				c.tune = func(at string, cfg *Config) {
					if at == id {
						cfg.afterMarker = func(ctx context.Context, p peerpb.Phase) error {
							if p != phase {
								return nil
							}
							close(reached)
							<-ctx.Done()
							return errors.New("crashed")
						}
					}
				}
				c.startAll()
				select {
				case <-reached:
				case <-time.After(20 * time.Second):
					t.Fatal("the step was not reached")
				}
				c.stop(id)
				c.tune = nil
				c.start(id)
				c.leader()
				c.propose(c.nodes[id], "formed")
				c.same()
				want, _, _ := c.nodes["n3"].Identity()
				for at, n := range c.nodes {
					if got, _, ok := n.Identity(); !ok || got != want {
						t.Errorf("%s is of cluster %x, n3 of %x", at, got, want)
					}
				}
			})
		}
	}
}

func TestPeersWithDifferentListsDoNotForm(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		if id == "n3" {
			cfg.Peers = append(append([]Peer(nil), cfg.Peers...), Peer{"n4", "127.0.0.1:1"})
		}
	}
	c.startAll()
	for _, id := range []string{"n1", "n3"} {
		eventually(t, id+" says that the lists differ", func() bool {
			return errors.Is(c.nodes[id].Status().Problem, ErrPeersDiffer)
		})
	}
	for id, n := range c.nodes {
		if s := n.Status(); s.Formed || s.State != Forming {
			t.Errorf("%s formed: %+v", id, s)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if _, err := n.Propose(ctx, []byte("x")); !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrNotReady) {
			t.Errorf("propose while forming: %v", err)
		}
		if _, err := n.WaitRead(ctx); !errors.Is(err, ErrNotReady) {
			t.Errorf("read while forming: %v", err)
		}
		cancel()
	}
}

// A peer that lost its data may have voted: it must not start over.
func TestWipedPeerIsRefused(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"n1", "n3"} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, "n1", "n2", "n3")
			c.startAll()
			c.leader()
			c.propose(c.nodes["n2"], "a")
			was, _, _ := c.nodes["n2"].Identity()
			c.stop(id)
			must(t, os.RemoveAll(filepath.Join(c.dir, id)))
			c.start(id)
			eventually(t, "the wiped peer says so", func() bool {
				return errors.Is(c.nodes[id].Status().Problem, ErrWiped)
			})
			if s := c.nodes[id].Status(); s.Formed || s.State != Forming {
				t.Errorf("wiped peer: %+v", s)
			}
			c.propose(c.nodes["n2"], "b")
			if now, _, _ := c.nodes["n2"].Identity(); now != was {
				t.Error("the cluster's identity changed")
			}
			if id == "n1" {
				return
			}
			c.stop("n1") // the coordinator, which tells the others again that it is ready
			c.start("n1")
			eventually(t, "the coordinator names the wiped peer", func() bool {
				return errors.Is(c.nodes["n1"].Status().Problem, ErrWiped)
			})
		})
	}
}

func TestDataOfAnotherCluster(t *testing.T) {
	t.Parallel()
	a, b := newTestCluster(t, "n1", "n2", "n3"), newTestCluster(t, "n1", "n2", "n3")
	for _, c := range []*testCluster{a, b} {
		c.startAll()
		c.leader()
		c.propose(c.nodes["n1"], "x")
		c.same()
		c.stop("n3")
	}
	must(t, os.RemoveAll(filepath.Join(a.dir, "n3")))
	must(t, os.Rename(filepath.Join(b.dir, "n3"), filepath.Join(a.dir, "n3")))
	a.stop("n1") // so that it tells the others again that it is ready
	a.start("n3", "n1")
	eventually(t, "foreign data is reported", func() bool {
		return errors.Is(a.nodes["n3"].Status().Problem, ErrForeignData) && errors.Is(a.nodes["n1"].Status().Problem, ErrForeignData)
	})
	a.propose(a.nodes["n1"], "y") // two of three go on
	if a.nodes["n3"].Applied() > 0 && a.sms["n3"].has("y") {
		t.Error("a foreign peer got our entry")
	}
}

func TestStartRefusesBadDirectories(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	c.propose(c.leader(), "x")
	if err := c.tryStartOther("n1"); !errors.Is(err, ErrDirInUse) {
		t.Errorf("second process: %v", err)
	}
	c.stopAll()
	dir := filepath.Join(c.dir, "n1")
	marker, err := readMarker(dir)
	must(t, err)

	other := &peerpb.Marker{Phase: marker.Phase, ClusterId: marker.ClusterId, Incarnation: 1, Self: "n2", Peers: marker.Peers}
	must(t, writeMarker(dir, other))
	if err := c.tryStart("n1"); !errors.Is(err, ErrForeignData) {
		t.Errorf("another peer's data: %v", err)
	}

	b, err := encodeMarker(marker)
	must(t, err)
	b[11] = markerFormat + 1
	must(t, writeDurably(filepath.Join(dir, markerFile), b))
	if err := c.tryStart("n1"); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("newer marker: %v", err)
	}

	b[11], b[20] = 1, b[20]^1
	must(t, writeDurably(filepath.Join(dir, markerFile), b))
	if err := c.tryStart("n1"); !errors.Is(err, ErrCorruptMarker) {
		t.Errorf("damaged marker: %v", err)
	}

	must(t, os.Remove(filepath.Join(dir, markerFile)))
	if err := c.tryStart("n1"); !errors.Is(err, ErrForeignData) {
		t.Errorf("Raft data without a marker: %v", err)
	}

	must(t, writeMarker(dir, marker))
	must(t, os.Rename(filepath.Join(dir, logFile), filepath.Join(dir, "kept")))
	if err := c.tryStart("n1"); !errors.Is(err, ErrLostData) {
		t.Errorf("marker without Raft data: %v", err)
	}

	must(t, os.Rename(filepath.Join(dir, "kept"), filepath.Join(dir, logFile)))
	c.start("n1")
	if _, err := c.nodes["n1"].WaitRead(context.Background()); err != nil || !c.sms["n1"].has("x") {
		t.Errorf("after all that: %v", err)
	}
}

func (c *testCluster) tryStartOther(id string) error {
	c.t.Helper()
	sm := c.sms[id]
	c.lns[id] = listen(c.t, "127.0.0.1:0")
	cfg := c.config(id)
	c.sms[id] = sm
	n, err := Start(context.Background(), cfg)
	if err == nil {
		_ = n.Shutdown(context.Background())
	}
	return err
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2")
	for name, spoil := range map[string]func(*Config){
		"not in its list":  func(c *Config) { c.ID = "n9" },
		"an id twice":      func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) },
		"an address twice": func(c *Config) { c.Peers = append(c.Peers, Peer{"n3", c.Peers[0].Address}) },
		"an id with slash": func(c *Config) { c.Peers = append(c.Peers, Peer{"a/b", "x:1"}) },
		"no directory":     func(c *Config) { c.Dir = "" },
	} {
		cfg := c.config("n1")
		cfg.Peers = append([]Peer(nil), cfg.Peers...)
		spoil(&cfg)
		if n, err := Start(context.Background(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = n.Shutdown(context.Background())
		}
	}
}
