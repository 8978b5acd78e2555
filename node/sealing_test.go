package node_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// refusedSealed checks that cl, of one peer, serves nothing that needs keys.
func refusedSealed(t *testing.T, cl *client.Client) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, _, err := cl.Get(short, "a/b", 0); err == nil {
		t.Error("a sealed peer served a secret")
	}
	if _, err := cl.Put(short, "a/b", map[string]string{"v": "y"}, nil); err == nil {
		t.Error("a sealed peer took a secret")
	}
	if err := cl.RotateKeys(short); err == nil {
		t.Error("a sealed peer rotated keys")
	}
}

// A sealed cluster stays sealed: also a peer that starts again while all Keepers
// have their shares. An operator's word opens it, and nothing else does.
func TestSealOutlastsRestarts(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	super := c.Client(nodetest.Role("superuser"))
	put(t, super, "a/b", "x")
	var each []*client.Client
	for i := range 3 {
		each = append(each, c.Client(nodetest.Role("superuser"), i))
	}
	if err := c.Client(nodetest.Role("admin")).Seal(ctx, ""); secret.CodeOf(err) != secret.CodeDenied {
		t.Fatal("an admin sealed the cluster:", err)
	}
	follower := (c.Leader() + 1) % 3
	for range 2 { // it is sealed already the second time
		if err := each[follower].Seal(ctx, ""); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		refusedSealed(t, each[i])
		c.Stop(i)
		c.Start(i)
		nodetest.Eventually(t, "the peer knows that the cluster is sealed", func() error {
			for _, p := range c.Node(i).Status(ctx).Peers {
				if p.ID == c.Node(i).Health().Peer && p.Sealed && strings.Contains(p.Reason, "an operator sealed the cluster") {
					return nil
				}
			}
			return errors.New("it does not say so")
		})
		refusedSealed(t, each[i])
	}
	share := client.RestoreRequest{Index: 1, Share: make([]byte, 32)}
	if _, err := c.Client(nodetest.Role("restore")).Restore(ctx, share); reason(err) != "operator_sealed" {
		t.Error("a recovery share at a sealed cluster:", err)
	}
	if err := super.Unseal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	for _, cl := range each {
		if v := get(t, cl, "a/b"); v != "x" {
			t.Errorf("read %q", v)
		}
	}
}

// One peer is sealed by itself: the others serve and lead, and it stays sealed
// over restarts of its own and the unsealing of the cluster.
func TestSealOfOnePeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	super := c.Client(nodetest.Role("superuser"))
	put(t, super, "a/b", "x")
	leader := c.Leader()
	id := c.Node(leader).Health().Peer
	alone := c.Client(nodetest.Role("superuser"), leader)
	if err := super.Seal(ctx, "nobody"); secret.CodeOf(err) != secret.CodeNotFound {
		t.Fatal("sealed a peer that is not there:", err)
	}
	if err := super.Seal(ctx, id); err != nil {
		t.Fatal(err)
	}
	refusedSealed(t, alone)
	nodetest.Eventually(t, "another peer leads", func() error {
		if c.Leader() == leader {
			return errors.New("a peer without keys leads on")
		}
		return nil
	})
	var others []int
	for i := range 3 {
		if i != leader {
			others = append(others, i)
		}
	}
	rest := c.Client(nodetest.Role("superuser"), others...)
	put(t, rest, "a/c", "y")

	c.Stop(leader)
	c.Start(leader)
	if err := rest.Unseal(ctx, ""); err != nil { // of the cluster, which is not sealed
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the peer follows and says why it is sealed", func() error {
		for _, p := range c.Node(others[0]).Status(ctx).Peers {
			if p.ID == id && p.Reachable && p.Sealed && strings.Contains(p.Reason, "an operator sealed this peer") {
				return nil
			}
		}
		return errors.New("it does not say so")
	})
	refusedSealed(t, alone)
	if err := rest.Unseal(ctx, id); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	if v := get(t, alone, "a/c"); v != "y" {
		t.Errorf("read %q", v)
	}
}

// A peer is sealed again and again while it unseals: it never ends up with keys.
func TestSealOfOnePeerMeetsItsUnsealing(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	super := c.Client(nodetest.Role("superuser"))
	put(t, super, "a/b", "x")
	id := c.Node(0).Health().Peer
	for range 30 {
		if err := super.Unseal(ctx, id); err != nil {
			t.Fatal(err)
		}
		if err := super.Seal(ctx, id); err != nil {
			t.Fatal(err)
		}
		if !c.Node(0).Health().Sealed {
			t.Fatal("the peer has keys after its seal was acknowledged")
		}
	}
	refusedSealed(t, super)
	if err := super.Unseal(ctx, id); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	if v := get(t, super, "a/b"); v != "x" {
		t.Errorf("read %q", v)
	}
}

func reason(err error) string {
	var e *secret.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Keys that were on their way to a peer when it was sealed by itself do not stay in its memory.
func TestSealOfOnePeerDropsLateKeys(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	super := c.Client(nodetest.Role("superuser"))
	if err := super.Seal(ctx, "nexus-3"); err != nil {
		t.Fatal(err)
	}
	n := c.Node(2)
	if err := n.LateKeys(ctx); err != nil || !n.HasKeys() {
		t.Fatal("no keys came: ", err)
	}
	n.Poke()
	nodetest.Eventually(t, "the keys are gone", func() error {
		if n.HasKeys() {
			return errors.New("they are here")
		}
		return nil
	})
}
