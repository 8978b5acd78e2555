package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/seal"
)

const (
	rpcTimeout = 5 * time.Second // of one step of a loop
	// keeperTimeout bounds a visit to one Keeper. Shorter than a step, it leaves
	// time for what the visit was for, however many Keepers hang.
	keeperTimeout = 3 * time.Second
	anchorEvery   = time.Second
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

// leading does what comes with leadership. A new leader founds a new state
// machine: gives it its identity and settings; the command is idempotent. One
// that leads no longer forgets the recovery shares it has collected: they are
// fed to the leader, and must not lie in memory where nobody adds to them.
func (n *Node) leading() {
	changes := n.cluster.LeaderChanges()
	for {
		select {
		case <-n.ctx.Done():
			return
		case leads, open := <-changes:
			if !open {
				return
			}
			if !leads {
				n.collector.Close()
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
	if err == nil {
		n.warnOfOthers()
	}
	return err
}

// sealWatch wakes the unseal loop when the replicated seal state changes.
type sealWatch struct{ n *Node }

func (w sealWatch) Changed(d fsm.Delta) {
	if d.Seal || d.Reset {
		if d.View.Seal().Sealed {
			// In the apply of the entry: nothing newer than it is served with keys.
			w.n.dropKeys()
		} else {
			// Likewise: no later entry is published before the keys that it may need are
			// in use, or this peer shows nothing at all.
			_ = w.n.follow()
		}
		w.n.poke()
	}
}

// dropKeys seals this peer: its keys go, what it serves with them, and what was
// collected of recovery shares. The keys first: no store opens on them after this.
func (n *Node) dropKeys() {
	if planted.Is(planted.KeysStay) {
		return
	}
	n.seal.Lock()
	n.store.Close()
	n.collector.Close()
}

// follow takes the keyring of the newest view into use, from memory alone. A
// peer whose root key does not open it is sealed, and asks the Keepers.
func (n *Node) follow() error {
	n.keyring.Lock()
	err := n.seal.Follow(sealState(n.machine.View()))
	n.keyring.Unlock()
	if err != nil {
		n.log.Warn("the keys here do not open the cluster's new keyring; they are dropped", "error", err)
		n.dropKeys()
	}
	return err
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
			if !n.store.Sealed() {
				// After a rekey, mostly: the keys are the same, under another root key.
				reason = "it serves with the keys that it has, and could not get newer ones: " + reason
			}
			if n.setSealReason(reason) {
				n.log.Warn("this peer has not the keys that it should have; it is tried again", "sealed", n.store.Sealed(), "reason", reason)
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
	if n.cluster.Status().State == cluster.Removed {
		n.dropKeys()
		return cluster.ErrRemoved
	}
	if n.peerSealed.Load() { // keys that were on their way then may have come since
		n.dropKeys()
		return n.errPeerSealed()
	}
	ctx, cancel := n.step()
	defer cancel()
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return err
	}
	if st.Sealed {
		n.dropKeys()
		return seal.ErrOperatorSealed
	}
	if st.Committed == nil {
		return seal.ErrNotInitialised
	}
	if _, err := n.seal.Unseal(ctx, st, n.keepers); err != nil {
		return err
	}
	return n.opened(ctx)
}

// opened is called when keys have arrived: once the audit chain was held against
// its anchor, the store may serve. It is repeated until it succeeds.
func (n *Node) opened(ctx context.Context) error {
	if err := n.follow(); err != nil { // the keyring may have moved while the keys were on their way
		return err
	}
	if err := n.reconcileAudit(ctx); err != nil {
		return err
	}
	was := n.store.Sealed()
	if n.peerSealed.Load() { // while the keys were on their way
		n.dropKeys()
		return n.errPeerSealed()
	}
	if err := n.store.Open(); err != nil {
		// An operator sealed the cluster while the keys were on their way.
		n.dropKeys()
		n.poke()
		return err
	}
	if was {
		n.log.Info("this peer is unsealed")
	}
	return nil
}

// reconcileAudit holds the audit chain against its anchor, once in the life of
// the process. It needs no keys. Nothing is served and nothing is anchored
// before it: an anchor of the chain's new end would hide that it was cut.
func (n *Node) reconcileAudit(ctx context.Context) error {
	n.auditMu.Lock()
	defer n.auditMu.Unlock()
	if n.reconciled {
		return nil
	}
	if _, err := n.cluster.WaitRead(ctx); err != nil {
		return err
	}
	good, count := true, uint64(0)
	if anchor, ok := n.machine.View().Anchor(n.cfg.ID); ok {
		var err error
		count = anchor.Count
		if good, err = n.audit.Reconcile(audit.Anchor{Count: anchor.Count, Head: [32]byte(anchor.Head)}); err != nil {
			return err
		}
	}
	n.reconciled = true
	if !good {
		fault := "the chain was broken before this start: its tail was cut, or it was exchanged; run 'spikectl audit verify', and find out who did it"
		if n.audit.Begun() {
			fault = fmt.Sprintf("the audit log of before is not here: the cluster had seen %d records, and a new log was begun after them; "+
				"keep the old one if you have it, and if nobody knows where it went, find out", count)
		}
		n.log.Error("the audit log of this peer does not contain the point that the cluster has anchored; the break is recorded", "fault", fault)
		n.mu.Lock()
		n.auditFault = fault
		n.mu.Unlock()
	}
	return nil
}

// refilling keeps the Keepers supplied: a full round each KeeperInterval, and a
// look each few seconds for one that has lost its share, which is refilled at once.
// The leader does it; any unsealed peer does while the leader has no keys. Two at
// once do no harm: they place the same shares.
func (n *Node) refilling() {
	last := n.now()
	for n.sleep(keepersEvery) {
		st, sealed := sealState(n.machine.View()), n.seal.Sealed()
		if st.Sealed || st.Committed == nil || sealed || !n.leads() && !n.leaderSealed() {
			continue
		}
		full := n.now().Sub(last) >= n.cfg.KeeperInterval
		l, err := n.lookAtKeepers(n.ctx, n.now())
		if err == nil {
			n.keeperLook.set(n.now(), seen(l.reports))
			for _, r := range l.reports {
				full = full || r.Health == seal.Empty || r.Health == seal.Wrong || r.Health == seal.Stale
			}
			if full {
				last = n.now()
				err = n.refill()
			}
		}
		if err != nil && n.ctx.Err() == nil {
			n.log.Warn("the Keepers could not be looked after", "error", err)
		}
	}
}

// refill gives the Keepers that need it their shares, by the newest state: by an
// older one, it could hand out shares of a set that is not the cluster's any more.
func (n *Node) refill() error {
	ctx, cancel := n.step()
	defer cancel()
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return err
	}
	if st.Committed == nil || st.Sealed {
		return nil
	}
	l := &keeperLook{began: n.now(), done: make(chan struct{}), set: *st.Committed}
	if l.reports, l.err = n.seal.Refill(ctx, st, n.keepers); l.err != nil {
		return l.err
	}
	n.looked(l)
	n.keeperLook.set(n.now(), seen(l.reports))
	for _, r := range l.reports {
		if r.Refilled {
			n.log.Info("a Keeper was given its share again", "keeper", r.Name)
		}
	}
	return nil
}

func seen(reports []seal.KeeperReport) []keeperSeen {
	list := make([]keeperSeen, len(reports))
	for i, r := range reports {
		list[i] = keeperSeen{r.Name, r.Health == seal.Good}
	}
	return list
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
		ctx, cancel := n.step()
		at, err := n.anchor(ctx)
		cancel()
		if err != nil {
			n.anchorFailures.Add(1)
			n.log.Debug("the audit log could not be anchored; it is tried again", "error", err)
			continue
		}
		n.anchors.Add(1)
		done = at
	}
}

// anchor notes the present end of the audit chain and returns its count.
func (n *Node) anchor(ctx context.Context) (uint64, error) {
	if err := n.reconcileAudit(ctx); err != nil {
		return 0, err
	}
	at, err := n.audit.Anchor()
	if err != nil {
		return 0, err
	}
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AnchorAudit{AnchorAudit: &fsmpb.AnchorAudit{
		Peer: n.cfg.ID, Count: at.Count, Head: at.Head[:]}}})
	switch {
	case err != nil:
		return 0, err
	// A conflict: an attempt whose outcome was unknown came to the log after all.
	case result.Code == fsmpb.Code_OK, result.Code == fsmpb.Code_CONFLICT:
		return at.Count, nil
	}
	return 0, errors.New(result.Code.String())
}

// handing gives leadership away when this leader has no keys and another voter
// has: a sealed leader orders bytes well, but its own clients are not served.
func (n *Node) handing() {
	var since time.Time
	for n.sleep(time.Second) {
		if n.cluster.Status().State == cluster.Removed && !n.store.Sealed() {
			n.poke() // it gives up its keys
		}
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
		ctx, cancel := n.step()
		_ = n.handOver(ctx, n.others())
		cancel()
	}
}
