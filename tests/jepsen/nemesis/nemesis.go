// Package nemesis does harm to a cluster, and undoes it. A nemesis says what it
// did and whom it must have silenced, so that a run in which it did not bite is found out.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
}

// record makes an operation of an operator, again until it succeeds, and records each attempt.
func (t *Target) record(ctx context.Context, f string, do func(context.Context) error) error {
	return harness.Poll(ctx, func() (err error) {
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
	})
}

// Operator is the workload of what nemeses record.
const Operator = "operator"

// Harm is one fault that was done.
type Harm struct {
	What string
	// Silenced are peers that answer nobody from some moment after the beginning until the fault is over; the run is
	// invalid if one does. Running are those that have to answer meanwhile.
	Silenced, Running []int
	// Undo ends the fault.
	Undo func(context.Context) error
}

// Nemesis does one kind of harm.
type Nemesis struct {
	Name, About string
	// Do does the harm. With an error and an Undo it was done in part.
	Do func(context.Context, *Target) (Harm, error)
	// Hold is how long the harm lasts at least; the default is a few seconds.
	Hold time.Duration
}

// All are the nemeses that need no privileges.
func All() []Nemesis {
	return slices.Concat([]Nemesis{{Name: "none", About: "no fault", Do: func(context.Context, *Target) (Harm, error) {
		return Harm{What: "nothing"}, nil
	}}}, partitions(), processes(), operations(), members(), keepers())
}

// Find is the nemesis of a name.
func Find(name string) (Nemesis, error) {
	for _, n := range All() {
		if n.Name == name {
			return n, nil
		}
	}
	return Nemesis{}, fmt.Errorf("there is no nemesis %q", name)
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
