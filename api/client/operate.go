package client

// What operators do with a cluster: its settings, keys, seal and members.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// Settings reads the settings of the cluster.
func (c *Client) Settings(ctx context.Context) (settings Settings, err error) {
	return settings, c.call(ctx, http.MethodGet, RouteSettings, nil, &settings, "")
}

// PutSettings changes those that are named.
func (c *Client) PutSettings(ctx context.Context, settings SettingsRequest) (Settings, error) {
	return change[Settings](ctx, c, RouteSettingsPut, settings)
}

// Keys describes the keys of the cluster.
func (c *Client) Keys(ctx context.Context) (keys KeysAnswer, err error) {
	return keys, c.call(ctx, http.MethodGet, RouteKeys, nil, &keys, "")
}

// RotateKeys gives each of the purposes a new key; none means all that can be
// rotated. An attempt whose answer is lost is made again and may then rotate
// twice, which costs nothing but a key.
func (c *Client) RotateKeys(ctx context.Context, purposes ...string) error {
	_, err := c.alter(ctx, RouteKeyRotate, RotateRequest{purposes})
	return err
}

// Recover gives all shares of the root key, each encrypted to one of the recipients.
func (c *Client) Recover(ctx context.Context, r RecoverRequest) ([]RecoveryFile, error) {
	answer, err := read[RecoverAnswer](ctx, c, RouteRecover, r)
	return answer.Files, err
}

// Restore gives one share back. CodeInvalid: the share is refused, for a Reason;
// those given before still count. One whose answer was lost is given again, and
// may then be refused as given already.
func (c *Client) Restore(ctx context.Context, r RestoreRequest) (RestoreAnswer, error) {
	return read[RestoreAnswer](ctx, c, RouteRestore, r)
}

// Seal has every peer drop its keys, or only the one that peer names. When it
// returns nil, nothing is answered from keys any more; peers that were cut off
// drop theirs when they hear of it. It may be done again.
func (c *Client) Seal(ctx context.Context, peer string) error {
	_, err := c.alter(ctx, RouteSeal, SealRequest{peer})
	return err
}

// Unseal lets the peers, or the one that peer names, have their keys again; they
// get them from the Keepers by themselves. It may be done again.
func (c *Client) Unseal(ctx context.Context, peer string) error {
	_, err := c.alter(ctx, RouteUnseal, SealRequest{peer})
	return err
}

// rekeyAttempt is how long one attempt of a rekey is waited for: the peer waits
// for Keepers, twice.
const rekeyAttempt = 30 * time.Second

// Rekey gives the cluster a new root key, split anew. An empty ID is drawn; to
// repeat a call whose outcome is unknown, give the ID that it had. CodeConflict:
// it cannot be now, and Reason and message say why; nothing was changed.
func (c *Client) Rekey(ctx context.Context, q RekeyRequest) error {
	if q.ID == "" {
		q.ID = NewID()
	}
	_, err := c.alter(ctx, RouteKeyRekey, q)
	return err
}

// CancelRekey gives up a rekey that was begun and not committed, and returns the
// id of its share set, empty when there is none.
func (c *Client) CancelRekey(ctx context.Context) (string, error) {
	answer, err := read[CancelAnswer](ctx, c, RouteKeyRekeyCancel, struct{}{})
	return answer.ShareSet, err
}

// NewID is 16 random bytes in hex.
func NewID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// PruneKeys drops archived keys that left the live peers before a time. It may be
// done again.
func (c *Client) PruneKeys(ctx context.Context, before time.Time) (PruneKeysAnswer, error) {
	return read[PruneKeysAnswer](ctx, c, RouteKeyPrune, PruneKeysRequest{before})
}

// Init gives a new cluster its root key. It is tried until the cluster answers;
// doing it again is refused with CodeConflict.
func (c *Client) Init(ctx context.Context, q InitRequest) error {
	_, err := read[struct{}](ctx, c, RouteInit, q)
	return err
}

// AddMember lets the peer id, whose peer port is at address, join as a learner.
// Changes of the members may be made again: what is so already is no error.
// CodeConflict: the cluster refuses it as things are, and says why, also in
// Reason; nothing was changed.
func (c *Client) AddMember(ctx context.Context, id, address string) error {
	_, err := c.alter(ctx, RouteMemberAdd, AddMemberRequest{id, address})
	return err
}

// PromoteMember gives a learner that has caught up a vote.
func (c *Client) PromoteMember(ctx context.Context, id string) error {
	_, err := c.alter(ctx, RouteMemberPromote, MemberRequest{id})
	return err
}

// DemoteMember takes a voter's vote.
func (c *Client) DemoteMember(ctx context.Context, id string) error {
	_, err := c.alter(ctx, RouteMemberDemote, MemberRequest{id})
	return err
}

// RemoveMember takes a member out of the cluster; CodeNotFound when it was none
// before the first attempt.
func (c *Client) RemoveMember(ctx context.Context, id string) error {
	maybe, err := c.alter(ctx, RouteMemberRemove, MemberRequest{id})
	if maybe && secret.CodeOf(err) == secret.CodeNotFound {
		return nil // an attempt whose answer was lost has done it
	}
	return err
}

// TransferLeadership has the voter id lead, any when it is empty.
func (c *Client) TransferLeadership(ctx context.Context, id string) error {
	_, err := c.alter(ctx, RouteMemberTransfer, MemberRequest{id})
	return err
}

// DrainMember prepares a peer for maintenance: others lead and serve in its
// place, while it votes and replicates on. It holds until UndrainMember or a
// restart of that peer. CodeConflict when nobody else could serve.
func (c *Client) DrainMember(ctx context.Context, id string) error {
	_, err := c.alter(ctx, RouteMemberDrain, MemberRequest{id})
	return err
}

// UndrainMember ends DrainMember.
func (c *Client) UndrainMember(ctx context.Context, id string) error {
	_, err := c.alter(ctx, RouteMemberUndrain, MemberRequest{id})
	return err
}
