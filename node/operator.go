package node

import (
	"context"
	"errors"

	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
)

// operator does for the store what concerns the whole cluster.
type operator struct{ n *Node }

func (o operator) Initialise(ctx context.Context, shares, threshold int, allowSingleShare bool) error {
	n := o.n
	if !n.machine.View().Founded() {
		return secret.Errorf(secret.CodeUnavailable, "the cluster is still being formed: all peers must be up for that")
	}
	if shares == 0 {
		shares = len(n.keepers)
	}
	if threshold == 0 {
		threshold = shares/2 + 1
	}
	if shares != len(n.keepers) {
		return secret.Invalid("shares", "their number must be that of the Keepers that this peer knows")
	}
	err := n.seal.Initialise(ctx, ledger{n}, seal.Split{Keepers: n.keepers, Shares: shares, Threshold: threshold, AllowSingleShare: allowSingleShare})
	var placement *seal.PlacementError
	switch {
	case err == nil:
		// The cluster is initialised, whatever keeps this peer from serving now.
		if err := n.opened(ctx); err != nil {
			n.log.Warn("initialised, but this peer does not serve yet; it is tried again", "error", err)
		}
		return nil
	case errors.Is(err, seal.ErrAlreadyInitialised):
		return &secret.Error{Code: secret.CodeConflict, Message: "the cluster has its root key already; nothing was changed", Cause: err}
	case errors.Is(err, seal.ErrSuperseded):
		return &secret.Error{Code: secret.CodeConflict, Message: "another initialisation overtook this one; see 'spikectl status'", Cause: err}
	case errors.Is(err, seal.ErrShareSet):
		return &secret.Error{Code: secret.CodeInvalid, Subject: "shares and threshold", Message: err.Error()}
	case errors.As(err, &placement):
		return &secret.Error{Code: secret.CodeUnavailable, Message: placement.Error(), Cause: err}
	}
	return logError(err)
}
