package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// ErrNotRenewable: the machine holds no state that a cluster could begin again
// from, or the seal given is none that it could begin with.
var ErrNotRenewable = errors.New("no cluster can begin again from this")

// Renew turns a state that was read from an archive into one that a cluster can
// begin again from, and shows it with a Reset delta. What is of the cluster
// before goes: a restore that was staged, its audit anchors, and its results of write ids, so that an id
// from before is refused rather than mistaken for a new one. The seal becomes
// seal, with the newest keyring that there is and the incarnation that this one
// was sealed for; not sealed by an operator, and without a pending share set. Secrets and policies, and with them the data hash,
// stay as they are. Only the goroutine of Apply may call it.
func (m *Machine) Renew(seal *fsmpb.SealState, incarnation uint64) error {
	s := m.st
	if len(s.clusterID) == 0 || seal.GetCommitted() == nil || incarnation < s.incarnation {
		return fmt.Errorf("%w: it was never founded or initialised, or the keyring is older than the state", ErrNotRenewable)
	}
	if bad := checkSeal(seal); bad != "" {
		return fmt.Errorf("%w: %s", ErrNotRenewable, bad)
	}
	renewed := proto.Clone(seal).(*fsmpb.SealState)
	renewed.Sealed, renewed.Pending = false, nil
	renewed.Generation = max(renewed.Generation, s.seal.Generation) + 1
	s.size += sealSize(renewed) - sealSize(s.seal)
	s.seal, s.incarnation = renewed, incarnation
	s.anchors.Scan(func(a *fsmpb.Anchor) bool {
		s.size -= anchorSize(a)
		return true
	})
	s.anchors, s.sums.anchors = newAnchors(), sum{}
	s.window, s.sums.window, s.windowBytes, s.windowFloor = newWindow(), sum{}, 0, s.index
	s.restored = nil
	s.unstage()
	s.dirty.anchors, s.dirty.seal = true, true
	m.show(s.publish(&m.hash), Delta{Reset: true, Seal: true})
	return nil
}
