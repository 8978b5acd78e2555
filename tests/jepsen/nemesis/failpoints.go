package nemesis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// place is a step of the programs, who gets there, and what brings him there.
type place struct {
	step failpoint.Name
	who  role
	by   errand
}

type role int

const (
	leading   role = iota // the leader
	following             // a voter that does not lead
	keeping               // a Keeper
)

// errand is what an operator does, again and again until it is done.
type errand struct {
	name  string
	do    func(ctx context.Context, t *Target, ask *client.Client, id string, victim *process.Child) error
	after func(ctx context.Context, t *Target) error // when the victim is back; nil: nothing
}

// The errands. Clients bring about the rest: traffic needs nothing else.
var (
	traffic = errand{name: "traffic"}
	rekey   = errand{name: "a rekey", do: func(ctx context.Context, _ *Target, ask *client.Client, id string, _ *process.Child) error {
		return ask.Rekey(ctx, client.RekeyRequest{ID: id, Force: true})
	}}
	rotation = errand{name: "a rotation", do: func(ctx context.Context, _ *Target, ask *client.Client, _ string, _ *process.Child) error {
		return ask.RotateKeys(ctx)
	}}
	sealing = errand{name: "a seal", do: func(ctx context.Context, t *Target, ask *client.Client, _ string, _ *process.Child) error {
		return errors.Join(t.attempt(ctx, "seal", func(ctx context.Context) error { return ask.Seal(ctx, "") }),
			t.attempt(ctx, "unseal", func(ctx context.Context) error { return ask.Unseal(ctx, "") }))
	}, after: func(ctx context.Context, t *Target) error {
		return t.record(ctx, "unseal", func(ctx context.Context) error { return t.Operator.Unseal(ctx, "") })
	}}
	transfer = errand{name: "a transfer", do: func(ctx context.Context, t *Target, _ *client.Client, _ string, victim *process.Child) error {
		return t.Operator.TransferLeadership(ctx, victim.Name)
	}}
	restart = errand{name: "its restart", do: func(ctx context.Context, t *Target, _ *client.Client, _ string, victim *process.Child) error {
		if err := errors.Join(down(victim), up(victim)); err != nil {
			return err
		}
		return harness.Poll(ctx, func() error { // it takes its time
			if !t.Reached(victim) {
				return errNotYet
			}
			return nil
		})
	}}
	empty = errand{name: "an empty Keeper", do: func(_ context.Context, t *Target, _ *client.Client, _ string, _ *process.Child) error {
		return errors.Join(down(t.Keeper(0)), up(t.Keeper(0)))
	}}
)

// places are those that no end-to-end test has for itself, and those that matter under load.
var places = []place{
	{failpoint.ClusterLogBefore, leading, traffic}, {failpoint.ClusterLogAfter, leading, traffic},
	{failpoint.ClusterLogBefore, following, traffic}, {failpoint.ClusterLogAfter, following, traffic},
	{failpoint.ClusterApplyBefore, leading, traffic}, {failpoint.ClusterApplyAfter, leading, traffic},
	{failpoint.ClusterApplyBefore, following, traffic}, {failpoint.ClusterApplyAfter, following, traffic},
	{failpoint.ClusterSnapshotBefore, leading, traffic}, {failpoint.ClusterSnapshotAfter, leading, traffic},
	{failpoint.ClusterSnapshotBefore, following, traffic}, {failpoint.ClusterSnapshotAfter, following, traffic},
	{failpoint.ClusterRestoreBefore, following, restart}, {failpoint.ClusterRestoreAfter, following, restart},
	{failpoint.ClusterVoteBefore, following, transfer}, {failpoint.ClusterVoteAfter, following, transfer},
	{failpoint.ClusterReadConfirmed, leading, traffic}, {failpoint.ClusterReadApplied, following, traffic},
	{failpoint.SnapshotPutBefore, leading, traffic}, {failpoint.SnapshotPutAfter, leading, traffic},
	{failpoint.SealBeginBefore, leading, rekey}, {failpoint.SealBeginAfter, leading, rekey}, {failpoint.SealPlaceOne, leading, rekey},
	{failpoint.SealPlaceAfter, leading, rekey}, {failpoint.SealCommitBefore, leading, rekey}, {failpoint.SealCommitAfter, leading, rekey},
	{failpoint.SealSettleAfter, leading, rekey}, {failpoint.KeeperPlaceBefore, keeping, rekey}, {failpoint.KeeperPlaceAfter, keeping, rekey},
	{failpoint.KeeperSettleBefore, keeping, rekey}, {failpoint.KeeperSettleAfter, keeping, rekey},
	{failpoint.SealReplaceBefore, leading, rotation}, {failpoint.SealReplaceAfter, leading, rotation},
	{failpoint.NodeResealBefore, leading, rotation}, {failpoint.NodeResealAfter, leading, rotation},
	{failpoint.SealRefillBefore, leading, empty}, {failpoint.SealRefillAfter, leading, empty},
	{failpoint.NodeSealBefore, leading, sealing}, {failpoint.NodeSealAfter, leading, sealing},
	{failpoint.NodeUnsealBefore, leading, sealing}, {failpoint.NodeUnsealAfter, leading, sealing},
}

