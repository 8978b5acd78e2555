package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/secret"
)

// Sealing by an operator. Of the whole cluster it is an entry of the log: each
// peer drops its keys when it applies it, and a peer that starts asks for the
// state before it asks Keepers. Of one peer it is a file in its data directory,
// which holds until it is taken away, restarts included: whoever seals a peer
// does not want a crash to open it again.

// sealFile marks a peer that is sealed by itself.
const sealFile = "sealed-by-operator"

const rpcSeal = "node.seal"

// errPeerSealed says why this peer has no keys, with the command that ends it.
func (n *Node) errPeerSealed() error {
	return fmt.Errorf("an operator sealed this peer; 'spikectl operator unseal --peer %s' lets it have its keys", n.cfg.ID)
}

// SetSealed seals or unseals the cluster, or one peer when peer is not empty.
// Nothing is changed when it is so already.
func (o operator) SetSealed(ctx context.Context, sealed bool, peer string) error {
	if peer != "" {
		return o.n.callOnOff(ctx, rpcSeal, peer, sealed, "nothing was changed there, as far as can be known; stop the process to be sure that it has no keys")
	}
	for {
		st, err := ledger(o).State(ctx)
		switch {
		case err != nil:
			return logError(err)
		case st.Committed == nil:
			return &secret.Error{Code: secret.CodeConflict, Message: "the cluster was never initialised: it has no keys to seal", Reason: "not_initialised"}
		case st.Sealed == sealed:
			return nil
		}
		before, after := failpoint.NodeUnsealBefore, failpoint.NodeUnsealAfter
		if sealed {
			before, after = failpoint.NodeSealBefore, failpoint.NodeSealAfter
		}
		failpoint.Hit(before)
		result, err := o.n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: sealed, ExpectedGeneration: st.Generation}}})
		switch {
		case err != nil:
			return logError(err)
		case result.Code == fsmpb.Code_OK:
			failpoint.Hit(after)
			o.n.log.Info("an operator changed the seal of the cluster", "sealed", sealed)
			return nil
		case result.Code != fsmpb.Code_CONFLICT: // a conflict: somebody was faster; what is so now decides
			return secret.Errorf(secret.CodeInternal, "the state machine refused it: %s", result.Code)
		}
	}
}

// answerSeal seals or unseals this peer alone. When it returns, no request that
// begins here is served from keys, and a restart does not change that.
func (n *Node) answerSeal(_ context.Context, on bool) error {
	n.sealMu.Lock()
	defer n.sealMu.Unlock()
	if on == n.peerSealed.Load() {
		return nil
	}
	if err := markFile(filepath.Join(n.cfg.DataDir, sealFile), on); err != nil {
		n.log.Error("the mark of a sealed peer could not be changed", "error", err)
		return secret.Errorf(secret.CodeUnavailable, "the peer's disk did not take the mark that it is sealed, or is not any more; look at its log")
	}
	n.peerSealed.Store(on)
	if on {
		n.dropKeys()
	}
	n.log.Info("an operator changed the seal of this peer", "sealed", on)
	n.poke()
	return nil
}

// markFile makes an empty file, or removes it, durably.
func markFile(name string, there bool) error {
	if there {
		file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return err
		}
	} else if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// findSeal learns at the start whether this peer was sealed by itself. Whatever
// cannot be known counts as sealed.
func (n *Node) findSeal() error {
	switch _, err := os.Lstat(filepath.Join(n.cfg.DataDir, sealFile)); {
	case err == nil:
		n.peerSealed.Store(true)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("whether an operator sealed this peer cannot be known: %w", err)
	}
	return nil
}
