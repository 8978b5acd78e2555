package keeper_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
)

// A refill waits for the slowest Keeper; a rekey that leaves that one out does not, and may overtake it. The refill then
// goes by the share set of before, and must not make Keepers drop the shares of the new one: not where they had
// restarted, so that the older set's shares are its own work, and not where that set was never settled.
func TestRefillOvertakenByARekey(t *testing.T) {
	t.Parallel()
	for what, restarted := range map[string]int{"nobody was settled": 0, "one restarted": 1, "two restarted": 2} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := authority(t, "spike.ist")
			nexus := issued(t, a, "/spike/nexus/n", time.Hour)
			start := func(name string) *keeper.Client {
				return client(t, serve(t, a, name, keeper.ServerOptions{}), name, nexus)
			}
			var keepers []seal.Keeper
			for _, name := range []string{"k1", "k2", "k3"} {
				keepers = append(keepers, unsettled{start(name)})
			}
			l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
			slow, quick := seal.New(seal.Config{Logger: quiet}), seal.New(seal.Config{Logger: quiet})
			defer slow.Lock()
			defer quick.Lock()
			if err := slow.Initialise(t.Context(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 2}); err != nil {
				t.Fatal(err)
			}
			before, _ := l.State(t.Context())
			if _, err := quick.Unseal(t.Context(), before, keepers); err != nil {
				t.Fatal(err)
			}
			for i, k := range keepers {
				keepers[i] = k.(unsettled).Client
			}
			for i, name := range []string{"k1", "k2"}[:restarted] {
				keepers[i] = start(name)
			}

			last := waiting{keepers[2].(*keeper.Client), make(chan struct{})}
			refilled := make(chan error, 1)
			go func() {
				_, err := slow.Refill(t.Context(), before, []seal.Keeper{keepers[0], keepers[1], last})
				refilled <- err
			}()
			for _, k := range keepers[:2] { // who restarted is given its share again
				for deadline := time.Now().Add(30 * time.Second); ; {
					if slots, err := k.Holds(t.Context()); err == nil && len(slots) == 1 {
						break
					} else if time.Now().After(deadline) {
						t.Fatal(slots, err)
					}
				}
			}
			if err := quick.Rekey(t.Context(), l, seal.Rekeying{ID: [16]byte{7}, Split: seal.Split{Keepers: keepers[:2], Shares: 2, Threshold: 2}}); err != nil {
				t.Fatal(err)
			}
			close(last.may)
			if err := <-refilled; err != nil {
				t.Fatal(err)
			}
			after, _ := l.State(t.Context())
			if reports, err := quick.Inspect(t.Context(), after, keepers); err != nil || seal.Count(reports) != 2 {
				t.Fatalf("the new set lost shares: %+v, %v", reports, err)
			}
		})
	}
}

// waiting answers no challenge until it may.
type waiting struct {
	*keeper.Client
	may chan struct{}
}

func (k waiting) Prove(ctx context.Context, slot seal.Slot, nonce [32]byte) ([32]byte, error) {
	<-k.may
	return k.Client.Prove(ctx, slot, nonce)
}

// unsettled does not hear that its share is the current one.
type unsettled struct{ *keeper.Client }

func (unsettled) Settle(context.Context, seal.ClusterRef, [16]byte, uint64) error {
	return errors.New("not in time")
}
