package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func TestFormProposeReadRestart(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leader()
	for i, p := range c.peers {
		want := fmt.Sprintf("from %s", p.ID)
		r := c.propose(c.nodes[p.ID], want)
		if got := string(r.Data); got != fmt.Sprintf("%d:%s", i+1, want) || r.Index == 0 || r.Term == 0 {
			t.Errorf("proposed at %s: %+v", p.ID, r)
		}
		for _, q := range c.peers {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			index, err := c.nodes[q.ID].WaitRead(ctx)
			cancel()
			if err != nil || index < r.Index || !c.sms[q.ID].has(want) {
				t.Errorf("written at %s, read at %s: index %d of %d, %v", p.ID, q.ID, index, r.Index, err)
			}
		}
	}
	before := c.same()
	id, inc, ok := c.nodes["n2"].Identity()
	if !ok || inc != 1 {
		t.Fatal("no identity")
	}
	c.stopAll()
	c.startAll()
	c.leader()
	if id2, _, _ := c.nodes["n2"].Identity(); id2 != id {
		t.Error("identity changed over a restart")
	}
	if _, err := c.nodes["n1"].WaitRead(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.propose(c.nodes["n3"], "after")
	if after := c.same(); len(after) != len(before)+1 {
		t.Errorf("after a restart: %q, before %q", after, before)
	}
}

func TestOnePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "only")
	c.startAll()
	n := c.leader()
	c.propose(n, "x")
	if _, err := n.WaitRead(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.stopAll()
	c.startAll()
	if _, err := c.nodes["only"].WaitRead(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !c.sms["only"].has("x") {
		t.Error("lost a write over a restart")
	}
}
