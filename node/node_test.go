package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
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

// Without a majority a change is certainly not made, and the caller hears that:
// also when its time ends before the peer's patience.
func TestWithoutAMajorityNothingIsInDoubt(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	left := c.Leader()
	c.Stop((left + 1) % 3)
	c.Stop((left + 2) % 3)
	nodetest.Eventually(t, "the one that is left knows no leader", func() error {
		if leader := c.Node(left).Status(context.Background()).Leader; leader != "" {
			return errors.New(leader)
		}
		return nil
	})
	for name, change := range map[string]func(context.Context, *client.Client) error{
		"put": func(ctx context.Context, cl *client.Client) error {
			_, err := cl.Put(ctx, "a/b", map[string]string{"k": "v"}, nil)
			return err
		},
		"join":   func(ctx context.Context, cl *client.Client) error { return cl.AddMember(ctx, "nexus-9", "127.0.0.1:1") },
		"remove": func(ctx context.Context, cl *client.Client) error { return cl.RemoveMember(ctx, "nexus-3") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if err := change(ctx, c.Client(nodetest.Role("superuser"))); secret.CodeOf(err) != secret.CodeUnavailable || !strings.Contains(err.Error(), "leader") {
				t.Errorf("%s: %v", secret.CodeOf(err), err)
			}
		})
	}
}
