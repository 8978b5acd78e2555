package nemesis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

const (
	// loss is how many entries of the log a restore takes back, at least.
	loss = 150
	// underway is for how long after the confirmation of a restore the leader is killed: the restore takes about as long.
	underway = 400 * time.Millisecond
	// patience is for how long an operator waits for a restore before he asks again.
	patience = 15 * time.Second
)

// restores take the whole cluster back to a state of the archive, under load: not for soaks, as what the ordinary workloads
// wrote vanishes.
func restores() []Nemesis {
	archived := func(o *harness.Options) {
		o.Args = append(o.Args, "--archive", "file://"+filepath.Join(o.Dir, "archive"))
	}
	workloads := []string{"restored"}
	return []Nemesis{
		{Name: "restore-live", About: "the running cluster is restored from the archive", Workloads: workloads, Prepare: archived,
			Do: func(ctx context.Context, t *Target) (Harm, error) {
				plan, err := t.plan(ctx)
				if err != nil {
					return Harm{}, err
				}
				done, err := t.restore(ctx, t.Operator, plan)
				return Harm{What: fmt.Sprintf("restored to %d at %d", plan.Index, done.RestoredAt), Running: t.peers(), Check: t.once(done)}, err
			}},
		{Name: "restore-live-kill", About: "the running cluster is restored from the archive, and its leader killed meanwhile", Workloads: workloads, Prepare: archived, Do: restoreKilled},
	}
}

// restoreKilled has the leader, which may be the one that restores, die at any moment of a restore; the rest complete it.
func restoreKilled(ctx context.Context, t *Target) (Harm, error) {
	plan, err := t.plan(ctx)
	if err != nil {
		return Harm{}, err
	}
	leader, err := t.Leader(ctx)
	if err != nil {
		return Harm{}, err
	}
	first, closing, err := t.Client(ctx, harness.Superuser, t.voters()[0])
	if err != nil {
		return Harm{}, err
	}
	defer closing()
	var done client.RestorePlan
	over := make(chan error, 1)
	go func() {
		var err error
		done, err = t.restore(ctx, first, plan)
		over <- err
	}()
	after := time.Duration(t.Random.Int64N(int64(underway)))
	time.Sleep(after)
	when := "under way"
	if len(over) > 0 {
		when = "over"
	}
	killed := down(t.Peer(leader))
	err = errors.Join(<-over, killed)
	return Harm{What: fmt.Sprintf("restored to %d at %d; killed %s after the confirmation, when it was %s: %s", plan.Index, done.RestoredAt, after.Round(time.Millisecond), when, harness.PeerName(leader)),
		Silenced: []int{leader}, Running: t.peers(leader), Check: t.once(done), Undo: func(context.Context) error { return up(t.Peer(leader)) }}, err
}

// plan plans to go back to what clients had acknowledged some time ago; now and then to what an earlier restore has taken back.
func (t *Target) plan(ctx context.Context) (plan client.RestorePlan, err error) {
	then, _, err := t.applied(ctx)
	if err != nil {
		return plan, err
	}
	if t.taken.at > 0 && t.Random.IntN(3) == 0 {
		then = t.taken.from + t.Random.Uint64N(t.taken.at-t.taken.from)
	}
	err = harness.Poll(ctx, func() error {
		switch now, shipped, err := t.applied(ctx); {
		case err != nil:
			return err
		case shipped < then:
			return fmt.Errorf("the archive goes to index %d, not to %d", shipped, then)
		case now < then+loss:
			return fmt.Errorf("clients are at index %d, and a restore is to go back to %d", now, then)
		}
		return nil
	})
	if err != nil {
		return plan, err
	}
	err = harness.Poll(ctx, func() error {
		plan, err = t.Operator.RestoreArchive(ctx, client.RestoreArchiveRequest{Index: then}, nil)
		return err
	})
	return plan, err
}

// applied is how far the peers have come, and the archive.
func (t *Target) applied(ctx context.Context) (index, shipped uint64, err error) {
	limit, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	s, err := t.Operator.Status(limit)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range s.Peers {
		index = max(index, p.AppliedIndex)
		if p.Archive != nil {
			shipped = max(shipped, p.Archive.Shipped)
		}
	}
	return index, shipped, nil
}

// restore carries a plan out, as one operation however often it takes: first at one peer, which may die of it, then at any.
func (t *Target) restore(ctx context.Context, ask *client.Client, plan client.RestorePlan) (done client.RestorePlan, err error) {
	limit := 5 * time.Second
	t.Recorder.Do(history.Op{Workload: Operator, F: "restore", Peer: history.Anybody, In: strconv.FormatUint(plan.Index, 10)}, func(op *history.Op) {
		err = harness.Poll(ctx, func() (err error) {
			done, err = confirm(ctx, ask, plan, limit)
			ask, limit = t.Operator, patience
			return err
		})
		if err != nil {
			op.Outcome, op.Error = history.Unknown, err.Error()
			return
		}
		op.Outcome, op.Index = history.OK, done.RestoredAt
		t.taken.from, t.taken.at = plan.Index, done.RestoredAt
	})
	return done, err
}

func confirm(ctx context.Context, ask *client.Client, plan client.RestorePlan, limit time.Duration) (client.RestorePlan, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return ask.RestoreArchive(limited, client.RestoreArchiveRequest{Confirm: plan.Code}, nil)
}

// once looks whether the same code again, after an answer that was lost as it were, does nothing again.
func (t *Target) once(done client.RestorePlan) func(context.Context) error {
	return func(ctx context.Context) error {
		limit, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return harness.Poll(limit, func() error {
			again, err := confirm(limit, t.Operator, done, patience)
			if err == nil && again.RestoredAt != done.RestoredAt {
				cancel()
				err = fmt.Errorf("restored at index %d, and under the same code again at %d", done.RestoredAt, again.RestoredAt)
			}
			return err
		})
	}
}
