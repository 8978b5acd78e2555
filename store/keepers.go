package store

import (
	"context"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// KeeperList describes the Keepers of the cluster.
type KeeperList struct {
	Set, Pending string // ids of the share set, and of one that is begun and not committed: ""
	Shares       int
	Threshold    int
	Good         int // Keepers whose share is proven
	Keepers      []KeeperState
}

// KeeperState is one Keeper: what was found of it, and what it says of itself.
type KeeperState struct {
	Name    string
	Index   int // of its share in the set; 0: it has none
	Health  string
	Detail  string
	Fetched bool       // good, but of a release without proofs: its share was sent for it
	Contact *time.Time // when the asked peer had an answer from it last; nil: never

	// What it says itself.
	Silence string // why it says nothing
	Version string
	Started *time.Time
	Holds   []KeeperSlot
	Askers  []KeeperAsker // the newest first
}

// KeeperSlot is a share that a Keeper says it holds.
type KeeperSlot struct {
	Set     string
	Index   int
	Current bool // settled: not of a set that is only begun
}

// KeeperAsker is an identity that asked a Keeper for something.
type KeeperAsker struct {
	Peer    string
	Op      string
	Count   uint64
	Refused uint64 // of those, for being too many
	Last    time.Time
}

// ListKeepers describes the Keepers: for superusers, admins and operators.
func (s *Store) ListKeepers(ctx context.Context, r Request) (KeeperList, error) {
	return s.keepers(ctx, r, "keeper.list", false)
}

// VerifyKeepers has every Keeper prove its share now. CodeSealed when this peer
// has no keys, without which no proof can be checked.
func (s *Store) VerifyKeepers(ctx context.Context, r Request) (KeeperList, error) {
	return s.keepers(ctx, r, "keeper.verify", true)
}

func (s *Store) keepers(ctx context.Context, r Request, op string, prove bool) (KeeperList, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.only(ctx, r, op, false, secret.RoleSuperuser, secret.RoleAdmin, secret.RoleOperator); err != nil {
		return KeeperList{}, err
	}
	return s.cfg.Operator.Keepers(ctx, prove)
}
