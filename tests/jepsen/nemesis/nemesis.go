// Package nemesis does harm to a cluster, and undoes it. A nemesis says what it
// did and whom it must have silenced, so that a run in which it did not bite is found out.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Target is what is attacked.
type Target struct {
	*harness.Cluster
	Operator *client.Client // asks any peer
	Voters   int            // the first ones; the rest are learners
	Random   *rand.Rand
	Recorder *history.Recorder // of what operators do, where a checker wants to know
	Unlogged map[int]bool      // the peers whose audit logs were taken away or damaged

	struck int                       // places, by nemeses that go through a list of them
	taken  struct{ from, at uint64 } // what the last restore took back: what came after from, up to at
}

// record makes an operation of an operator, again until it succeeds, and records each attempt.
func (t *Target) record(ctx context.Context, f string, do func(context.Context) error) error {
	return harness.Poll(ctx, func() (err error) { return t.attempt(ctx, f, do) })
}

// attempt makes an operation of an operator and records it.
func (t *Target) attempt(ctx context.Context, f string, do func(context.Context) error) (err error) {
	t.Recorder.Do(history.Op{Workload: Operator, F: f, Peer: history.Anybody}, func(op *history.Op) {
		limit, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err = do(limit); err == nil {
			op.Outcome = history.OK
		} else {
			op.Outcome, op.Error = history.Unknown, err.Error()
		}
	})
	return err
}

// Operator is the workload of what nemeses record.
const Operator = "operator"

// Harm is one fault that was done.
type Harm struct {
	What string
	// Silenced are peers that answer nobody from some moment after the beginning until the fault is over; the run is
	// invalid if one does. Running are those that have to answer meanwhile.
	Silenced, Running []int
	// Excused are peers that may answer little while the fault lasts.
	Excused []int
	// Bit, if there is one, is asked after Undo whether the harm was done; if not the run is invalid.
	Bit func(context.Context) error
	// Check, if there is one, is asked before Undo; what it says is a violation.
	Check func(context.Context) error
	// Undo ends the fault.
	Undo func(context.Context) error
	// After, if there is one, is asked once the fault is over and every peer answers again; what it says is a violation.
	After func(context.Context) error
}

// Nemesis does one kind of harm.
type Nemesis struct {
	Name, About string
	// Do does the harm. With an error and an Undo it was done in part.
	Do func(context.Context, *Target) (Harm, error)
	// Hold is how long the harm lasts at least; the default is a few seconds.
	Hold time.Duration
	// Faults is how many of them make a run, however long it takes; 0: its length decides.
	Faults int
	// Terms is by how many one fault may have the term grow at most; the default is 20.
	Terms int
	// Prepare, if there is one, asks for what the cluster must have to be harmed in this way.
	Prepare func(*harness.Options)
	// Privileged says that it takes root.
	Privileged bool
	// Workloads are the only ones that make sense under it; nil: all the ordinary ones.
	Workloads []string
}

// All are the nemeses that can do harm on top of one another.
func All() []Nemesis {
	return slices.Concat([]Nemesis{{Name: "none", About: "no fault", Do: func(context.Context, *Target) (Harm, error) {
		return Harm{What: "nothing"}, nil
	}}}, partitions(), links(), processes(), operations(), members(), keepers(), disks(), damages(), failpoints(), snapshots(), identities(), hostilities(), stores())
}

// Find is the nemesis of a name; "a+b" is a with b on top of it. Of a pair that was drawn by chance one may keep the other from doing
// harm, and nothing is known of what both together bring about.
func Find(name string, drawn bool) (Nemesis, error) {
	first, second, both := strings.Cut(name, "+")
	for _, n := range slices.Concat(All(), clocks(), upgrades(), restores()) {
		if n.Name != first {
			continue
		}
		if !both {
			return n, nil
		}
		other, err := Find(second, drawn)
		if err != nil {
			return Nemesis{}, err
		}
		return overlap(n, other, drawn), nil
	}
	return Nemesis{}, fmt.Errorf("there is no nemesis %q", first)
}

