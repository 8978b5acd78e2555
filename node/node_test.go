package node_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/spike-ha/spike-ha/node/nodetest"
)

// The thinnest path through every layer: three peers, three Keepers, a write
// through one peer and the same read from all.
func TestPutAndGetThroughEveryPeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	for i := range 3 {
		path := fmt.Sprintf("tenants/acme/db-%d", i)
		if _, err := c.Client(nodetest.Role("superuser"), i).Put(ctx, path, map[string]string{"password": fmt.Sprint("s3cret-", i)}, nil); err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			values, answer, err := c.Client(nodetest.Role("superuser"), j).Get(ctx, path, 0)
			if err != nil || values["password"] != fmt.Sprint("s3cret-", i) || answer.Version != 1 {
				t.Fatalf("written through peer %d, read through %d: %v %v %v", i+1, j+1, values, answer, err)
			}
		}
	}
}

// A peer that lost its disk answers, but counts for no quorum: the status must
// not promise that another may be lost.
func TestStatusDoesNotCountAWipedPeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	wiped := (c.Leader() + 1) % 3
	other := (wiped + 1) % 3
	c.Stop(wiped)
	if err := os.RemoveAll(c.DataDir(wiped)); err != nil {
		t.Fatal(err)
	}
	c.Start(wiped)
	cl := c.Client(nodetest.Role("superuser"), other)
	nodetest.Eventually(t, "the wiped peer answers and is not counted", func() error {
		status, err := cl.Status(context.Background())
		if err != nil {
			return err
		}
		for _, p := range status.Peers {
			if p.State == "forming" && p.Reachable {
				if status.Tolerance != 0 {
					t.Fatalf("one of three peers lost its data, and %d more may be lost", status.Tolerance)
				}
				return nil
			}
		}
		return fmt.Errorf("no peer is forming: %+v", status.Peers)
	})
}
