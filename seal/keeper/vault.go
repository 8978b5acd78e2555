// Package keeper is a process that holds shares of root keys in memory and gives them to attested Nexus peers, and
// the client that Nexus peers use to reach it.
//
// A Keeper knows nothing: not what its shares are for, not whether they are right, not who else holds some. It
// authenticates with SPIFFE over mTLS, admits Nexus peers and, for SPIKE's old contribution route only, Bootstrap,
// and everybody else's handshake fails. Shares are in locked memory, never on disk and never in logs; a restart
// forgets them, and an unsealed Nexus fills the Keeper up again. What net/http and TLS buffer on the way is ordinary
// memory.
//
// It assumes that the Nexus peers it admits may be stale or racing, but not malicious: any of them may replace a share.
package keeper

import (
	"fmt"
	"slices"
	"sync"

	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

const (
	shareSize = 32
	// maxPending is how many sets that are not settled yet are held at once. One would do if initialisations never
	// raced: of two that do, the loser may place its share after the winner read its own back, and must not
	// push it out.
	maxPending = 8
	// maxRetired is how many dropped sets are remembered, so that a peer acting on an old view cannot bring one back.
	maxRetired = 64
)

// held is one share.
type held struct {
	slot    seal.Slot
	current bool // settled; at most one is
	share   *locked.Buffer
}

// vault is what a Keeper remembers. Its rules:
//
//   - It serves one cluster id: the configured one, else the first that places a share, until a restart.
//   - A share is placed as pending, in addition to the current one, which stays until another is settled.
//     Settling drops the older current share, and everything of a lower incarnation.
//   - Whoever asks with a lower incarnation than the settled one, or brings back a set that was dropped, is stale.
//   - So is whoever settles by an older state of the cluster than the one that was settled by: the order in which sets
//     came here does not tell which of two is newer, since a refill may bring an older one later.
//
// It is safe for concurrent use.
type vault struct {
	mu          sync.Mutex
	cluster     [16]byte // zero: not pinned yet
	incarnation uint64   // the highest that was settled
	asOf        uint64   // index in the log that the current share was settled by, the highest; 0: not known
	shares      []*held  // oldest first
	retired     [][16]byte
	contributed *locked.Buffer // SPIKE's bare contribution; nothing of ours ever reads it
}

// newVault pins the vault to a cluster, or not, when the id is zero.
func newVault(cluster [16]byte) *vault { return &vault{cluster: cluster} }

// admit checks what every request names. The caller holds mu.
func (v *vault) admit(c seal.ClusterRef, set [16]byte) error {
	switch {
	case v.cluster != [16]byte{} && v.cluster != c.ID:
		return seal.ErrForeignSet
	case c.Incarnation < v.incarnation, slices.Contains(v.retired, set):
		return seal.ErrStale
	}
	return nil
}

func (v *vault) find(c seal.ClusterRef, set [16]byte) *held {
	for _, h := range v.shares {
		if h.slot.Cluster == c && h.slot.Set == set {
			return h
		}
	}
	return nil
}

// place copies the share.
func (v *vault) place(slot seal.Slot, share []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.admit(slot.Cluster, slot.Set); err != nil {
		return err
	}
	v.cluster = slot.Cluster.ID
	buffer := keep(share)
	if h := v.find(slot.Cluster, slot.Set); h != nil {
		h.share.Destroy()
		h.slot, h.share = slot, buffer
		return nil
	}
	pending := 0
	for _, h := range v.shares {
		if !h.current {
			pending++
		}
	}
	if pending >= maxPending {
		v.drop(slices.IndexFunc(v.shares, func(h *held) bool { return !h.current }))
	}
	v.shares = append(v.shares, &held{slot: slot, share: buffer})
	return nil
}

// keep copies a share into locked memory.
func keep(share []byte) *locked.Buffer {
	buffer := locked.New(shareSize)
	erase.Do(func() { copy(buffer.Bytes(), share) }) // through registers
	return buffer
}

func (v *vault) drop(i int) {
	v.shares[i].share.Destroy()
	erase.Soon() // what parsing it left behind
	v.shares = slices.Delete(v.shares, i, i+1)
}

// missing says why there is no share for a request that was admitted.
func (v *vault) missing() error {
	if len(v.shares) == 0 {
		return seal.ErrNoShare
	}
	return seal.ErrOtherSet
}

// fetch hands the share to use, which must not keep it.
func (v *vault) fetch(slot seal.Slot, use func(share []byte) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.admit(slot.Cluster, slot.Set); err != nil {
		return err
	}
	h := v.find(slot.Cluster, slot.Set)
	if h == nil || h.slot.Index != slot.Index {
		return v.missing()
	}
	return use(h.share.Bytes())
}

// prove answers a challenge with the share, as the Keeper of that name.
func (v *vault) prove(slot seal.Slot, keeper string, nonce [32]byte) (proof [32]byte, err error) {
	err = v.fetch(slot, func(share []byte) error {
		proof = seal.Proof(share, slot, keeper, nonce)
		return nil
	})
	return proof, err
}

func (v *vault) settle(c seal.ClusterRef, set [16]byte, asOf uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.admit(c, set); err != nil {
		return err
	}
	h := v.find(c, set)
	if h == nil {
		return v.missing()
	}
	if c.Incarnation > v.incarnation { // another log, which counts for itself
		v.asOf = 0
	}
	if asOf != 0 && asOf < v.asOf && !h.current {
		return seal.ErrStale
	}
	v.asOf = max(v.asOf, asOf)
	if h.current {
		return nil
	}
	for i := len(v.shares) - 1; i >= 0; i-- {
		if old := v.shares[i]; old.current || old.slot.Cluster.Incarnation < c.Incarnation {
			v.retire(old.slot.Set)
			v.drop(i)
		}
	}
	h.current, v.incarnation = true, c.Incarnation
	return nil
}

func (v *vault) retire(set [16]byte) {
	if len(v.retired) == maxRetired {
		v.retired = slices.Delete(v.retired, 0, 1)
	}
	v.retired = append(v.retired, set)
}

// slots lists what is held.
func (v *vault) slots() []HeldSlot {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]HeldSlot, len(v.shares))
	for i, h := range v.shares {
		out[i] = HeldSlot{Slot: h.slot, Current: h.current}
	}
	return out
}

// HeldSlot is a share that a Keeper has, without its bytes.
type HeldSlot struct {
	seal.Slot
	Current bool // settled
}

// String is the form for people.
func (h HeldSlot) String() string {
	return fmt.Sprintf("share %d of set %x of cluster %s (current: %v)", h.Index, h.Set, h.Cluster, h.Current)
}

// contribute stores SPIKE's bare share, which says nothing about its cluster or index.
func (v *vault) contribute(share []byte) {
	buffer := keep(share)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.contributed.Destroy()
	v.contributed = buffer
}

// contribution hands the bare share to use, or reports that there is none.
func (v *vault) contribution(use func(share []byte)) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.contributed == nil {
		return false
	}
	use(v.contributed.Bytes())
	return true
}

// wipe forgets every share.
func (v *vault) wipe() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(v.shares) > 0 {
		v.drop(0)
	}
	v.contributed.Destroy()
	v.contributed = nil
}
