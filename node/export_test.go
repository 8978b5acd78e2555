package node

import (
	"bytes"
	"context"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/seal"
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
