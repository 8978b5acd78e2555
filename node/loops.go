package node

import (
	"context"
	"errors"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/seal"
)

const (
	rpcTimeout = 5 * time.Second // of one step of a loop
	// inspectEvery is how often the Keepers are asked whether they still have
	// their shares: one that restarted is refilled at once rather than at the
	// next full refill.
	inspectEvery = 5 * time.Second
	anchorEvery  = time.Second
	// unsealRetry bounds the pause between attempts to unseal.
	unsealRetry = 5 * time.Second
	// handAfter is how long a sealed leader waits for its own keys before it
	// looks for a peer that has them.
	handAfter = 3 * time.Second
)

// sleep waits; false when the node stops.
func (n *Node) sleep(d time.Duration) bool {
	select {
	case <-n.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (n *Node) step() (context.Context, context.CancelFunc) {
	return context.WithTimeout(n.ctx, rpcTimeout)
}

func (n *Node) leads() bool { return n.cluster.Status().State == cluster.Leads }

// founding gives a new state machine its identity and settings, once there is a
// leader. Every new leader looks; the command is idempotent.
func (n *Node) founding() {
	changes := n.cluster.LeaderChanges()
	for {
		select {
		case <-n.ctx.Done():
			return
		case _, open := <-changes:
			if !open {
				return
			}
		}
		for n.leads() && !n.machine.View().Founded() {
			ctx, cancel := n.step()
			err := n.found(ctx)
			cancel()
			if err == nil {
				continue
			}
			n.log.Warn("the cluster could not be founded yet", "error", err)
			if !n.sleep(200 * time.Millisecond) {
				return
			}
		}
	}
}

func (n *Node) found(ctx context.Context) error {
	if _, err := n.cluster.WaitRead(ctx); err != nil || n.machine.View().Founded() {
		return err
	}
	id, incarnation, ok := n.cluster.Identity()
	if !ok {
		return cluster.ErrNotReady
	}
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: id[:], Incarnation: incarnation,
		Settings: &fsmpb.Settings{MaxVersions: uint32(n.cfg.MaxVersions), StateLimitBytes: uint64(n.cfg.StateLimit), WireRecovery: n.cfg.WireRecovery}}}})
	if err == nil && result.Code != fsmpb.Code_OK {
		err = errors.New(result.Code.String())
	}
	return err
}

// sealWatch wakes the unseal loop when the replicated seal state changes.
type sealWatch struct{ n *Node }

func (w sealWatch) Changed(d fsm.Delta) {
	if d.Seal || d.Reset {
		if d.View.Seal().Sealed {
			// In the apply of the entry: nothing newer than it is served with keys.
			w.n.store.Close()
			w.n.seal.Lock()
		}
		w.n.poke()
	}
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// unsealing gets the keys whenever this peer should have them and has not, and
// follows changes of the keyring. It asks the cluster first whether an operator
// sealed it; without a leader nothing is unsealed.
func (n *Node) unsealing() {
	pause := 100 * time.Millisecond
	for {
		err := n.unseal()
		reason := ""
		if err != nil {
			reason = err.Error()
			if n.setSealReason(reason) {
				n.log.Warn("this peer is sealed", "reason", reason)
			}
			pause = min(pause*2, unsealRetry)
		} else {
			n.setSealReason("")
			pause = 100 * time.Millisecond
		}
		wait := time.After(pause)
		if err == nil {
			wait = nil // until something changes
		}
		select {
		case <-n.ctx.Done():
			return
		case <-n.wake:
			pause = 100 * time.Millisecond
		case <-wait:
		}
	}
}

func (n *Node) setSealReason(reason string) (changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed = n.sealReason != reason
	n.sealReason = reason
	return changed
}

// unseal returns nil when this peer has the keys that the state asks for.
func (n *Node) unseal() error {
	ctx, cancel := n.step()
	defer cancel()
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return err
	}
	if st.Sealed {
		n.store.Close()
		n.seal.Lock()
		return seal.ErrOperatorSealed
	}
	if st.Committed == nil {
		return seal.ErrNotInitialised
	}
	sealed := n.seal.Sealed()
	if _, err := n.seal.Unseal(ctx, st, n.keepers); err != nil {
		return err
	}
	return n.opened(sealed)
}