// overlap does one harm on top of another. Two of them may well take the quorum away, so that nobody has to go on. Of a drawn pair the
// second may find nothing to harm, as a leader that is not there any more, and one of the two has to bite.
func overlap(a, b Nemesis, drawn bool) Nemesis {
	return Nemesis{Name: a.Name + "+" + b.Name, About: a.About + "; and " + b.About, Hold: max(a.Hold, b.Hold), Faults: min(a.Faults, b.Faults), Terms: a.terms() + b.terms(), Privileged: a.Privileged || b.Privileged, Workloads: slices.Concat(a.Workloads, b.Workloads),
		Prepare: func(o *harness.Options) {
			for _, n := range []Nemesis{a, b} {
				if n.Prepare != nil {
					n.Prepare(o)
				}
			}
		},
		Do: func(ctx context.Context, t *Target) (Harm, error) {
			lower, err := a.Do(ctx, t)
			if err != nil {
				return lower, err
			}
			limit, cancel := context.WithTimeout(ctx, 8*time.Second)
			defer cancel()
			upper, err := b.Do(limit, t)
			both := Harm{What: lower.What + "; " + upper.What,
				Undo: func(ctx context.Context) error {
					done := make(chan error) // both at once: one may need the other to be over
					go func() { done <- upper.undo(ctx) }()
					return errors.Join(lower.undo(ctx), <-done)
				},
				Bit:   func(ctx context.Context) error { return errors.Join(lower.bit(ctx), upper.bit(ctx)) },
				After: func(ctx context.Context) error { return errors.Join(lower.after(ctx), upper.after(ctx)) }}
			silenced := slices.Concat(lower.Silenced, upper.Silenced)
			if !drawn {
				both.Silenced = silenced
				return both, err
			}
			both.Excused = silenced
			if err != nil {
				both.What = lower.What + "; not done: " + err.Error()
				undo := both.Undo
				both.Undo = func(ctx context.Context) error { return errors.Join(undo(ctx), t.Revive()) }
			}
			both.Bit = func(ctx context.Context) error {
				first, second := lower.bit(ctx), err
				if second == nil {
					second = upper.bit(ctx)
				}
				if first == nil || second == nil {
					return nil
				}
				return errors.Join(first, second)
			}
			return both, nil
		}}
}

func (n Nemesis) terms() int {
	if n.Terms == 0 {
		return 20
	}
	return n.Terms
}

// MaxTerms is by how many the term may grow in so many faults; without any fault, too, by some, since machines are busy.
func (n Nemesis) MaxTerms(faults int) uint64 { return uint64((faults + 1) * n.terms()) }

func (h Harm) bit(ctx context.Context) error {
	if h.Bit == nil {
		return nil
	}
	return h.Bit(ctx)
}

func (h Harm) after(ctx context.Context) error {
	if h.After == nil {
		return nil
	}
	return h.After(ctx)
}

func (h Harm) undo(ctx context.Context) error {
	if h.Undo == nil {
		return nil
	}
	return h.Undo(ctx)
}

// Leader waits for one that itself says so.
func (t *Target) Leader(ctx context.Context) (leader int, err error) {
	err = harness.Poll(ctx, func() error {
		limit, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		s, err := t.Operator.Status(limit)
		if err != nil {
			return err
		}
		for i := range t.Peers() {
			for _, p := range s.Peers {
				if p.ID == s.Leader && p.ID == harness.PeerName(i) && p.Reachable && p.State == "leader" {
					leader = i
					return nil
				}
			}
		}
		return errors.New("nobody leads")
	})
	return leader, err
}

// led does harm in which the leader has a part.
func led(do func(ctx context.Context, t *Target, leader int) (Harm, error)) func(context.Context, *Target) (Harm, error) {
	return func(ctx context.Context, t *Target) (Harm, error) {
		leader, err := t.Leader(ctx)
		if err != nil {
			return Harm{}, err
		}
		return do(ctx, t, leader)
	}
}

// again does something until the harm is over, which did not bite when fewer than least of them succeeded.
func (t *Target) again(what string, least int64, attempt time.Duration, do func(ctx context.Context, i int) bool) Harm {
	run, end := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	var done atomic.Int64
	wait.Go(func() {
		for i := 0; run.Err() == nil; i++ {
			limit, cancel := context.WithTimeout(run, attempt)
			if do(limit, i) {
				done.Add(1)
			}
			cancel()
		}
	})
	return Harm{What: what, Bit: func(context.Context) error {
		if n := done.Load(); n < least {
			return fmt.Errorf("%s: only %d times", what, n)
		}
		return nil
	}, Undo: func(context.Context) error {
		end()
		wait.Wait()
		return nil
	}}
}

// voters are the voters but for some, in random order.
func (t *Target) voters(but ...int) (list []int) {
	for _, i := range t.Random.Perm(t.Voters) {
		if !slices.Contains(but, i) {
			list = append(list, i)
		}
	}
	return list
}

func (t *Target) peers(but ...int) (list []int) {
	for i := range t.Peers() {
		if !slices.Contains(but, i) {
			list = append(list, i)
		}
	}
	return list
}

func names(list []int) (s []string) {
	for _, i := range list {
		s = append(s, harness.PeerName(i))
	}
	return s
}
