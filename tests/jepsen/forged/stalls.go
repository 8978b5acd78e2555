package forged

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Stalls is what became of a cluster with stalling disks.
type Stalls struct {
	Setting string  `json:"setting"`
	Handler Handler `json:"handler"`
	Changes int     `json:"changes"` // of the leader
	Stalls  int     `json:"stalls"`
	Rate    float64 `json:"rate"` // acknowledged writes a second
}

// stalling is for how long disks hang, every five seconds, under Raft timers.
type stalling struct {
	hang time.Duration
	timing
}

// The settings: the product's default timing, and four times that.
var stallings = []stalling{
	{400 * time.Millisecond, timing{500 * time.Millisecond, 250 * time.Millisecond}},
	{1500 * time.Millisecond, timing{2 * time.Second, time.Second}},
}

func (s stalling) String() string {
	return fmt.Sprintf("%s, election after %s, lease %s", s.hang, s.heartbeat, s.lease)
}

// stall has the disks of both followers hang, with writers that never pause. The
// leader hears nothing of their main loops for longer than its lease: whoever
// answers heartbeats meanwhile decides whether it goes on.
func stall(ctx context.Context, h Handler, s stalling, length time.Duration) (Stalls, error) {
	c, err := start(h, [nodes]timing{s.timing, s.timing, s.timing})
	if err != nil {
		return Stalls{}, err
	}
	defer c.stop()
	if err := c.settle(ctx); err != nil {
		return Stalls{}, err
	}
	result := Stalls{Setting: s.String(), Handler: h}
	first := c.term()
	running, end := context.WithTimeout(ctx, length)
	defer end()
	var done atomic.Int64
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; running.Err() == nil; i++ {
				n, err := c.leader(running, c.nodes)
				if err == nil && n.raft.Load().Apply(fmt.Appendf(nil, "%d %d", w, i), 100*time.Millisecond).Error() == nil {
					done.Add(1)
				}
			}
		})
	}
	for sleep(running, 5*time.Second-s.hang) == nil {
		hang := make(chan struct{})
		for _, n := range c.nodes {
			if !n.leads() {
				n.disk.hang.Store(&hang)
			}
		}
		_ = sleep(ctx, s.hang)
		for _, n := range c.nodes {
			n.disk.hang.Store(nil)
		}
		close(hang)
		result.Stalls++
	}
	writers.Wait()
	result.Changes = int(c.term() - first)
	result.Rate = float64(done.Load()) / length.Seconds()
	return result, ctx.Err()
}

// term is the newest, one more with each leader that was elected.
func (c *cluster) term() (newest uint64) {
	for _, n := range c.nodes {
		newest = max(newest, n.term())
	}
	return newest
}