// opened is called when keys have arrived: the audit chain is held against its
// anchor, then the store may serve.
func (n *Node) opened(wasSealed bool) error {
	if wasSealed {
		if err := n.reconcileAudit(); err != nil {
			return err
		}
		n.log.Info("this peer is unsealed")
	}
	n.store.Open()
	return nil
}

func (n *Node) reconcileAudit() error {
	anchor, ok := n.machine.View().Anchor(n.cfg.ID)
	if !ok {
		return nil
	}
	good, err := n.audit.Reconcile(audit.Anchor{Count: anchor.Count, Head: [32]byte(anchor.Head)})
	if err != nil {
		return err
	}
	if !good {
		n.log.Error("the audit log of this peer does not contain the point that the cluster has anchored: its tail was cut or it was exchanged; the break is recorded")
		n.mu.Lock()
		n.auditFault = "the chain was broken before this start: run 'spikectl audit verify'"
		n.mu.Unlock()
	}
	return nil
}

// refilling keeps the Keepers supplied: a full round each KeeperInterval, and a
// look each few seconds for one that has lost its share. The leader does it; any
// unsealed peer does while the leader has no keys. Two at once do no harm: they
// place the same shares.
func (n *Node) refilling() {
	last := n.now()
	for n.sleep(inspectEvery) {
		if n.seal.Sealed() || !n.leads() && !n.leaderSealed() {
			continue
		}
		ctx, cancel := n.step()
		st := sealState(n.machine.View())
		full := n.now().Sub(last) >= n.cfg.KeeperInterval
		reports, err := n.seal.Inspect(ctx, st, n.keepers)
		for _, r := range reports {
			full = full || r.Health == seal.Empty || r.Health == seal.Wrong || r.Health == seal.Stale
		}
		if err == nil && full {
			last = n.now()
			reports, err = n.seal.Refill(ctx, st, n.keepers)
			for _, r := range reports {
				if r.Refilled {
					n.log.Info("a Keeper was given its share again", "keeper", r.Name)
				}
			}
		}
		cancel()
		if err != nil {
			n.log.Warn("the Keepers could not be looked after", "error", err)
		}
	}
}

func (n *Node) leaderSealed() bool {
	status := n.cluster.Status()
	return status.Leader != "" && n.askPeer(status.Leader).Sealed
}

// anchoring notes in the replicated state how far the audit chain has come: each
// second when there are new records, and after each 1,024.
func (n *Node) anchoring() {
	ticker := time.NewTicker(anchorEvery)
	defer ticker.Stop()
	var done uint64
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-ticker.C:
		case <-n.audit.Due():
		}
		if n.audit.Count() == done || !n.machine.View().Founded() {
			continue
		}
		anchor, err := n.audit.Anchor()
		if err == nil {
			ctx, cancel := n.step()
			var result *fsmpb.Result
			result, err = n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AnchorAudit{AnchorAudit: &fsmpb.AnchorAudit{
				Peer: n.cfg.ID, Count: anchor.Count, Head: anchor.Head[:]}}})
			cancel()
			// A conflict says that the count is behind the anchor: a cut log, which
			// is dealt with when this peer unseals.
			if err == nil && (result.Code == fsmpb.Code_OK || result.Code == fsmpb.Code_CONFLICT) {
				done = anchor.Count
			}
		}
		if err != nil {
			n.log.Debug("the audit log could not be anchored; it is tried again", "error", err)
		}
	}
}

// handing gives leadership away when this leader has no keys and another voter
// has: a sealed leader orders bytes well, but its own clients are not served.
func (n *Node) handing() {
	var since time.Time
	for n.sleep(time.Second) {
		view := n.machine.View()
		if !n.leads() || !n.seal.Sealed() || view.Seal().Sealed || view.Seal().Committed == nil {
			since = time.Time{}
			continue
		}
		if since.IsZero() {
			since = n.now()
		}
		if n.now().Sub(since) < handAfter {
			continue
		}
		status := n.cluster.Status()
		for _, m := range status.Members {
			if m.ID == n.cfg.ID || !m.Voter {
				continue
			}
			if p := n.askPeer(m.ID); p.Reachable && !p.Sealed {
				ctx, cancel := n.step()
				err := n.cluster.TransferLeadership(ctx, m.ID)
				cancel()
				n.log.Info("leadership handed to a peer that has keys", "to", m.ID, "error", err)
				break
			}
		}
	}
}
