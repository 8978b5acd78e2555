package nemesis

import (
	"context"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

// slow is the peer whose clock runs slow, and beat its heartbeat timeout then: 30 times the others'. It leads on for seconds
// after another was elected, which a lease rules out only as long as clocks run alike.
const (
	slow = 0
	beat = 15 * time.Second
)

// SlowClock has one peer's Raft timers run 30 times slower than the others'.
func SlowClock(o *harness.Options) {
	name := harness.PeerName(slow)
	if o.ArgsOf == nil {
		o.ArgsOf = map[string][]string{}
	}
	o.ArgsOf[name] = append(o.ArgsOf[name], "--heartbeat", beat.String())
}

// LeadFirst has the first peer lead, whose clock it is.
func (t *Target) LeadFirst(ctx context.Context) error { return t.leads(ctx, slow) }

// clocks run unlike, from the beginning of a run to its end: not for soaks, where other nemeses count on an election in seconds,
// whoever is left to ask for it.
func clocks() []Nemesis {
	return []Nemesis{
		{Name: "slow-clock-leader", About: "a leader whose clock runs slow is cut off, with the learners, and leads on in its own eyes while another leads", Prepare: SlowClock,
			Do: func(ctx context.Context, t *Target) (Harm, error) {
				if err := t.LeadFirst(ctx); err != nil {
					return Harm{}, err
				}
				rest := t.voters(slow)
				old := t.peers(rest...)
				t.Links.Partition(old, rest)
				return Harm{What: fmt.Sprintf("%v from %v", names(old), names(rest)), Silenced: old, Running: rest, Undo: t.heal}, nil
			}},
		{Name: "slow-clock-answers", About: "what voters answer a leader whose clock runs slow stays on its way until another has led for a while", Prepare: SlowClock,
			Do: func(ctx context.Context, t *Target) (Harm, error) {
				if err := t.LeadFirst(ctx); err != nil {
					return Harm{}, err
				}
				rest := t.voters(slow)
				for _, i := range rest {
					t.Links.Cut(i, slow)
				}
				select { // for long enough that rounds of reads and heartbeats were answered
				case <-ctx.Done():
					return Harm{Undo: t.heal}, ctx.Err()
				case <-time.After(300 * time.Millisecond):
				}
				t.Links.Partition([]int{slow}, t.peers(slow)) // they elect another
				return Harm{What: "answers to " + harness.PeerName(slow), Silenced: []int{slow}, Running: rest}.through(t, pairs(rest, []int{slow}), stopped), nil
			}},
	}
}
