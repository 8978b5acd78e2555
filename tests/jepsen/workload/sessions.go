package workload

import (
	"context"
	"fmt"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Sessions reads at level "index", which asks no other peer: each process writes a secret of its own, and reads it and those of others
// by the index of what it was answered before. Peers that come back from a restart or a snapshot are to wait for it; who asks
// anybody carries it from one to the next.
func Sessions() Workload {
	const sessions = 8
	return Workload{Name: "sessions", PerPeer: 1, Kinds: []string{"read", "write"}, Final: "read", Check: []check.Checker{check.Sessions},
		Setup: func(ctx context.Context, p *Process) error {
			on := true
			_, err := p.Client.PutSettings(ctx, client.SettingsRequest{IndexReads: &on})
			return err
		},
		New: func(p *Process, clients Clients) (step, final func(context.Context), err error) {
			if p.Client, err = clients(harness.Superuser, p.Peer, func(c *client.Config) { c.IndexReads = true }); err != nil {
				return nil, nil, err
			}
			p.Local = true
			key := func(i int) string { return fmt.Sprintf("sessions/%d", i%sessions) }
			return func(ctx context.Context) {
					switch p.Random.IntN(5) {
					case 0:
						p.write(ctx, "write", key(p.ID), p.unique(), fmt.Sprintf("%d-%d", p.ID, p.count), history.AnyVersion)
					case 1, 2:
						p.read(ctx, key(p.ID))
					default:
						p.read(ctx, key(p.Random.IntN(sessions)))
					}
				}, func(ctx context.Context) {
					for i := range sessions {
						p.read(ctx, key(i))
					}
				}, nil
		}}
}
