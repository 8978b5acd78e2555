package nemesis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// operations are work of operators under load.
func operations() []Nemesis {
	return []Nemesis{
		{Name: "transfer-storm", About: "leadership is handed around without a pause", Terms: 400, Do: func(_ context.Context, t *Target) (Harm, error) {
			order := t.Random.Perm(64)
			return t.again("leadership is handed around", 3, 2*time.Second, func(ctx context.Context, i int) bool {
				return t.Operator.TransferLeadership(ctx, harness.PeerName(order[i%len(order)]%t.Voters)) == nil
			}), nil
		}},
		{Name: "rotation", About: "keys are rotated while a follower is dead", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			if err := down(t.Peer(victim)); err != nil {
				return Harm{}, err
			}
			err := harness.Poll(ctx, func() error {
				limit, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				return t.Operator.RotateKeys(limit)
			})
			return Harm{What: "rotated without " + harness.PeerName(victim), Silenced: []int{victim}, Running: t.peers(victim), Undo: func(context.Context) error { return up(t.Peer(victim)) }}, err
		})},
		{Name: "rotate", About: "keys are rotated again and again", Hold: 8 * time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.rotating(), nil
		}},
		{Name: "rekey", About: "a new root key and new shares, while the leader is killed", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			var wait sync.WaitGroup
			var failed error
			id := newID(t)
			whole, end := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			wait.Go(func() { // the same one again until it is done
				defer end()
				failed = harness.Poll(whole, func() error {
					limit, cancel := context.WithTimeout(whole, 15*time.Second)
					defer cancel()
					return t.Operator.Rekey(limit, client.RekeyRequest{ID: id, Force: true})
				})
			})
			if err := down(t.Peer(leader)); err != nil {
				return Harm{}, err
			}
			return Harm{What: "killed: " + harness.PeerName(leader), Silenced: []int{leader}, Running: t.peers(leader), Undo: func(context.Context) error {
					err := up(t.Peer(leader))
					wait.Wait()
					if err == nil {
						err = failed
					}
					return err
				}},

				nil
		})},
		{Name: "seal", About: "an operator seals the cluster, with a follower cut off, and unseals it", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			t.Links.Partition([]int{victim}, t.peers(victim))
			if err := t.record(ctx, "seal", func(ctx context.Context) error { return t.Operator.Seal(ctx, "") }); err != nil {
				return Harm{}, errors.Join(err, t.heal(ctx))
			}
			return Harm{What: "sealed, with " + harness.PeerName(victim) + " cut off", Silenced: t.peers(), Undo: func(ctx context.Context) error {
					if err := t.heal(ctx); err != nil {
						return err
					}
					return t.record(ctx, "unseal", func(ctx context.Context) error { return t.Operator.Unseal(ctx, "") })
				}},

				nil
		})},
	}
}

// rotating rotates keys, and leaves some time for what has to be encrypted anew.
func (t *Target) rotating() Harm {
	return t.again("keys are rotated", 1, 5*time.Second, func(ctx context.Context, _ int) bool {
		if t.Operator.RotateKeys(ctx) != nil {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		return true
	})
}

func newID(t *Target) string {
	return fmt.Sprintf("%016x%016x", t.Random.Uint64(), t.Random.Uint64())
}
