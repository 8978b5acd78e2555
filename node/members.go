package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// ChangeMembers has the leader change who belongs to the cluster.
func (o operator) ChangeMembers(ctx context.Context, change store.MemberChange) error {
	c := o.n.cluster
	switch change.Kind {
	case store.AddMember:
		return memberError(change.ID, c.AddLearner(ctx, change.ID, change.Address))
	case store.PromoteMember:
		return memberError(change.ID, c.Promote(ctx, change.ID))
	case store.DemoteMember:
		return memberError(change.ID, c.Demote(ctx, change.ID))
	case store.RemoveMember:
		return memberError(change.ID, c.Remove(ctx, change.ID))
	case store.TransferLeadership:
		err := c.Transfer(ctx, change.ID)
		if errors.Is(err, cluster.ErrUnknownPeer) && slices.ContainsFunc(c.Status().Members, func(m cluster.Member) bool { return m.ID == change.ID }) {
			return &secret.Error{Code: secret.CodeNotFound, Message: change.ID + " has no vote", Cause: err}
		}
		return memberError(change.ID, err)
	case store.DrainMember, store.UndrainMember:
		return o.n.drainPeer(ctx, change.ID, change.Kind == store.DrainMember)
	}
	return secret.Invalid("change", "there is no such change of the members")
}

// bury removes a member that was silent for too long, on record like a change
// that somebody asked for; the caller is this peer.
func (n *Node) bury(ctx context.Context, id string, silent time.Duration) error {
	select {
	case <-n.up:
	case <-ctx.Done():
		return ctx.Err()
	}
	r := store.Request{ID: "dead-peer-after", Caller: secret.Caller{ID: n.source.ID().String()}}
	return n.store.RemoveDead(ctx, r, id, silent)
}

// refusals are the words for programs of what the cluster refuses as things are.
var refusals = []struct {
	err    error
	reason string
}{
	{cluster.ErrNotCaughtUp, client.ReasonNotCaughtUp},
	{cluster.ErrQuorumAtRisk, "quorum_at_risk"},
	{cluster.ErrChangeUnderWay, client.ReasonChangeUnderWay},
	{cluster.ErrMember, "member_exists"},
	{cluster.ErrSilentPeer, "peer_silent"},
}

// memberError: what the cluster refuses as things are is a conflict, which no
// client repeats by itself; all else is as for any change of the log.
func memberError(id string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return &secret.Error{Code: secret.CodeUnknown, Subject: "members", Message: "the outcome is unknown: the members may or may not have been changed; look at 'spikectl cluster members'", Cause: err}
	case errors.Is(err, cluster.ErrInvalidChange):
		return &secret.Error{Code: secret.CodeInvalid, Subject: "members", Message: err.Error(), Cause: err}
	case errors.Is(err, cluster.ErrUnknownPeer):
		return &secret.Error{Code: secret.CodeNotFound, Message: "there is no member " + id, Cause: err}
	}
	for _, refusal := range refusals {
		if errors.Is(err, refusal.err) {
			return &secret.Error{Code: secret.CodeConflict, Subject: "members", Message: err.Error(), Reason: refusal.reason, Cause: err}
		}
	}
	return logError(err)
}
