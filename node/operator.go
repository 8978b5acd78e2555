package node

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// operator does for the store what concerns the whole cluster.
type operator struct{ n *Node }

func (o operator) Initialise(ctx context.Context, shares, threshold int) error {
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
	err := n.seal.Initialise(ctx, ledger{n}, n.keepers, shares, threshold)
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

func (o operator) RecoveryShares(ctx context.Context) ([]store.RecoveryShare, error) {
	st, err := ledger(o).State(ctx)
	if err != nil {
		return nil, logError(err)
	}
	if st.Committed == nil {
		return nil, secret.Errorf(secret.CodeUnavailable, "the cluster was never initialised; it has no shares to give")
	}
	// Looked at after the read index: a setting that was just changed holds.
	if !o.n.machine.View().Settings().WireRecovery {
		return nil, secret.Errorf(secret.CodeDenied, "this cluster does not give out plaintext recovery shares")
	}
	shares, err := o.n.seal.Recovery(st)
	if err != nil {
		return nil, keyError(err)
	}
	out := make([]store.RecoveryShare, len(shares))
	for i := range shares {
		out[i] = store.RecoveryShare{Index: shares[i].Index, Bytes: shares[i].Bytes}
		shares[i].Wipe()
	}
	return out, nil
}

// Restore checks the share against its fingerprint here, and only then hands it
// to the leader, which collects: the one thing that a peer passes on for a
// caller, in a call of its own kind.
func (o operator) Restore(ctx context.Context, share store.RecoveryShare) (store.RestoreProgress, error) {
	st, err := ledger(o).State(ctx)
	if err != nil {
		return store.RestoreProgress{}, logError(err)
	}
	check := seal.NewCollector()
	defer check.Close()
	if _, err := check.Add(st, share.Index, share.Bytes[:]); err != nil {
		return store.RestoreProgress{}, shareError(err)
	}
	payload, err := json.Marshal(restoreCall{share.Index, share.Bytes[:]})
	if err != nil {
		return store.RestoreProgress{}, err
	}
	defer clear(payload)
	raw, err := o.n.cluster.Call(ctx, cluster.Leader, rpcRestore, payload)
	if err != nil {
		return store.RestoreProgress{}, logError(err)
	}
	var answer restoreAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return store.RestoreProgress{}, err
	}
	if answer.Code != "" {
		return store.RestoreProgress{}, &secret.Error{Code: answer.Code, Subject: "share", Message: answer.Message, Reason: answer.Reason}
	}
	return answer.Progress, nil
}

const rpcRestore = "seal.restore"

type restoreCall struct {
	Index int    `json:"index"`
	Share []byte `json:"share"`
}

type restoreAnswer struct {
	Progress store.RestoreProgress `json:"progress"`
	Code     secret.Code           `json:"code,omitempty"`
	Message  string                `json:"message,omitempty"`
	Reason   string                `json:"reason,omitempty"`
}

// answerRestore collects shares on the leader. The share that completes the
// threshold unseals it, and it refills the Keepers, from which the others unseal.
func (n *Node) answerRestore(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var call restoreCall
	if err := json.Unmarshal(payload, &call); err != nil {
		return nil, errors.New("not a restore call")
	}
	defer clear(call.Share)
	progress, err := n.collect(ctx, call)
	answer := restoreAnswer{Progress: progress}
	if err != nil {
		var e *secret.Error
		if !errors.As(err, &e) {
			e = &secret.Error{Code: secret.CodeUnavailable, Message: err.Error()}
		}
		answer.Code, answer.Message, answer.Reason = e.Code, e.Message, e.Reason
	}
	return json.Marshal(answer)
}

func (n *Node) collect(ctx context.Context, call restoreCall) (store.RestoreProgress, error) {
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return store.RestoreProgress{}, logError(err)
	}
	if !n.seal.Sealed() {
		return store.RestoreProgress{}, badShare("not_sealed", "the cluster is unsealed; there is nothing to restore")
	}
	p, err := n.collector.Add(st, call.Index, call.Share)
	if err != nil {
		return store.RestoreProgress{}, shareError(err)
	}
	progress := store.RestoreProgress{Collected: p.Collected, Remaining: p.Remaining}
	if !p.Ready {
		return progress, nil
	}
	if err := n.seal.UnsealWith(st, n.collector); err != nil {
		return progress, keyError(err)
	}
	n.collector.Close()
	if err := n.opened(ctx); err != nil {
		return progress, err
	}
	if _, err := n.seal.Refill(ctx, st, n.keepers); err != nil {
		n.log.Warn("the Keepers could not all be refilled after the restore; it is tried again", "error", err)
	}
	progress.Restored = true
	return progress, nil
}

// badShare is an error about a share, with a word for programs: the SPIKE wire
// has one status and one word for all of them.
func badShare(reason, message string) error {
	return &secret.Error{Code: secret.CodeInvalid, Subject: "share", Message: message, Reason: reason}
}

func shareError(err error) error {
	switch {
	case errors.Is(err, seal.ErrNotInitialised):
		return &secret.Error{Code: secret.CodeUnavailable, Message: "the cluster was never initialised; there is nothing to restore"}
	case errors.Is(err, seal.ErrDuplicateShare):
		return badShare("share_given_already", "the share of this index was given already")
	case errors.Is(err, seal.ErrShareIndex):
		return badShare("share_index_unknown", "no share has this index")
	case errors.Is(err, seal.ErrForeignShare):
		return badShare("share_foreign", "it belongs to another share set")
	case errors.Is(err, seal.ErrWrongShare):
		return badShare("share_wrong", "it is not the share of this index; it was refused and the others still count")
	}
	return err
}
