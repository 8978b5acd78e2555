package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
)

func benchCluster(b *testing.B) *testCluster {
	c := newTestCluster(b, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) {
		cfg.Timing = Timing{Heartbeat: time.Second, Election: time.Second}
		cfg.StateMachine = discard{}
	}
	c.startAll()
	c.leader()
	return c
}

// discard answers and forgets.
type discard struct{}

func (discard) Apply(_, _ uint64, commands [][]byte) ([][]byte, error) {
	return make([][]byte, len(commands)), nil
}
func (discard) Snapshot() (Snapshot, error) { return journalSnapshot{}, nil }

func (discard) Restore(io.Reader) error { return nil }

func parallel(b *testing.B, workers int, f func() error) {
	b.Helper()
	var wg sync.WaitGroup
	jobs := make(chan struct{})
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range jobs {
				if err := f(); err != nil {
					b.Error(err)
				}
			}
		}()
	}
	b.ResetTimer()
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func BenchmarkPropose(b *testing.B) {
	command := bytes.Repeat([]byte("x"), 300)
	for _, at := range []string{"leader", "follower"} {
		for _, writers := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("at=%s/writers=%d", at, writers), func(b *testing.B) {
				c := benchCluster(b)
				n := c.leader()
				if at == "follower" {
					n = c.follower()
				}
				parallel(b, writers, func() error {
					_, err := n.Propose(context.Background(), command)
					return err
				})
			})
		}
	}
}

func BenchmarkWaitRead(b *testing.B) {
	for _, at := range []string{"leader", "follower"} {
		for _, readers := range []int{1, 64} {
			b.Run(fmt.Sprintf("at=%s/readers=%d", at, readers), func(b *testing.B) {
				c := benchCluster(b)
				n := c.leader()
				c.propose(n, "x")
				if at == "follower" {
					n = c.follower()
				}
				parallel(b, readers, func() error {
					_, err := n.WaitRead(context.Background())
					return err
				})
			})
		}
	}
}

// BenchmarkReadAfterWrite writes at the leader and reads at a follower of an
// otherwise idle cluster.
func BenchmarkReadAfterWrite(b *testing.B) {
	c := benchCluster(b)
	l, f := c.leader(), c.follower()
	parallel(b, 1, func() error {
		if _, err := l.Propose(context.Background(), []byte("x")); err != nil {
			return err
		}
		_, err := f.WaitRead(context.Background())
		return err
	})
}
