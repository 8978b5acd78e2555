package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cli/internal/devcluster"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/secret"
)

// tour is the guided tour: real processes, real kills, and a check of each
// thing that is claimed.
type tour struct {
	cluster *devcluster.Supervisor
	operate *client.Client   // any peer
	peers   []*client.Client // peers[i] asks only nexus-(i+1)
	written []string         // the value of each version, as it was acknowledged
	report  func(tourStep)
}

type tourStep struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
	took    time.Duration
}

const (
	tourPath    = "demo/greeting"
	tourKey     = "text"
	stepTimeout = 60 * time.Second
)

func (t *tour) walk(ctx context.Context, begin time.Time, wait time.Duration) error {
	up, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	status, err := t.cluster.BringUp(up)
	if err != nil {
		return err
	}
	shape := t.cluster.Shape()
	if shape.Peers < 3 {
		return errors.New("the cluster in this directory has fewer than 3 peers; the tour kills the leader and goes on")
	}
	t.report(tourStep{What: fmt.Sprintf("%d Nexus peers and %d Keepers run, each a process of its own; %s leads",
		shape.Peers, shape.Keepers, status.Leader), took: time.Since(begin)})
	for i := 0; i <= shape.Peers; i++ {
		var only []int
		if i > 0 {
			only = []int{i}
		}
		cl, done, err := t.cluster.Client(ctx, devcluster.RolePath("superuser"), only...)
		if err != nil {
			return err
		}
		defer done()
		if i == 0 {
			t.operate = cl
		} else {
			t.peers = append(t.peers, cl)
		}
	}
	if err := t.recall(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) (tourStep, error){t.followerWrites, t.leaderDies, t.leaderReturns, t.allDie} {
		bounded, cancel := context.WithTimeout(ctx, stepTimeout)
		begin := time.Now()
		s, err := step(bounded)
		cancel()
		if err != nil {
			return err
		}
		if s.took == 0 {
			s.took = time.Since(begin)
		}
		t.report(s)
	}
	return nil
}

// recall takes over what a tour in the same directory wrote before.
func (t *tour) recall(ctx context.Context) error {
	answer, err := t.operate.List(ctx, tourPath)
	if err != nil || len(answer.Keys) == 0 {
		return err
	}
	_, err = t.operate.Purge(ctx, tourPath)
	return err
}

func (t *tour) followerWrites(ctx context.Context) (s tourStep, err error) {
	leader, err := t.leader(ctx)
	if err != nil {
		return s, err
	}
	follower := (leader + 1) % len(t.peers)
	begin := time.Now()
	if err := t.write(ctx, follower); err != nil {
		return s, err
	}
	for i := range t.peers {
		if err := t.readBack(ctx, i); err != nil {
			return s, err
		}
	}
	return tourStep{What: fmt.Sprintf("a follower, %s, took a write, and every peer reads it", peerName(follower)), took: time.Since(begin)}, nil
}

func (t *tour) leaderDies(ctx context.Context) (s tourStep, err error) {
	leader, err := t.leader(ctx)
	if err != nil {
		return s, err
	}
	if err := t.cluster.Kill(peerName(leader)); err != nil {
		return s, err
	}
	begin := time.Now()
	for i := range t.peers {
		if i == leader {
			continue
		}
		if err := t.write(ctx, i); err != nil {
			return s, fmt.Errorf("after the leader %s was killed: %w", peerName(leader), err)
		}
	}
	for i := range t.peers {
		if i == leader {
			continue
		}
		if err := t.readBack(ctx, i); err != nil {
			return s, err
		}
	}
	return tourStep{What: fmt.Sprintf("the leader, %s, was killed (SIGKILL); the others elected another, wrote and read", peerName(leader)), took: time.Since(begin)}, nil
}

