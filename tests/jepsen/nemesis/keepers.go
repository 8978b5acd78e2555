package nemesis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// keepers lose their shares, which they have in memory alone, or have wrong ones.
func keepers() []Nemesis {
	return []Nemesis{
		{Name: "keepers-restart", About: "a Keeper dies, as many as unseal are left, and it starts empty", Do: func(_ context.Context, t *Target) (Harm, error) {
			lost := t.Random.IntN(t.Keepers())
			if err := down(t.Keeper(lost)); err != nil {
				return Harm{}, err
			}
			return Harm{What: "lost: " + harness.KeeperName(lost), Running: t.peers(), Undo: func(context.Context) error { return up(t.Keeper(lost)) }}, nil
		}},
		{Name: "keepers-lost", About: "all Keepers die, a follower restarts and stays sealed; the Keepers come back empty, and are refilled", Hold: 5 * time.Second, Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			shares, err := t.recovery(ctx)
			if err != nil {
				return Harm{}, err
			}
			victim := t.voters(leader)[0]
			if err := errors.Join(down(t.keepers()...), down(t.Peer(victim)), up(t.Peer(victim))); err != nil {
				return Harm{}, err
			}
			return Harm{What: "all Keepers, and " + harness.PeerName(victim) + " restarted", Silenced: []int{victim}, Running: t.peers(victim), Undo: func(ctx context.Context) error {
				return errors.Join(up(t.keepers()...), t.reopen(ctx, shares))
			}}, nil
		})},
		{Name: "keepers-too-few", About: "one Keeper too few is left to unseal, and both followers restart; the others serve on, and say that nobody may fail any more", Hold: 5 * time.Second, Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			shares, err := t.recovery(ctx)
			if err != nil {
				return Harm{}, err
			}
			gone := t.keepers()[:t.Keepers()-1]
			victims := t.voters(leader)
			err = down(gone...)
			for _, i := range victims {
				err = errors.Join(err, down(t.Peer(i)), up(t.Peer(i)))
			}
			return Harm{What: fmt.Sprintf("all Keepers but one, and %v restarted", names(victims)), Silenced: victims, Running: t.peers(victims...),
				Check: func(ctx context.Context) error {
					status, err := t.Operator.Status(ctx)
					if err == nil && status.Tolerance > 0 {
						err = fmt.Errorf("one voter has keys, and the status says that %d may fail", status.Tolerance)
					}
					for _, i := range victims {
						if _, _, runs := t.Peer(i).Running(); !runs {
							err = errors.Join(err, fmt.Errorf("%s, which cannot unseal, ended", harness.PeerName(i)))
						}
					}
					return err
				},
				Undo: func(ctx context.Context) error { return errors.Join(up(gone...), t.reopen(ctx, shares)) }}, err
		})},
		{Name: "keepers-silent", About: "Keepers are frozen, which for peers is as if they were cut off: one too many of them, and a follower restarts and stays sealed until they answer", Hold: 5 * time.Second, Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			silent := t.keepers()[:t.Keepers()-1]
			harm := Harm{What: fmt.Sprintf("frozen: all Keepers but one, and %s restarted", harness.PeerName(victim)), Silenced: []int{victim}, Running: t.peers(victim),
				Check: func(context.Context) error {
					if _, _, runs := t.Peer(victim).Running(); !runs {
						return fmt.Errorf("%s, which cannot unseal, ended", harness.PeerName(victim))
					}
					return nil
				},
				Undo: func(context.Context) error { return up(silent...) }}
			var err error
			for _, k := range silent {
				err = errors.Join(err, k.Freeze())
			}
			return harm, errors.Join(err, down(t.Peer(victim)), up(t.Peer(victim)))
		})},
		{Name: "shares-lost", About: "all Keepers and all peers die at once, and the holders of recovery shares open the cluster again", Do: func(ctx context.Context, t *Target) (Harm, error) {
			shares, err := t.recovery(ctx)
			if err != nil {
				return Harm{}, err
			}
			var peers []*process.Child
			for i := range t.Peers() {
				peers = append(peers, t.Peer(i))
			}
			if err := errors.Join(down(t.keepers()...), down(peers...), up(t.keepers()...), up(peers...)); err != nil {
				return Harm{}, err
			}
			return Harm{What: "all Keepers and all peers", Silenced: t.peers(), Undo: func(ctx context.Context) error { return t.reopen(ctx, shares) }}, nil
		}},
		{Name: "shares-wrong", About: "somebody with a peer's identity gives a Keeper a wrong share, and all peers restart", Do: func(ctx context.Context, t *Target) (Harm, error) {
			which := t.Random.IntN(t.Keepers())
			source, err := t.Source(ctx, "/spike/nexus/liar")
			if err != nil {
				return Harm{}, err
			}
			defer source.Close()
			liar, err := keeper.NewClient(keeper.ClientOptions{Name: harness.KeeperName(which), URL: t.Keeper(which).Address, Source: source,
				TrustDomains: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString(harness.TrustDomain)}})
			if err != nil {
				return Harm{}, err
			}
			defer liar.Close()
			var peers []*process.Child
			for i := range t.Peers() { // they go down first, so that none refills the Keeper meanwhile
				peers = append(peers, t.Peer(i))
			}
			if err := down(peers...); err != nil {
				return Harm{}, err
			}
			undo := func(ctx context.Context) error { // a second one with a wrong share would be one too many
				return errors.Join(up(peers...), harness.Poll(ctx, func() error {
					if k, err := t.Operator.VerifyKeepers(ctx); err != nil || k.Good < t.Keepers() {
						return fmt.Errorf("of %d Keepers %d are good: %v", t.Keepers(), k.Good, err)
					}
					return nil
				}))
			}
			slots, err := liar.Holds(ctx)
			if err != nil || len(slots) == 0 {
				return Harm{Undo: undo}, fmt.Errorf("%s holds %d shares: %v", harness.KeeperName(which), len(slots), err)
			}
			for _, slot := range slots {
				wrong := make([]byte, 32)
				for i := range wrong {
					wrong[i] = byte(t.Random.UintN(256))
				}
				wrong[0] = 0 // below the order of the group
				if err := liar.Place(ctx, seal.Slot{Cluster: slot.Cluster, Set: slot.Set, Index: slot.Index}, wrong); err != nil {
					return Harm{Undo: undo}, err
				}
			}
			return Harm{What: "a wrong share: " + harness.KeeperName(which), Silenced: t.peers(), Undo: undo}, nil
		}},
	}
}

