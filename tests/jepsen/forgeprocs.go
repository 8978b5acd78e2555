package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/harness/faultfs"
	"github.com/spike-ha/spike-ha/tests/jepsen/forged"
	"github.com/spike-ha/spike-ha/tests/jepsen/nemesis"
)

// perCluster is how many tries one cluster of processes goes through; then its logs are compared.
const perCluster = 20

// forgeProcesses brings the scenarios about with the real programs: a leader is cut off whose clock runs slow (S1), or whose disk
// hangs (U1, which takes root), another leads, and just when they meet again the old one is asked to write. There are as many tries
// of each, or of the only one that is wanted, as asked for, those of an earlier run included.
func forgeProcesses(ctx context.Context, only forged.Scenario, tries int, resume bool, defect planted.Defect, binaries, out string) int {
	counts, err := forged.Open(filepath.Join(out, "forged-processes.json"), revision, resume)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	handler := forged.Ours
	if defect == planted.HeartbeatFastPath {
		handler = forged.Stock
	}
	scenarios := []forged.Scenario{forged.Frozen}
	if os.Geteuid() == 0 {
		scenarios = append(scenarios, forged.Stalled)
	}
	if only != "" {
		if !slices.Contains(scenarios, only) {
			fmt.Fprintf(os.Stderr, "there is no scenario %q, or it takes root\n", only)
			return 3
		}
		scenarios = []forged.Scenario{only}
	}
	caught, failures := 0, 0
	for _, s := range scenarios {
		n := counts.Of(s, handler)
		for n.Tries < tries && ctx.Err() == nil {
			done, void, violations, err := forgeRound(ctx, s, min(perCluster, tries-n.Tries), defect, binaries, out)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				if failures++; failures > 3 {
					return 3
				}
			}
			for i := range void + done {
				var found []string
				var note error
				if i < void {
					note = forged.ErrVoid
				}
				if i == void+done-1 { // a round ends with it, or it showed at its end
					found = violations
				}
				if err := counts.Note(n, found, note); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 3
				}
			}
		}
		caught += n.Caught
	}
	fmt.Print(counts.Table())
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "interrupted: -resume goes on")
		return 3
	}
	if caught > 0 {
		return 1
	}
	return 0
}

// forgeRound makes tries with one cluster, until one finds something.
func forgeRound(ctx context.Context, s forged.Scenario, tries int, defect planted.Defect, binaries, out string) (done, void int, violations []string, err error) {
	dir, err := os.MkdirTemp("", "jep") // short, for the sake of sockets
	if err != nil {
		return 0, 0, nil, err
	}
	o := harness.Options{Dir: dir, Binaries: binaries, Voters: 3, Links: true}
	if defect != "" {
		o.Env = []string{"SPIKE_PLANTED=" + string(defect)}
	}
	if s == forged.Frozen {
		nemesis.SlowClock(&o)
	} else {
		o.Disks = true
	}
	started, cancel := context.WithTimeout(ctx, bringUp)
	defer cancel()
	c, err := harness.Start(started, o)
	defer func() {
		c.Close()
		if len(violations) == 0 {
			os.RemoveAll(dir)
		} else if err := move(dir, filepath.Join(out, filepath.Base(dir)+".data")); err != nil {
			fmt.Fprintf(os.Stderr, "what a violation was found in stays in %s: %v\n", dir, err)
		}
	}()
	if err != nil {
		return 0, 0, nil, err
	}
	f := &forge695{Cluster: c, target: &nemesis.Target{Cluster: c, Voters: 3}}
	var closers []func()
	defer func() {
		for _, end := range closers {
			end()
		}
	}()
	for _, to := range []struct {
		client **client.Client
		peers  []int
	}{{&f.target.Operator, nil}, {&f.old, []int{0}}, {&f.rest, []int{1, 2}}} {
		cl, end, err := c.Client(ctx, harness.Superuser, to.peers...)
		if err != nil {
			return 0, 0, nil, err
		}
		*to.client = cl
		closers = append(closers, end)
	}
	for i := 0; i < tries && len(violations) == 0 && err == nil; i++ {
		limit, cancel := context.WithTimeout(ctx, bringUp)
		violations, err = f.try(limit, s, i)
		cancel()
		switch {
		case err == nil:
			done++
		case errors.Is(err, forged.ErrVoid):
			void, err = void+1, nil
		}
	}
	applied := uint64(0)
	if status, err := f.target.Operator.Status(ctx); err == nil {
		applied = status.Peers[0].AppliedIndex // of all: see try
	}
	if same := c.SameLogs(applied); errors.Is(same, harness.ErrLogsDiffer) {
		violations = append(violations, same.Error())
	} else if err == nil {
		err = same
	}
	return done, void, violations, err
}

// forge695 is a cluster of processes, with clients of the peer whose clock is slow and of the others.
type forge695 struct {
	*harness.Cluster
	target    *nemesis.Target
	old, rest *client.Client

	mu    sync.Mutex // guards acked
	acked map[string]string
}

