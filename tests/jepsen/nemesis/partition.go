package nemesis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

func (t *Target) heal(context.Context) error {
	t.Links.Heal()
	return t.Links.Err()
}

// partitions cut links between peers; clients reach every peer all the time.
func partitions() []Nemesis {
	learners := func(t *Target) []int { return t.peers(t.voters()...) }
	return []Nemesis{
		{Name: "partition-leader", About: "the leader is cut off from everybody", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			rest := t.peers(leader)
			t.Links.Partition([]int{leader}, rest)
			return Harm{What: "cut off: " + harness.PeerName(leader), Silenced: []int{leader}, Running: rest, Undo: t.heal}, nil
		})},
		{Name: "partition-leader-learner", About: "the leader and the learners are cut off from the other voters", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			old, rest := append(learners(t), leader), t.voters(leader)
			t.Links.Partition(old, rest)
			return Harm{What: fmt.Sprintf("%v from %v", names(old), names(rest)), Silenced: old, Running: rest, Undo: t.heal}, nil
		})},
		{Name: "partition-halves", About: "a majority of the voters on one side, the rest on the other, the learners anywhere", Do: func(_ context.Context, t *Target) (Harm, error) {
			v := t.voters()
			many, few := slices.Clone(v[:t.Voters/2+1]), slices.Clone(v[t.Voters/2+1:])
			for _, l := range learners(t) {
				if t.Random.IntN(2) == 0 {
					many = append(many, l)
				} else {
					few = append(few, l)
				}
			}
			t.Links.Partition(many, few)
			return Harm{What: fmt.Sprintf("%v from %v", names(few), names(many)), Silenced: few, Running: many, Undo: t.heal}, nil
		}},
		{Name: "partition-bridge", About: "one follower hears all, the others only it: each sees a majority", Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			middle := t.voters(leader)[0] // followers have little to say to one another
			for _, a := range t.peers(middle) {
				for _, b := range t.peers(middle, a) {
					t.Links.Cut(a, b)
				}
			}
			return Harm{What: "all hear " + harness.PeerName(middle) + " alone"}.through(t, pairs(t.peers(), t.peers()), stopped), nil
		})},
		{Name: "partition-ring", About: "each voter hears a majority, and no two the same one", Do: func(_ context.Context, t *Target) (Harm, error) {
			v := t.voters()
			for i, a := range v {
				for j, b := range v {
					if d := (j - i + len(v)) % len(v); d > len(v)/2 { // a sends to the next ones, and not to those before
						t.Links.Cut(a, b)
					}
				}
			}
			return Harm{What: fmt.Sprintf("round %v, one way", names(v))}.through(t, pairs(v, v), stopped), nil
		}},
		{Name: "partition-deaf-leader", About: "the leader sends, and hears nobody", Do: oneWay(func(t *Target, leader, other int) { t.Links.Cut(other, leader) })},
		{Name: "partition-mute-leader", About: "the leader hears, and cannot send", Do: oneWay(func(t *Target, leader, other int) { t.Links.Cut(leader, other) })},
		{Name: "partition-flapping", About: "the links of one voter come and go", Hold: 6 * time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			victim := t.voters()[0]
			pauses := make([]time.Duration, 64)
			for i := range pauses {
				pauses[i] = time.Duration(200+t.Random.IntN(1000)) * time.Millisecond
			}
			done := make(chan struct{})
			var wait sync.WaitGroup
			wait.Go(func() {
				for i := 0; ; i++ {
					if i%2 == 0 {
						t.Links.Partition([]int{victim}, t.peers(victim))
					} else {
						t.Links.Heal()
					}
					select {
					case <-done:
						return
					case <-time.After(pauses[i%len(pauses)]):
					}
				}
			})
			return Harm{What: "the links of " + harness.PeerName(victim), Running: t.peers(victim), Undo: func(ctx context.Context) error {
				close(done)
				wait.Wait()
				return nil
			}}.through(t, pairs([]int{victim}, t.peers()), stopped), nil
		}},
	}
}

// stopped shows that a cut had something to stop.
func stopped(n harness.Traffic) error {
	if n.Stopped == 0 {
		return errors.New("nothing was on its way over a link that was cut")
	}
	return nil
}

// oneWay cuts one direction of every link of the leader. It goes on seeming to lead, for a while, to whoever still hears it.
func oneWay(cut func(t *Target, leader, other int)) func(context.Context, *Target) (Harm, error) {
	return func(ctx context.Context, t *Target) (Harm, error) {
		leader, err := t.Leader(ctx)
		if err != nil {
			return Harm{}, err
		}
		for _, i := range t.peers(leader) {
			cut(t, leader, i)
		}
		return Harm{What: harness.PeerName(leader), Silenced: []int{leader}, Running: t.voters(leader), Undo: t.heal}, nil
	}
}