// awkward are the moments of a read at which a peer that freezes must not answer what was right before.
var awkward = []place{
	{failpoint.ClusterReadConfirmed, leading, traffic}, {failpoint.ClusterReadApplied, leading, traffic},
	{failpoint.ClusterReadApplied, following, traffic}, {failpoint.ClusterApplyAfter, leading, traffic}, {failpoint.ClusterLogAfter, leading, traffic},
}

var errNotYet = errors.New("the step was not reached")

func failpoints() []Nemesis {
	mortal := func(o *harness.Options) {
		o.Failpoints = true
		o.Args = append(o.Args, "--snapshot-bytes", "65536", "--archive", "file://"+filepath.Join(o.Dir, "archive")) // a snapshot every second or so
	}
	return []Nemesis{
		{Name: "failpoints", About: "a process kills itself at a step, each step once", Faults: len(places), Hold: time.Second, Prepare: mortal,
			Do: func(ctx context.Context, t *Target) (Harm, error) { return t.strike(ctx, places, t.Arm) }},
		{Name: "freeze-awkward", About: "a process freezes between a read's round and its answer, and the like, and goes on when another one leads", Faults: 2 * len(awkward),
			Hold: 1300 * time.Millisecond, Prepare: mortal,
			Do: func(ctx context.Context, t *Target) (Harm, error) { return t.strike(ctx, awkward, t.ArmFreeze) }},
	}
}

// strike has the next one of some places hit.
func (t *Target) strike(ctx context.Context, list []place, arm func(*process.Child, failpoint.Name) error) (Harm, error) {
	p := list[t.struck%len(list)]
	t.struck++
	leader, err := t.Leader(ctx)
	if err != nil {
		return Harm{}, err
	}
	peer := leader
	if p.who == following {
		peer = t.voters(leader)[0]
	}
	victim := t.Peer(peer)
	if p.who == keeping {
		victim = t.Keeper(t.Random.IntN(t.Keepers()))
	}
	if err := arm(victim, p.step); err != nil {
		return Harm{}, err
	}
	run, end := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	var wait sync.WaitGroup
	over := make(chan struct{})
	var failed error
	closing := func() {}
	if p.by.do != nil {
		ask := t.Operator
		if p.who == leading { // who is asked does it himself
			one, done, err := t.Client(run, harness.Superuser, peer)
			if err != nil {
				end()
				return Harm{}, err
			}
			ask, closing = one, done
		}
		wait.Go(func() { failed = p.by.run(run, t, ask, victim, over) })
	}
	harm := Harm{What: fmt.Sprintf("%s at %s, by %s", victim.Name, p.step, p.by.name), Undo: func(ctx context.Context) error {
		defer end()
		err := errors.Join(t.Arm(victim, ""), up(victim))
		close(over)
		wait.Wait()
		closing()
		if p.by.after != nil {
			err = errors.Join(err, p.by.after(ctx, t))
		}
		return errors.Join(err, failed)
	}}
	limit, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	return harm, harness.Poll(limit, func() error {
		if !t.Reached(victim) {
			return fmt.Errorf("%s did not get to %s by %s", victim.Name, p.step, p.by.name)
		}
		return nil
	})
}

// run does the errand until it came to harm and is over: first as who is asked can, then as anybody can. What succeeded
// before was not it: then there is another.
func (e errand) run(ctx context.Context, t *Target, ask *client.Client, victim *process.Child, over <-chan struct{}) error {
	id := newID(t)
	for {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := e.do(limit, t, ask, id, victim)
		cancel()
		select {
		case <-over:
			if err == nil {
				return nil
			}
			ask = t.Operator
		default:
			if err == nil {
				id = newID(t)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (%w)", e.name, err, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond): // Keepers answer nobody at any pace
		}
	}
}
