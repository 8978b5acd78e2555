package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

// The cluster is sealed under load, with one follower cut off and the leader
// killed the moment it was acknowledged: whatever begins after that is served
// nowhere, restarted peers stay sealed, and what was acknowledged before is there
// when an operator opens it again.
func TestSealUnderLoad(t *testing.T) {
	t.Parallel()
	c := broken(t, harness.Options{Voters: 3, Keepers: 3, Links: true})
	super := c.client(harness.Superuser)
	_, err := super.Put(ctx, "first", map[string]string{"v": "1"}, nil)
	c.must(err)
	leader := c.leader(super)
	cut, other := (leader+1)%3, (leader+2)%3

	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := []string{"first"}
	for i := range 3 {
		cl := c.client(harness.Superuser, i)
		wg.Go(func() {
			for n := range 1 << 20 {
				limit, cancel := context.WithTimeout(ctx, 2*time.Second)
				path := fmt.Sprintf("load/%d/%d", i, n)
				_, err := cl.Put(limit, path, map[string]string{"v": "1"}, nil)
				cancel()
				if err != nil {
					return // sealed, or cut off
				}
				mu.Lock()
				acknowledged = append(acknowledged, path)
				mu.Unlock()
			}
		})
	}
	c.eventually("writes through every peer", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(acknowledged) < 100 {
			return fmt.Errorf("%d so far", len(acknowledged))
		}
		return nil
	})
	c.Links.Partition([]int{cut}, []int{leader, other})
	c.must(c.client(harness.Superuser, other).Seal(ctx, ""))
	refused := func(i int) {
		t.Helper()
		limit, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		defer cancel()
		if _, _, err := c.client(harness.Superuser, i).Get(limit, "first", 0); err == nil {
			t.Errorf("%s served after the seal was acknowledged", harness.PeerName(i))
		}
	}
	for i := range 3 {
		refused(i)
	}
	c.Peer(leader).Kill()
	wg.Wait()
	c.Links.Heal()
	c.must(c.Peer(leader).Start())
	c.eventually("every peer knows that it is sealed", func() error {
		s, err := status(super)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if !s.Sealed || !p.Reachable || !p.Sealed || p.Lag > 0 {
				return errors.New(p.ID + " does not, yet")
			}
		}
		return nil
	})
	for i := range 3 {
		refused(i)
	}
	c.must(super.Unseal(ctx, ""))
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, super) })
	for i := range 3 {
		cl := c.client(harness.Superuser, i)
		for _, path := range acknowledged {
			if _, _, err := cl.Get(ctx, path, 0); err != nil {
				t.Fatalf("%s through %s: %v", path, harness.PeerName(i), err)
			}
		}
	}
	t.Logf("%d acknowledged writes are on every peer", len(acknowledged))
}
