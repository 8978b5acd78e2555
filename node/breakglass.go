package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// Break-glass recovery: all shares go out, encrypted to people; on the day when
// neither Keepers nor peers have them any more, enough of them come back in.

func (o operator) RecoveryShares(ctx context.Context) ([]store.RecoveryShare, error) {
	st, err := o.initialised(ctx)
	if err != nil {
		return nil, err
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

// initialised is the state of a cluster that has shares to give.
func (o operator) initialised(ctx context.Context) (seal.State, error) {
	st, err := ledger(o).State(ctx)
	switch {
	case err != nil:
		err = logError(err)
	case st.Committed == nil:
		err = secret.Errorf(secret.CodeUnavailable, "the cluster was never initialised; it has no shares to give")
	}
	return st, err
}

// RecoveryFiles deals the shares to the recipients in turn.
func (o operator) RecoveryFiles(ctx context.Context, recipients []string, oneHolder bool) ([]store.RecoveryFile, error) {
	to := make([]recoveryfile.Recipient, len(recipients))
	for i, text := range recipients {
		var err error
		if to[i], err = recoveryfile.ParseRecipient(text); err != nil {
			return nil, secret.Invalid("recipients", fmt.Sprintf("number %d: %v", i+1, err))
		}
	}
	st, err := o.initialised(ctx)
	if err != nil {
		return nil, err
	}
	held := make(map[string]int)
	for i := range st.Committed.Shares {
		held[recipients[i%len(recipients)]]++
	}
	for _, n := range held {
		if n >= st.Committed.Threshold && st.Committed.Threshold > 1 && !oneHolder {
			return nil, &secret.Error{Code: secret.CodeInvalid, Subject: "recipients", Reason: "one_holder",
				Message: fmt.Sprintf("one of them would hold %d of %d shares, and %d are enough for the root key; name more recipients, or allow one holder (--one-holder)", n, st.Committed.Shares, st.Committed.Threshold)}
		}
	}
	if len(recipients) > st.Committed.Shares {
		return nil, secret.Invalid("recipients", fmt.Sprintf("there are %d shares, and more recipients than that", st.Committed.Shares))
	}
	shares, err := o.n.seal.Recovery(st)
	if err != nil {
		return nil, keyError(err)
	}
	files := make([]store.RecoveryFile, len(shares))
	for i := range shares {
		h := recoveryfile.Header{Cluster: st.Cluster, Set: st.Committed.ID, Index: shares[i].Index,
			Shares: st.Committed.Shares, Threshold: st.Committed.Threshold, Created: o.n.now()}
		recipient := to[i%len(to)]
		content, writeErr := recoveryfile.Write(h, shares[i].Bytes[:], recipient)
		shares[i].Wipe()
		err = errors.Join(err, writeErr)
		files[i] = store.RecoveryFile{Index: h.Index, Name: h.Name(), For: recipient.String(), Content: content}
	}
	if err != nil {
		return nil, &secret.Error{Code: secret.CodeInternal, Message: "the shares could not be encrypted", Cause: err}
	}
	return files, nil
}

// Restore checks the share against its fingerprint here, and only then hands it
// to the leader, which collects: the one thing that a peer passes on for a
// caller, in a call of its own kind.
func (o operator) Restore(ctx context.Context, share store.RecoveryShare) (store.RestoreProgress, error) {
	if _, _, formed := o.n.cluster.Identity(); !formed && o.n.cfg.RestoreLatest {
		return o.n.cold.give(share)
	}
	st, err := ledger(o).State(ctx)
	if err != nil {
		return store.RestoreProgress{}, logError(err)
	}
	if err := restorable(st, share); err != nil {
		return store.RestoreProgress{}, err
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
	return answer.Progress, answer.err("share")
}

// restorable says why no share can be taken now, or not this one.
func restorable(st seal.State, share store.RecoveryShare) error {
	switch {
	case st.Committed == nil:
		return shareError(seal.ErrNotInitialised)
	case st.Sealed:
		return badShare("operator_sealed", "an operator sealed the cluster; 'spikectl operator unseal' first, then give the shares if the Keepers have none")
	case share.Cluster != [16]byte{} && share.Cluster != st.Cluster.ID:
		return badShare("share_foreign_cluster", fmt.Sprintf("it is of the cluster %x, and this is %x", share.Cluster, st.Cluster.ID))
	case share.Set != [16]byte{} && share.Set != st.Committed.ID:
		return badShare("share_foreign", fmt.Sprintf("it is of the share set %x, and the present one is %x: a rekey ended the older ones, or is not finished", share.Set, st.Committed.ID))
	}
	return nil
}

const rpcRestore = "seal.restore"

type restoreCall struct {
	Index int    `json:"index"`
	Share []byte `json:"share"`
}

type restoreAnswer struct {
	Progress store.RestoreProgress `json:"progress"`
	refused
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
	return json.Marshal(restoreAnswer{progress, refusedFor(err)})
}

func (n *Node) collect(ctx context.Context, call restoreCall) (store.RestoreProgress, error) {
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return store.RestoreProgress{}, logError(err)
	}
	switch {
	case !n.seal.Sealed():
		return store.RestoreProgress{}, badShare("not_sealed", "the cluster is unsealed; there is nothing to restore")
	case n.peerSealed.Load():
		return store.RestoreProgress{}, badShare("leader_sealed", "an operator sealed the peer that leads, which collects the shares: 'spikectl operator unseal --peer "+n.cfg.ID+"', or have another lead with 'spikectl cluster transfer'")
	}
	if err := restorable(st, store.RecoveryShare{}); err != nil {
		return store.RestoreProgress{}, err
	}
	p, err := n.collector.Add(st, call.Index, call.Share)
	if err != nil {
		return store.RestoreProgress{}, shareError(err)
	}
	if n.peerSealed.Load() || n.machine.View().Seal().Sealed || !n.leads() { // meanwhile: it was dropped with the others, or came too late for that
		n.collector.Close()
		return store.RestoreProgress{}, badShare("sealed_or_deposed", "the cluster or its leader was sealed, or another leads, in this moment; see 'spikectl status' and give the shares again")
	}
	progress := store.RestoreProgress{Collected: p.Collected, Remaining: p.Remaining, Given: p.Given}
	if !p.Ready {
		return progress, nil
	}
	failpoint.Hit(failpoint.SealRestoreCollected)
	if err := n.seal.UnsealWith(st, n.collector); err != nil {
		return progress, keyError(err)
	}
	failpoint.Hit(failpoint.SealRestoreUnsealed)
	n.collector.Close()
	if err := n.opened(ctx); err != nil {
		return progress, err
	}
	if _, err := n.seal.Refill(ctx, st, n.keepers); err != nil {
		n.log.Warn("the Keepers could not all be refilled after the restore; it is tried again", "error", err)
	}
	n.wakeOthers()
	progress.Restored = true
	return progress, nil
}

const rpcWake = "node.wake"

// wakeOthers has the other peers try at once to get their keys; without it they
// do within unsealRetry.
func (n *Node) wakeOthers() {
	for _, m := range n.cluster.Status().Members {
		if m.ID != n.cfg.ID {
			go func() {
				ctx, cancel := n.step()
				defer cancel()
				_, _ = n.cluster.Call(ctx, m.ID, rpcWake, nil)
			}()
		}
	}
}

func (n *Node) answerWake(context.Context, string, []byte) ([]byte, error) {
	n.poke()
	return nil, nil
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
