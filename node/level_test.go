package node_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// Reads of level index: a client reads what it wrote, through whichever peer, and
// still reads when that peer is left without a quorum, but hears of nothing that
// it is not there.
func TestIndexReads(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	on := true
	if _, err := su.PutSettings(ctx, client.SettingsRequest{IndexReads: &on}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		cl, err := client.New(client.Config{Addresses: []string{c.Address(i), c.Address((i + 1) % 3)}, IndexReads: true,
			TLS: c.Source(nodetest.Role("superuser")).Client(nodetest.Anyone), Patience: nodetest.Patience})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		for k := range 20 {
			value := fmt.Sprint(i, ".", k)
			if _, err := cl.Put(ctx, "level/a", map[string]string{"v": value}, nil); err != nil {
				t.Fatal(err)
			}
			if got, _, err := cl.Get(ctx, "level/a", 0); err != nil || got["v"] != value {
				t.Fatal(got, err, value)
			}
		}
	}

	left := c.Leader()
	alone, err := client.New(client.Config{Addresses: []string{c.Address(left)}, IndexReads: true,
		TLS: c.Source(nodetest.Role("superuser")).Client(nodetest.Anyone)})
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	linearizable := c.Client(nodetest.Role("superuser"), left)
	if _, _, err := alone.Get(ctx, "level/a", 0); err != nil { // a token from when there was a quorum
		t.Fatal(err)
	}
	for i := range 3 {
		if i != left {
			c.Stop(i)
		}
	}
	if got, _, err := alone.Get(ctx, "level/a", 0); err != nil || got["v"] != "2.19" {
		t.Fatal(got, err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, _, err := linearizable.Get(short, "level/a", 0); secret.CodeOf(err) != secret.CodeUnavailable {
		t.Fatal(err)
	}
	short, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, _, err := alone.Get(short, "level/none", 0); secret.CodeOf(err) != secret.CodeUnavailable {
		t.Fatal("not found was answered without a quorum: ", err)
	}
}
