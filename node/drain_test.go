package node_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// A drained leader hands over, fails its readiness, serves on for its grace and
// then sends clients away, while it votes and replicates; the last one that
// serves cannot be drained; it ends by hand and by a restart.
func TestDrain(t *testing.T) {
	t.Parallel()
	grace := time.Hour
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.MetricsListen, cfg.DrainGrace = "127.0.0.1:0", grace
	}})
	ctx := context.Background()
	su := c.Client(nodetest.Role("superuser"), 0, 1, 2)
	if _, err := su.Put(ctx, "a/b", map[string]string{"k": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	ready := func(i int) int {
		_, metrics := c.Node(i).Addresses()
		response, err := http.Get("http://" + metrics + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	id := func(i int) string { return fmt.Sprintf("nexus-%d", i+1) }

	leader := c.Leader()
	if err := c.Client(nodetest.Role("admin"), 0).DrainMember(ctx, id(leader)); secret.CodeOf(err) != secret.CodeDenied {
		t.Errorf("drained by an admin: %v", err)
	}
	if err := su.DrainMember(ctx, "nexus-9"); secret.CodeOf(err) != secret.CodeNotFound {
		t.Errorf("drained nobody: %v", err)
	}
	if got := ready(leader); got != http.StatusOK {
		t.Fatalf("readiness before: %d", got)
	}
	for range 2 { // twice is once
		if err := su.DrainMember(ctx, id(leader)); err != nil {
			t.Fatal(err)
		}
	}
	if h := c.Node(leader).Health(); !h.Draining || h.Leader {
		t.Errorf("drained: %+v", h)
	}
	if got := ready(leader); got != http.StatusServiceUnavailable {
		t.Errorf("readiness of a drained peer: %d", got)
	}
	only := c.Client(nodetest.Role("superuser"), leader)
	if values, _, err := only.Get(ctx, "a/b", 0); err != nil || values["k"] != "v" {
		t.Errorf("in its grace: %v, %v", values, err)
	}
	// It does not keep leadership that it is given.
	if err := su.TransferLeadership(ctx, id(leader)); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "leadership is with another", func() error {
		for i := range 3 {
			if i != leader && c.Node(i).Health().Leader {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})

	// Without a grace it is closed to clients at once, and open to operators.
	if err := only.UndrainMember(ctx, id(leader)); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "it is ready afterwards", func() error {
		if got := ready(leader); got != http.StatusOK {
			return fmt.Errorf("readiness: %d", got)
		}
		return nil
	})
	other := (leader + 1) % 3
	c.Stop(other)
	c.Configure(other, func(cfg *node.Config) { cfg.DrainGrace = 0 })
	c.Start(other)
	c.Ready()
	if err := su.DrainMember(ctx, id(other)); err != nil {
		t.Fatal(err)
	}
	closed := c.Client(nodetest.Role("superuser"), other)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, _, err := closed.Get(short, "a/b", 0); secret.CodeOf(err) != secret.CodeUnavailable {
		t.Errorf("read at a drained peer: %v", err)
	}
	if values, _, err := c.Client(nodetest.Role("superuser"), other, (other+1)%3).Get(ctx, "a/b", 0); err != nil || values["k"] != "v" {
		t.Errorf("a client that knows another peer: %v, %v", values, err)
	}
	status, err := closed.Status(ctx)
	if err != nil || !status.Peers[other].Draining || status.Tolerance != 1 {
		t.Errorf("%+v, %v", status, err)
	}

	// Somebody must be left to serve.
	third := 3 - leader - other
	if err := su.DrainMember(ctx, id(third)); err != nil {
		t.Fatal(err)
	}
	if err := su.DrainMember(ctx, id(leader)); secret.CodeOf(err) != secret.CodeConflict {
		t.Errorf("the last one was drained: %v", err)
	}
	if _, err := su.Put(ctx, "a/b", map[string]string{"k": "w"}, nil); err != nil {
		t.Errorf("with two of three drained, which still vote: %v", err)
	}
	c.Stop(other)
	c.Start(other)
	c.Ready()
	if h := c.Node(other).Health(); h.Draining {
		t.Error("a restart does not end it")
	}
}

// A leader that is stopped fails its readiness and gives leadership to the voter
// that can serve, not to the one without keys; it serves until it stops.
func TestRetire(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.DrainGrace = 0 }})
	for i := range 3 {
		c.StopKeeper(i)
	}
	leader := c.Leader()
	sealed, open := (leader+1)%3, (leader+2)%3
	c.Stop(sealed)
	c.Start(sealed)
	nodetest.Eventually(t, "the sealed peer is caught up", func() error {
		if s := c.Node(leader).Status(t.Context()); len(s.Peers) != 3 || s.Peers[sealed].AppliedIndex != s.Peers[leader].AppliedIndex || !s.Peers[sealed].Sealed {
			return fmt.Errorf("%+v", s.Peers)
		}
		return nil
	})
	c.Node(leader).Retire(t.Context())
	if h := c.Node(leader).Health(); h.Leader || !h.Draining || h.Sealed {
		t.Errorf("the peer that is to stop: %+v", h)
	}
	nodetest.Eventually(t, "the other peer with keys leads", func() error {
		if h := c.Node(open).Health(); !h.Leader {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}
