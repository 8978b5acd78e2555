package e2e

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// A rolling restart of all peers, under load, makes no request fail that knows
// all peers. Whoever knows one peer only waits for that one.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	all, single := rollingRestart(t, "500ms")
	t.Logf("longest time without an answer: %s through all peers, %s through one", all.Round(time.Millisecond), single.Round(time.Millisecond))
}

// BenchmarkRollingRestart reports the longest time without an answer that a
// client saw that knows all peers, and one that knows one.
func BenchmarkRollingRestart(b *testing.B) {
	for range b.N {
		all, single := rollingRestart(b, "500ms")
		b.ReportMetric(all.Seconds(), "s-through-all")
		b.ReportMetric(single.Seconds(), "s-through-one")
	}
}

// rollingRestart stops and starts each peer, the leader among them, while
// clients read and write, and returns the longest times without an answer that
// clients saw which know all peers, and one.
func rollingRestart(t testing.TB, grace string) (all, single time.Duration) {
	c := broken(t, harness.Options{Voters: 3, Keepers: 3, Args: []string{"--drain-grace", grace}})
	operator := c.client(harness.Superuser)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		done = make(chan struct{})
		made [6]atomic.Int64
	)
	work := func(longest *time.Duration, request func(n int) error) {
		wg.Go(func() {
			last := time.Now()
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := request(n); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				*longest = max(*longest, time.Since(last))
				mu.Unlock()
				last = time.Now()
			}
		})
	}
	for w := range len(made) {
		cl := c.client(harness.Superuser, 0, 1, 2)
		path := fmt.Sprintf("rolling/%d", w/2)
		work(&all, func(int) error {
			if w%2 == 1 {
				_, err := cl.List(ctx, "rolling/")
				return err
			}
			n := made[w].Load()
			answer, err := cl.Put(ctx, path, map[string]string{"n": strconv.FormatInt(n+1, 10)}, nil)
			if err == nil && int64(answer.Version) != n+1 {
				return fmt.Errorf("%s: version %d after %d acknowledged writes", path, answer.Version, n)
			}
			made[w].Add(1)
			return err
		})
	}
	for i := range c.Peers() {
		cl := c.client(harness.Superuser, i)
		work(&single, func(int) error {
			_, err := cl.List(ctx, "rolling/")
			return err
		})
	}
	first := c.leader(operator)
	for i := range c.Peers() {
		at := (first + i) % c.Peers()
		c.must(c.Peer(at).Stop(nil))
		c.must(c.Peer(at).Start())
		c.eventually("it serves again", func() error { return serves(operator, c.Peers()) })
	}
	close(done)
	wg.Wait()
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, operator) })
	var total int64
	for w := range made {
		total += made[w].Load()
	}
	t.Logf("%d writes were acknowledged", total)
	return all, single
}

// serves is nil when n peers serve.
func serves(operator *client.Client, n int) error {
	s, err := status(operator)
	if err != nil {
		return err
	}
	for _, p := range s.Peers {
		if !p.Reachable || p.Sealed {
			return fmt.Errorf("%s is %s, sealed %v: %s", p.ID, p.State, p.Sealed, p.Reason)
		}
	}
	if len(s.Peers) != n {
		return fmt.Errorf("%d peers", len(s.Peers))
	}
	return nil
}
