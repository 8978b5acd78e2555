package nemesis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// members change who belongs to the cluster, under load.
func members() []Nemesis {
	return []Nemesis{
		{Name: "member-churn", About: "a follower loses its vote and gets it back, a learner is removed and added, again and again", Hold: 8 * time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			if t.Peers() == t.Voters {
				return Harm{}, fmt.Errorf("there is no learner")
			}
			learner := t.Peers() - 1
			order := t.Random.Perm(64)
			// Without a third of the voters nobody may lose a vote, which is refused, or takes until an attempt ends.
			harm := t.again("members change", 1, 2500*time.Millisecond, func(ctx context.Context, i int) (done bool) {
				leader, err := t.Leader(ctx)
				switch {
				case err != nil:
				case i%2 == 0:
					victim := order[i%len(order)] % t.Voters
					if victim == leader {
						victim = (victim + 1) % t.Voters
					}
					done = t.Operator.DemoteMember(ctx, harness.PeerName(victim)) == nil
					_ = t.Operator.PromoteMember(ctx, harness.PeerName(victim))
				default:
					done = t.Operator.RemoveMember(ctx, harness.PeerName(learner)) == nil
					_ = t.Operator.AddMember(ctx, harness.PeerName(learner), t.PeerAddress(learner))
				}
				return done
			})
			still := harm.Undo
			harm.Undo = func(ctx context.Context) error { return errors.Join(still(ctx), t.complete(ctx)) }
			return harm, nil
		}},
		{Name: "wipe", About: "a follower loses its disk, is removed and joins again", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			if err := down(t.Peer(victim)); err != nil {
				return Harm{}, err
			}
			t.Unlogged[victim] = true
			if err := os.RemoveAll(t.DataDir(victim)); err != nil {
				return Harm{}, err
			}
			// While it still counts as a voter it must stay out: it may have voted.
			if err := up(t.Peer(victim)); err != nil {
				return Harm{}, err
			}
			return Harm{What: "disk lost: " + harness.PeerName(victim), Silenced: []int{victim}, Running: t.peers(victim), Undo: func(ctx context.Context) error {
					if err := harness.Poll(ctx, func() error { return t.Operator.RemoveMember(ctx, harness.PeerName(victim)) }); err != nil {
						return err
					}
					return t.complete(ctx)
				}},

				nil
		})},
	}
}

// complete makes every peer a member, and every voter one again. Changes that may be there already are asked for, which the leader answers: what a peer
// says of the members can be from before its own removal.
func (t *Target) complete(ctx context.Context) error {
	for i := range t.Peers() {
		err := harness.Poll(ctx, func() error {
			limit, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			err := t.Operator.AddMember(limit, harness.PeerName(i), t.PeerAddress(i))
			var refused *secret.Error
			if errors.As(err, &refused) && refused.Reason == "member_exists" {
				err = nil
			}
			if err == nil && i < t.Voters {
				err = t.Operator.PromoteMember(limit, harness.PeerName(i))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
