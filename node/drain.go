package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
)

// Draining empties a peer of clients and leadership without taking it out of
// the cluster: it goes on voting and replicating. Its readiness fails at once;
// for Config.DrainGrace it still serves, ending each connection with its answer,
// so that balancers and clients have the time to go elsewhere; then it refuses
// work with "ask another". It is a state of the process: a restart ends it.

// Drain begins or ends draining. Doing either twice is once; the grace is
// counted from the first. Leadership is handed over in the background, whenever
// this peer has it and another voter can take it.
func (n *Node) Drain(on bool) {
	if !on {
		if n.drained.Swap(nil) != nil {
			n.log.Info("this peer serves again: draining was ended")
		}
		return
	}
	now := n.now()
	if n.drained.CompareAndSwap(nil, &now) {
		n.log.Info("this peer is being drained", "serves for", n.cfg.DrainGrace)
		n.api.EndWatches()
	}
}

// Draining tells whether this peer is being drained, and whether the grace is
// over, so that it takes no new work.
func (n *Node) Draining() (leaving, closed bool) {
	since := n.drained.Load()
	return since != nil, since != nil && n.now().Sub(*since) >= n.cfg.DrainGrace
}

// Retire prepares for Stop: the peer is drained, leadership goes to the voter that
// has its keys and has applied most, and clients have the grace to leave. Without
// another peer that serves there is nowhere for them to go, and no grace. ctx
// bounds it.
func (n *Node) Retire(ctx context.Context) {
	_, closed := n.Draining()
	n.Drain(true)
	others := n.others()
	if len(others) == 0 || n.store.Sealed() {
		return
	}
	handing, cancel := context.WithTimeout(ctx, rpcTimeout)
	if err := n.handOver(handing, others); err != nil {
		n.log.Warn("stopping while leader", "reason", err)
	}
	cancel()
	if closed { // an operator began it long ago
		return
	}
	select {
	case <-time.After(n.cfg.DrainGrace):
	case <-ctx.Done():
	}
}

const rpcDrain = "node.drain"

// drainPeer asks the peer id to drain, or to end it.
func (n *Node) drainPeer(ctx context.Context, id string, on bool) error {
	return n.callOnOff(ctx, rpcDrain, id, on, "a peer that is down needs no draining, and a restart ends it")
}

// answerDrain drains this peer, unless nobody else could serve, and hands
// leadership over before it answers.
func (n *Node) answerDrain(ctx context.Context, on bool) error {
	if !on {
		n.Drain(false)
		return nil
	}
	others := n.others()
	if len(others) == 0 {
		return &secret.Error{Code: secret.CodeConflict, Reason: "nobody_else_serves", Message: "no other peer has its keys and takes clients: nobody would serve in its place; nothing was changed"}
	}
	n.Drain(true)
	if err := n.handOver(ctx, others); err != nil {
		n.log.Warn("a drained peer still leads; handing over is tried again", "error", err)
		return &secret.Error{Code: secret.CodeUnavailable, Reason: "still_leads", Message: "it is being drained, and still leads; ask again, it goes on trying"}
	}
	return nil
}

// others are the other members that have their keys and take clients, those
// that have applied most first.
func (n *Node) others() []client.PeerStatus {
	members := slices.DeleteFunc(n.cluster.Status().Members, func(m cluster.Member) bool { return m.ID == n.cfg.ID })
	list := slices.DeleteFunc(n.askPeers(members), func(p client.PeerStatus) bool { return !p.Reachable || p.Sealed || p.Draining })
	slices.SortStableFunc(list, func(a, b client.PeerStatus) int { return cmp.Compare(b.AppliedIndex, a.AppliedIndex) })
	return list
}

// handOver gives leadership, if this peer has it, to the first voter of list that takes it.
func (n *Node) handOver(ctx context.Context, list []client.PeerStatus) error {
	err := errors.New("no other voter has its keys and takes clients")
	for _, p := range list {
		if !n.leads() {
			return nil
		}
		if !p.Voter {
			continue
		}
		if err = n.cluster.TransferLeadership(ctx, p.ID); err == nil || !n.leads() {
			n.log.Info("leadership handed over", "to", p.ID)
			return nil
		}
		n.log.Info("leadership was not taken", "by", p.ID, "error", err)
	}
	if !n.leads() {
		return nil
	}
	return err
}

// drainPoll is how soon a drained peer notices that it was elected.
const drainPoll = 250 * time.Millisecond

// draining keeps a drained peer from leading while another can.
func (n *Node) draining() {
	for n.sleep(drainPoll) {
		if leaving, _ := n.Draining(); leaving && n.leads() {
			ctx, cancel := n.step()
			if list := n.others(); len(list) > 0 {
				_ = n.handOver(ctx, list)
			}
			cancel()
		}
	}
}