func (f *forge695) put(ctx context.Context, cl *client.Client, path, value string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := cl.Put(ctx, path, map[string]string{"v": value}, nil); err == nil {
		f.mu.Lock()
		f.acked[path] = value
		f.mu.Unlock()
	}
}

func (f *forge695) try(ctx context.Context, s forged.Scenario, number int) (violations []string, err error) {
	f.acked = map[string]string{}
	if err := f.target.LeadFirst(ctx); err != nil {
		return nil, err
	}
	switch err := f.meet(ctx, s, number); {
	case errors.Is(err, harness.ErrLogsDiffer):
		return []string{forged.TwoEntries + ": " + err.Error()}, nil
	case err != nil:
		return nil, err
	}
	err = harness.Poll(ctx, func() error {
		err := f.Whole(ctx, f.target.Operator)
		if errors.Is(err, harness.ErrDiverged) {
			violations = append(violations, err.Error())
			return nil
		}
		return err
	})
	if err != nil || len(violations) > 0 {
		return violations, err
	}
	for path, value := range f.acked {
		values, _, err := f.target.Operator.Get(ctx, path, 0)
		if secret.CodeOf(err) == secret.CodeNotFound || err == nil && values["v"] != value {
			return []string{forged.Lost + ": " + path}, nil
		}
	}
	return nil, nil
}

// meet has the old leader hear of the next one while it is asked to write; an ErrLogsDiffer is what came of it.
func (f *forge695) meet(ctx context.Context, s forged.Scenario, number int) error {
	var writes sync.WaitGroup
	defer writes.Wait()
	write := func(i int) {
		writes.Go(func() { f.put(ctx, f.old, fmt.Sprintf("forged/%d/old/%d", number, i), "old") })
	}
	f.apart(0)
	defer f.Links.Heal()
	if s == forged.Stalled {
		f.Disk(0).Suffer(faultfs.Fault{Stall: true, Under: "raft"})
		defer f.Disk(0).Suffer(faultfs.Fault{})
		write(-1)
	}
	f.put(ctx, f.rest, fmt.Sprintf("forged/%d/next", number), "next") // it waits for the next leader
	if s == forged.Frozen {                                           // in U1 more than the old leader has would keep it from leading again
		for i := range 30 { // until the next leader tries entries a second from now, and heartbeats four times as often
			f.put(ctx, f.rest, fmt.Sprintf("forged/%d/next/%d", number, i), "next")
			time.Sleep(80 * time.Millisecond)
		}
	}
	next := 1
	if h, err := f.rest.Health(ctx, 1); err == nil && h.Leader {
		next = 2
	}
	if h, err := f.old.Health(ctx, 0); err != nil || !h.Leader {
		return fmt.Errorf("%w: %s does not lead at the heal: %v", forged.ErrVoid, harness.PeerName(0), err)
	}
	type step struct {
		at time.Duration
		do func()
	}
	after := func(least, most int) time.Duration {
		return time.Duration(least+rand.IntN(most-least+1)) * time.Millisecond
	}
	steps := []step{{0, f.Links.Heal}}
	if s == forged.Stalled {
		steps = append(steps, step{after(0, 30), func() { f.Disk(0).Suffer(faultfs.Fault{}) }}, step{after(31, 60), func() { f.apart(next) }})
	}
	// The next leader tries entries ever more rarely, and says within half a heartbeat timeout that it leads. What is proposed while the old one
	// makes the next term durable is harmless, and ends its leading: writes are farther apart than that takes.
	for i := range 12 {
		steps = append(steps, step{time.Duration(i) * 25 * time.Millisecond, func() { write(i) }})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	healed := time.Now()
	for _, step := range steps {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(healed.Add(step.at))):
			step.do()
		}
	}
	if s == forged.Frozen { // what was forged is overwritten as soon as the next leader sends entries
		return f.frozenLogs()
	}
	f.put(ctx, f.old, fmt.Sprintf("forged/%d/last", number), "last") // the other two go on without the next leader
	return nil
}

// frozenLogs compares the logs as they are now: of peers that stand still meanwhile.
func (f *forge695) frozenLogs() (failed error) {
	var dirs []string
	for i := range f.Peers() {
		failed = errors.Join(failed, f.Peer(i).Freeze())
		dirs = append(dirs, f.DataDir(i))
	}
	if failed == nil {
		failed = harness.SameLogs(0, dirs...)
	}
	for i := range f.Peers() {
		failed = errors.Join(failed, f.Peer(i).Thaw())
	}
	return failed
}

// apart has one peer and the others refuse each other's connections.
func (f *forge695) apart(alone int) {
	for i := range f.Peers() {
		if i != alone {
			f.Links.Refuse(alone, i)
			f.Links.Refuse(i, alone)
		}
	}
}
