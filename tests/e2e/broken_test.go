package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// brokenCluster is a cluster of real programs that a test breaks on purpose.
type brokenCluster struct {
	*harness.Cluster
	t testing.TB
}

func broken(t testing.TB, o harness.Options) *brokenCluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "spike") // short, for the sake of sockets
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = dir
	if o.Binaries == "" {
		o.Binaries = bin
	}
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := harness.Start(limit, o)
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			c.Logs(t.Output(), 4000)
		}
		os.RemoveAll(dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	return &brokenCluster{c, t}
}

func (c *brokenCluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *brokenCluster) client(path string, peers ...int) *client.Client {
	c.t.Helper()
	cl, done, err := c.Client(ctx, path, peers...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(done)
	return cl
}

func (c *brokenCluster) eventually(what string, check func() error) {
	c.t.Helper()
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := harness.Poll(limit, check); err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// leader waits for a leader, that itself says so.
func (c *brokenCluster) leader(cl *client.Client) (leader int) {
	c.t.Helper()
	c.eventually("a leader", func() error {
		s, err := status(cl)
		if err != nil {
			return err
		}
		for i := range c.Peers() {
			for _, p := range s.Peers {
				if p.ID == s.Leader && p.ID == harness.PeerName(i) && p.Reachable && p.State == "leader" {
					leader = i
					return nil
				}
			}
		}
		return fmt.Errorf("leader %q", s.Leader)
	})
	return leader
}
