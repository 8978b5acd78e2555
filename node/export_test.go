package node

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/store"
)

// HandTo transfers leadership to the peer id.
func (n *Node) HandTo(ctx context.Context, id string) error {
	return n.cluster.TransferLeadership(ctx, id)
}

// Watches is how many watches are under way here.
func (n *Node) Watches() int { return n.api.Watches() }

// ProposeNewer proposes a command of a level that nobody knows, which stops each
// peer that applies it. It tells nothing.
func (n *Node) ProposeNewer(ctx context.Context) {
	_, _ = n.propose(ctx, &fsmpb.Command{Level: 1 << 20})
}

var Readiness = readiness

const ReadyLag = readyLag

// Damaged is how many records this peer could not open since it opened its store.
func (n *Node) Damaged() int { return n.store.Damaged() }

// RotateByAge rotates what is too old at a time.
func (n *Node) RotateByAge(now time.Time) error { return n.rotateByAge(now) }

// KeysLag calls report when an entry is shown and this peer, unsealed, does not
// use the data key that the entry's state names.
func (n *Node) KeysLag(report func()) { n.machine.Observe(keysLag{n, report}) }

type keysLag struct {
	n      *Node
	report func()
}

func (k keysLag) Changed(d fsm.Delta) {
	for _, e := range d.View.Seal().Epochs {
		if id, err := k.n.seal.Epoch(seal.Data); e.Purpose == string(seal.Data) && err == nil && !k.n.store.Sealed() && !bytes.Equal(id, e.Id) {
			k.report()
		}
	}
}

// RotateInherited rotates what a rekey has left, as if that had been there since.
func (n *Node) RotateInherited(since time.Time) error { return n.rotateInherited(&since) }

// Applied is the index that this peer has applied.
func (n *Node) Applied() uint64 { return n.machine.View().Index() }

// Hashes are those of the state.
func (n *Node) Hashes() (all, data [32]byte) {
	data, all = n.machine.View().Hashes()
	return all, data
}

// LateKeys has keys arrive as an unsealing would that began before this peer was
// sealed by itself, and HasKeys says whether any are here.
func (n *Node) LateKeys(ctx context.Context) error {
	_, err := n.seal.Unseal(ctx, sealState(n.machine.View()), n.keepers)
	return err
}

func (n *Node) HasKeys() bool { return !n.seal.Sealed() }

// Poke has this peer look whether it should have keys.
func (n *Node) Poke() { n.poke() }

// PlanRestore and RestoreLive are what a superuser asks for, with who hears how far
// they are in this process: a restore stands still while it does.
func (n *Node) PlanRestore(ctx context.Context, target store.RestoreTarget) (store.RestorePlan, error) {
	return operator{n}.PlanRestore(ctx, target, func(store.RestoreStep) {})
}

func (n *Node) RestoreLive(ctx context.Context, code string, progress func(store.RestoreStep)) (store.RestorePlan, error) {
	return operator{n}.RestoreLive(ctx, store.RestoreTarget{}, code, progress)
}

// Staged describes the staging area of this peer's state.
func (n *Node) Staged() (fsm.Staged, bool) { return n.machine.View().Staged() }

// ClearStale has this peer look at the staging area as it would at these times.
func (n *Node) ClearStale(times ...time.Time) error {
	var s stale
	for _, now := range times {
		if err := n.clearStale(&s, now); err != nil {
			return err
		}
	}
	return nil
}

const StaleAfter = staleAfter

// Stage opens a staging area, as another restore would.
func (n *Node) Stage(ctx context.Context, id byte) error {
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_BeginRestore{BeginRestore: fsm.New(fsm.Options{}).View().BeginRestore([16]byte{id}, [16]byte{id})}})
	if err == nil && result.Code != fsmpb.Code_OK {
		err = errors.New(result.Reason)
	}
	return err
}

// HoldDrills has this peer be at work on a drill until the channel is closed.
func (n *Node) HoldDrills(until <-chan struct{}) error {
	_, err := n.drills.begin([16]byte{1}, n.loops.Go, func() (*fsmpb.Drill, error) { <-until; return nil, errSealedMeanwhile })
	return err
}
