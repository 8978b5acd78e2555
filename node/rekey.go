package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// inheritFor bounds how long the keys of before a rekey are used on because some
// peer has not got the new root key. After it they are rotated, and that peer is
// sealed until it gets it.
const inheritFor = 10 * time.Minute

// Rekey does it here, on the peer that was asked: it takes keys, Keepers and the
// log, and who leads does not matter.
func (o operator) Rekey(ctx context.Context, r store.Rekeying) error {
	n := o.n
	if n.machine.View().Level() < levelOfRotation {
		return n.levelTooLow(levelOfRotation)
	}
	keepers, err := n.keepersNamed(r.Keepers)
	if err != nil {
		return err
	}
	if r.Shares == 0 {
		r.Shares = len(keepers)
	}
	if r.Threshold == 0 {
		r.Threshold = r.Shares/2 + 1
	}
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return logError(err)
	}
	again := seal.Rekeyed(st, r.ID) // who was there then may be gone by now
	switch {
	case st.Sealed:
		return rekeyError(seal.ErrOperatorSealed)
	case st.Committed == nil:
		return rekeyError(seal.ErrNotInitialised)
	case !again:
		if err := n.allKnow(keepers, r.Force); err != nil {
			return err
		}
	}
	err = n.seal.Rekey(ctx, ledger{n}, seal.Rekeying{ID: r.ID, Incarnation: n.incarnation(),
		Split: seal.Split{Keepers: keepers, Shares: r.Shares, Threshold: r.Threshold, AllowSingleShare: r.AllowSingleShare}})
	if err != nil {
		return rekeyError(err)
	}
	// It is done, whatever keeps this peer from finishing now.
	if err := n.opened(ctx); err != nil {
		n.log.Warn("rekeyed, but this peer has not the new root key yet; it is tried again", "error", err)
	}
	if again {
		if _, err := n.seal.Refill(ctx, sealState(n.machine.View()), n.keepers); err != nil {
			n.log.Info("the Keepers were not refilled after a rekey; the next round does it", "reason", err)
		}
	}
	n.poke()
	return nil
}

// CancelRekey gives up a pending share set.
func (o operator) CancelRekey(ctx context.Context) (string, error) {
	n := o.n
	if n.machine.View().Level() < levelOfRotation {
		return "", n.levelTooLow(levelOfRotation)
	}
	set, err := seal.Cancel(ctx, ledger{n})
	switch {
	case errors.Is(err, seal.ErrSuperseded):
		return "", &secret.Error{Code: secret.CodeConflict, Subject: "share set", Reason: "share_set_moved", Cause: err,
			Message: "it was committed, or another one begun, in this moment; see 'spikectl key status'"}
	case err != nil:
		return "", logError(err)
	case set == [16]byte{}:
		return "", nil
	}
	return hex.EncodeToString(set[:]), nil
}

// keepersNamed are the Keepers of these names, in that order; all when there are none.
func (n *Node) keepersNamed(names []string) ([]seal.Keeper, error) {
	if len(names) == 0 {
		return n.keepers, nil
	}
	var list []seal.Keeper
	for _, name := range names {
		at := slices.IndexFunc(n.keepers, func(k seal.Keeper) bool { return k.Name() == name })
		if at < 0 {
			return nil, secret.Invalid("keepers", fmt.Sprintf("%s knows no Keeper %q; put it into --keepers of every peer, restart them one by one, and ask again", n.cfg.ID, name))
		}
		list = append(list, n.keepers[at])
	}
	return list, nil
}

// allKnow refuses a rekey after which a peer could not find the Keepers.
func (n *Node) allKnow(keepers []seal.Keeper, force bool) error {
	conflict := func(reason, message string) error {
		return &secret.Error{Code: secret.CodeConflict, Subject: "keepers", Message: message, Reason: reason}
	}
	for _, p := range n.askPeers(n.cluster.Status().Members) {
		if !p.Reachable || p.State == string(cluster.Forming) {
			if !force {
				return conflict("peer_unreachable", p.ID+" does not say which Keepers it knows; start it, remove it, or say --force")
			}
			continue
		}
		for _, k := range keepers {
			if !slices.Contains(p.Keepers, k.Name()) {
				return conflict("keeper_unknown", fmt.Sprintf("%s knows no Keeper %q; put it into its --keepers, restart it, and ask again", p.ID, k.Name()))
			}
		}
	}
	return nil
}

func rekeyError(err error) error {
	var placement *seal.PlacementError
	conflict := func(reason, message string) error {
		return &secret.Error{Code: secret.CodeConflict, Subject: "root key", Message: message, Reason: reason, Cause: err}
	}
	switch {
	case errors.As(err, &placement):
		return conflict("keepers_missing", placement.Error())
	case errors.Is(err, seal.ErrShareSet):
		return &secret.Error{Code: secret.CodeInvalid, Subject: "shares, threshold and keepers", Message: err.Error(), Cause: err}
	case errors.Is(err, seal.ErrOperatorSealed):
		return conflict("sealed_by_operator", "an operator sealed the cluster, perhaps only just now; nothing was changed: unseal it and ask again")
	case errors.Is(err, seal.ErrSuperseded):
		return conflict("superseded", "another rekey came first; see 'spikectl key status'")
	case errors.Is(err, seal.ErrGivenUp):
		return &secret.Error{Code: secret.CodeUnavailable, Message: err.Error(), Cause: err}
	}
	return rotationError(err)
}

// behind names the peers that serve and do not use the committed root key yet, and
// says whether a voter does, which could lead.
func (n *Node) behind() (list []string, ahead bool) {
	committed := hex.EncodeToString(n.machine.View().Seal().GetCommitted().GetId())
	for _, p := range n.askPeers(n.cluster.Status().Members) {
		switch serves := p.Reachable && !p.Sealed; {
		case serves && p.ShareSet != committed:
			list = append(list, p.ID)
		case serves && p.Voter:
			ahead = true
		}
	}
	return list, ahead
}

// rotateInherited rotates what a rekey has left: keys that holders of old shares
// and an old disk may have. It waits until every peer that serves uses the new
// root key, so that none is sealed by it, but not for ever; since is when it began to.
// While no voter has the new root key, all serve on: who sealed itself would make
// room for nobody.
func (n *Node) rotateInherited(since *time.Time) error {
	state := n.machine.View().Seal()
	set, ok := n.seal.ShareSetInUse()
	behind := ok && !bytes.Equal(set[:], state.GetCommitted().GetId())
	if !ok || !behind && !n.seal.Inherited() || state.Pending != nil {
		*since = time.Time{}
		return nil
	}
	if since.IsZero() {
		*since = n.now()
	}
	late, ahead := n.behind()
	switch waited := n.now().Sub(*since); {
	case (behind || len(late) > 0) && waited < inheritFor:
		return nil
	case behind && !ahead:
		return nil
	case behind: // a leader without keys is succeeded by one with
		n.log.Warn("this leader has not got the new root key in time; it is sealed until it does, so that another can rotate the keys of before")
		n.dropKeys()
		n.poke()
		return nil
	case len(late) > 0:
		n.log.Warn("some peers have not got the new root key in time; they are sealed until they do", "peers", late)
	}
	ctx, cancel := n.step()
	defer cancel()
	var names []string
	for _, p := range seal.Rotatable {
		names = append(names, string(p))
	}
	return n.store.OfOwnAccord(n.request(), "key.rotate", "rekey", strings.Join(names, " "),
		func() error { return rotationError(n.seal.Rotate(ctx, ledger{n}, seal.Rotatable)) })
}
