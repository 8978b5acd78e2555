// Package forged reproduces hashicorp/raft#695: entries that a deposed leader
// forges when it hears of the next one.
//
// The library answers heartbeats on the connection's goroutine. That of a newer
// leader makes a follower of the old one and sets the newer term, while the old
// one's main loop, which saw a moment ago that it leads, waits for something to
// do. The next proposal that it takes is stored as an entry of the new term, in
// which another leads. From then on what Raft rests on is gone: two logs that
// hold an entry of the same index and term may differ, in it and before it.
//
// Three nodes run the library in this process, over its NetworkTransport on the
// loopback, with its own handler or the product's. The old leader still leads
// when it hears of the next one in two scenarios.
package forged

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Scenario is a way to have an old leader meet the next one.
type Scenario string

// The scenarios.
const (
	// Frozen: the old leader's clock runs 30 times slower than the others'. Nothing
	// happens after the heal but writes, each 5 ms.
	Frozen Scenario = "S1"
	// Stalled: the old leader's disk hangs from the partition until up to 30 ms
	// after the heal. It is asked to write each 10 ms. The new leader is cut off
	// again, at most 60 ms after the heal.
	Stalled Scenario = "U1"
)

// quick is the timing of tries; they take seconds.
var quick = timing{150 * time.Millisecond, 75 * time.Millisecond}

// ErrVoid says that a try did not bring the scenario about, and means nothing.
var ErrVoid = errors.New("void")

// Try brings a scenario about once, and returns the violations. The error is
// ErrVoid, or the machine's.
func Try(ctx context.Context, s Scenario, h Handler) (violations []string, err error) {
	timings := [nodes]timing{quick, quick, quick}
	if s == Frozen {
		timings[0] = timing{30 * quick.heartbeat, 30 * quick.lease}
	}
	c, err := start(h, timings)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, fmt.Errorf("%w: it takes too long", ErrVoid))
	defer cancel()
	if err := c.meet(ctx, s); err != nil {
		return nil, err
	}
	settled := c.settle(ctx)
	if violations = c.judge(); len(violations) > 0 {
		return violations, nil
	}
	return nil, settled
}

// cluster is what one try runs.
type cluster struct {
	network *network
	nodes   []*node
	writes  sync.WaitGroup

	mu    sync.Mutex // guards acked
	acked map[uint64]string
}

func (c *cluster) stop() {
	for _, n := range c.nodes {
		n.release()
	}
	var wait sync.WaitGroup
	for _, n := range c.nodes {
		wait.Go(func() {
			if r := n.raft.Load(); r != nil {
				_ = r.Shutdown().Error() // closes the transport
			}
			if t, ok := n.transport.(interface{ Close() error }); ok {
				_ = t.Close()
			}
			n.listener.Close()
		})
	}
	wait.Wait()
	c.writes.Wait()
}

// release ends a hanging write.
func (n *node) release() {
	if hang := n.disk.hang.Swap(nil); hang != nil {
		close(*hang)
	}
}

// meet has an old leader write while it hears of the next one.
func (c *cluster) meet(ctx context.Context, s Scenario) error {
	old := c.nodes[0]
	if err := c.lead(ctx, old); err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if s == Stalled {
		hang := make(chan struct{})
		old.disk.hang.Store(&hang)
	}
	c.network.isolate(old.number)
	write, pause := c.writer(old, "old"), 5*time.Millisecond
	if s == Stalled {
		pause = 10 * time.Millisecond
		write()
	}
	next, err := c.leader(ctx, c.nodes[1:])
	if err != nil {
		return err
	}
	// The new leader tries entries ever more rarely, and heartbeats as often as
	// before: one of these comes first, most of the time. What it stores meanwhile
	// is at the places where forged entries would be; in U1 little, or the old
	// leader's log could not win the next election.
	between, many := c.writer(next, "next"), 75
	if s == Stalled {
		many = 1
	}
	for i := range 75 {
		if i < many {
			between()
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	// On a busy machine it may have lost an election since.
	if next, err = c.leader(ctx, c.nodes[1:]); err != nil {
		return err
	}
	if !old.leads() || next.term() <= old.term() || s == Stalled && !old.disk.hung.Load() {
		return fmt.Errorf("%w: there are no two leaders at the heal", ErrVoid)
	}
	healed := time.Now()
	c.network.heal()
	release, cut := time.Duration(0), time.Duration(rand.IntN(61))*time.Millisecond
	if s == Stalled {
		release = time.Duration(rand.IntN(31)) * time.Millisecond
	}
	for isolated := s != Stalled; time.Since(healed) < 300*time.Millisecond; {
		since := time.Since(healed)
		if since >= release {
			old.release()
		}
		if !isolated && since >= cut {
			c.network.isolate(next.number)
			isolated = true
		}
		write()
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	if s == Stalled { // the other two go on without it
		_, err := c.leader(ctx, []*node{old, c.nodes[3-next.number]})
		if err != nil && ctx.Err() != nil {
			return err
		}
		c.network.heal()
	}
	return nil
}

// writer makes writes of different data.
func (c *cluster) writer(n *node, name string) func() {
	i := 0
	return func() {
		i++
		c.write(n, fmt.Sprintf("%s %d", name, i))
	}
}

// lead has a node lead.
func (c *cluster) lead(ctx context.Context, n *node) error {
	for {
		l, err := c.leader(ctx, c.nodes)
		if err != nil || l == n {
			return err
		}
		id := n.listener.Addr().String()
		_ = l.raft.Load().LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)).Error()
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// leader waits until one of some leads.
func (c *cluster) leader(ctx context.Context, of []*node) (*node, error) {
	limit := time.Now().Add(5 * time.Second)
	for {
		for _, n := range of {
			if n.leads() {
				return n, nil
			}
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("%w: nobody leads", ErrVoid)
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// settle waits until a last write is applied everywhere.
func (c *cluster) settle(ctx context.Context) error {
	limit := time.Now().Add(4 * time.Second)
	for time.Now().Before(limit) {
		for _, n := range c.nodes {
			if !n.leads() {
				continue
			}
			f := n.raft.Load().Apply([]byte("last"), 100*time.Millisecond)
			if f.Error() != nil {
				continue
			}
			for end := time.Now().Add(time.Second); time.Now().Before(end); {
				if c.applied() >= f.Index() {
					return nil
				}
				if err := sleep(ctx, 5*time.Millisecond); err != nil {
					return err
				}
			}
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it does not settle", ErrVoid)
}

// applied is what all state machines were given.
func (c *cluster) applied() uint64 {
	least := ^uint64(0)
	for _, n := range c.nodes {
		n.machine.mu.Lock()
		least = min(least, n.machine.last)
		n.machine.mu.Unlock()
	}
	return least
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