func (t *Target) keepers() (list []*process.Child) {
	for i := range t.Keepers() {
		list = append(list, t.Keeper(i))
	}
	return list
}

// reopen returns once a peer has keys. Where all are there and none has, as after another harm that ended them all while there were
// too few Keepers, it takes the recovery shares.
func (t *Target) reopen(ctx context.Context, shares []client.RestoreRequest) error {
	asking, done, err := t.Client(ctx, "/spike/pilot/role/restore")
	if err != nil {
		return err
	}
	defer done()
	holder, done, err := t.Client(ctx, "/spike/pilot/role/restore", 0) // one peer collects the shares
	if err != nil {
		return err
	}
	defer done()
	return harness.Poll(ctx, func() (failed error) {
		for i := range t.Peers() {
			health, err := asking.Health(ctx, i)
			if err == nil && health.Current && !health.Sealed {
				return nil
			}
			failed = errors.Join(failed, err)
		}
		for _, share := range shares[:2] {
			if failed == nil {
				_, failed = holder.Restore(ctx, share)
			}
		}
		if secret.CodeOf(failed) == secret.CodeConflict { // open already
			return nil
		}
		return failed
	})
}

// recovery gets the recovery shares of now.
func (t *Target) recovery(ctx context.Context) (list []client.RestoreRequest, err error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	asking, done, err := t.Client(ctx, "/spike/pilot/role/recover")
	if err != nil {
		return nil, err
	}
	defer done()
	var files []client.RecoveryFile
	if err := harness.Poll(ctx, func() (err error) {
		files, err = asking.Recover(ctx, client.RecoverRequest{Recipients: []string{key.Recipient().String()}, OneHolder: true})
		return err
	}); err != nil {
		return nil, err
	}
	for _, f := range files {
		file, err := recoveryfile.Parse([]byte(f.Content))
		if err != nil {
			return nil, err
		}
		share, err := file.Open(key)
		if err != nil {
			return nil, err
		}
		list = append(list, client.RestoreRequest{Index: file.Index, Share: share, Cluster: file.Cluster.ID[:], Set: file.Set[:]})
	}
	return list, nil
}