func (t *tour) leaderReturns(ctx context.Context) (s tourStep, err error) {
	var name string
	var number int
	for i := range t.peers {
		if p := t.process(peerName(i)); p.State == process.Killed {
			name, number = p.Name, i
		}
	}
	begin := time.Now()
	if err := t.cluster.Start(name); err != nil {
		return s, err
	}
	status, err := t.alike(ctx)
	if err != nil {
		return s, fmt.Errorf("after %s was started again: %w", name, err)
	}
	if err := t.readBack(ctx, number); err != nil {
		return s, err
	}
	return tourStep{What: fmt.Sprintf("%s was started again: unsealed by itself and caught up (index %d, state %.8s on all)",
		name, status.Peers[0].AppliedIndex, status.Peers[0].StateHash), took: time.Since(begin)}, nil
}

func (t *tour) allDie(ctx context.Context) (s tourStep, err error) {
	var wait sync.WaitGroup
	for i := range t.peers {
		wait.Go(func() { t.cluster.Kill(peerName(i)) }) // whether it did is seen below
	}
	wait.Wait()
	for i := range t.peers {
		if p := t.process(peerName(i)); p.State != process.Killed {
			return s, fmt.Errorf("%s was to be killed and is %s", p.Name, p.State)
		}
	}
	begin := time.Now()
	for i := range t.peers {
		if err := t.cluster.Start(peerName(i)); err != nil {
			return s, err
		}
	}
	if _, err := t.alike(ctx); err != nil {
		return s, fmt.Errorf("after every peer was killed and started again: %w", err)
	}
	for i := range t.peers {
		for v, want := range t.written {
			if err := t.readVersion(ctx, i, v+1, want); err != nil {
				return s, err
			}
		}
	}
	return tourStep{What: fmt.Sprintf("all %d peers were killed at once and started again: unsealed by themselves, nothing is lost", len(t.peers)), took: time.Since(begin)}, nil
}

func peerName(i int) string { return fmt.Sprintf("nexus-%d", i+1) }

func (t *tour) process(name string) process.Info {
	for _, p := range t.cluster.Processes() {
		if p.Name == name {
			return p
		}
	}
	return process.Info{Name: name}
}

// leader waits for a leader and returns its number.
func (t *tour) leader(ctx context.Context) (leader int, err error) {
	err = devcluster.Poll(ctx, func() error {
		status, err := t.operate.Status(ctx)
		if err != nil {
			return err
		}
		for i := range t.peers {
			if status.Leader == peerName(i) {
				leader = i
				return nil
			}
		}
		return errors.New("the cluster has no leader")
	})
	return leader, err
}

// write writes the next version through peer i alone.
func (t *tour) write(ctx context.Context, i int) error {
	value := rand.Text()
	answer, err := t.peers[i].Put(ctx, tourPath, map[string]string{tourKey: value}, nil)
	if err != nil {
		return fmt.Errorf("a write through %s: %w", peerName(i), err)
	}
	t.written = append(t.written, value)
	if int(answer.Version) != len(t.written) {
		return fmt.Errorf("a write through %s became version %d and should be %d", peerName(i), answer.Version, len(t.written))
	}
	return nil
}

// readBack reads the last version through peer i alone.
func (t *tour) readBack(ctx context.Context, i int) error {
	return t.readVersion(ctx, i, 0, t.written[len(t.written)-1])
}

func (t *tour) readVersion(ctx context.Context, i, version int, want string) error {
	values, _, err := t.peers[i].Get(ctx, tourPath, secret.Version(version))
	if err != nil {
		return fmt.Errorf("a read through %s: %w", peerName(i), err)
	}
	if values[tourKey] != want {
		return fmt.Errorf("%s does not read what was written last", peerName(i))
	}
	return nil
}

// alike waits until all peers are up, unsealed, and hold the very same state.
func (t *tour) alike(ctx context.Context) (status client.Status, err error) {
	err = devcluster.Poll(ctx, func() (err error) {
		if status, err = t.cluster.Serving(ctx, t.operate); err != nil {
			return err
		}
		first := status.Peers[0]
		for _, p := range status.Peers[1:] {
			if p.AppliedIndex != first.AppliedIndex || p.StateHash != first.StateHash {
				return fmt.Errorf("%s is at index %d (state %.8s…) and %s at %d (%.8s…)",
					p.ID, p.AppliedIndex, p.StateHash, first.ID, first.AppliedIndex, first.StateHash)
			}
		}
		return nil
	})
	return status, err
}
