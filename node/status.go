package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/seal"
)

const (
	rpcStatus = "node.status"
	// alarmMemory: keys are in memory that the system may swap out.
	alarmMemory = "memory-not-locked"
)

// Health says how this peer is, from memory.
func (n *Node) Health() client.Health {
	status := n.cluster.Status()
	view := n.machine.View()
	removed := status.State == cluster.Removed
	draining, _ := n.Draining()
	return client.Health{Peer: n.cfg.ID, Removed: removed, Draining: draining, Formed: status.Formed, Current: n.current.Load(), Initialised: view.Seal().Committed != nil,
		Sealed: n.store.Sealed() || removed, Leader: status.State == cluster.Leads, LeaderKnown: status.Leader != "", Version: Version}
}

// Status gathers what all peers and Keepers say. Those that do not answer in a
// second are shown as not reachable.
func (n *Node) Status(ctx context.Context) client.Status {
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	// As new as can be had: without a quorum what this peer has must do.
	round, done := context.WithTimeout(ctx, time.Second)
	n.cluster.WaitRead(round)
	done()
	status := n.cluster.Status()
	if !slices.ContainsFunc(status.Members, func(m cluster.Member) bool { return m.ID == n.cfg.ID }) {
		status.Members = append(status.Members, cluster.Member{ID: n.cfg.ID}) // removed, or not admitted yet: it says so
	}
	view := n.machine.View()
	st := sealState(view)
	size, limit := view.Size()
	out := client.Status{AskedPeer: n.cfg.ID, Incarnation: status.Incarnation, Leader: status.Leader, Term: status.Term, Level: view.Level(),
		Initialised: st.Committed != nil, Sealed: st.Sealed, Secrets: view.SecretCount(), Policies: view.PolicyCount(),
		StateBytes: size, StateLimit: limit, Keepers: []client.KeeperStatus{}}
	if status.Formed {
		out.ClusterID = hex.EncodeToString(status.ClusterID[:])
	}
	if st.Committed != nil {
		out.Shares, out.Threshold = st.Committed.Shares, st.Committed.Threshold
	}
	var wait sync.WaitGroup
	wait.Go(func() { out.Peers = n.askPeers(status.Members) })
	wait.Go(func() { out.Keepers, out.Alarms = n.keeperStatus(asked) })
	wait.Wait()
	n.drillStatus(view, &out)
	for i := range out.Peers {
		if a, ok := view.Anchor(out.Peers[i].ID); ok {
			out.Peers[i].AuditAnchor = audit.Anchor{Count: a.Count, Head: [32]byte(a.Head)}.String()
		}
	}
	behind(out)
	sort.Slice(out.Peers, func(i, j int) bool { return out.Peers[i].ID < out.Peers[j].ID })
	// A sealed peer votes and stores, and nobody is served by sealed ones alone.
	voters, alive, serving := 0, 0, 0
	for _, p := range out.Peers {
		if p.Voter {
			voters++
			if p.Reachable && p.State != string(cluster.Forming) && p.State != string(cluster.Stopped) && p.State != string(cluster.Removed) {
				alive++
				if !p.Sealed {
					serving++
				}
			}
		}
	}
	out.Tolerance = max(0, min(alive-(voters/2+1), serving-1))
	return out
}

// behind holds the others against the leader, which knows more than those who do
// not hear it.
func behind(s client.Status) {
	at := slices.IndexFunc(s.Peers, func(p client.PeerStatus) bool { return p.ID == s.Leader && p.Reachable })
	if at < 0 {
		return
	}
	commit := s.Peers[at].CommitIndex
	for i := range s.Peers {
		if p := &s.Peers[i]; p.Reachable && commit > p.AppliedIndex {
			p.Lag = max(p.Lag, commit-p.AppliedIndex)
		}
	}
}

func (n *Node) keeperStatus(ctx context.Context) ([]client.KeeperStatus, []client.Alarm) {
	list := []client.KeeperStatus{}
	l, err := n.lookAtKeepers(ctx, n.now().Add(-keeperLookFresh))
	if err != nil {
		for _, k := range n.keepers {
			list = append(list, client.KeeperStatus{Name: k.Name(), Health: "unknown", Detail: err.Error(), LastContact: n.keeperContact(k.Name())})
		}
		return list, nil
	}
	for _, r := range l.reports {
		status := client.KeeperStatus{Name: r.Name, Index: r.Index, Health: string(r.Health), Detail: r.Detail, LastContact: n.keeperContact(r.Name)}
		if r.Index > 0 {
			status.ShareSet = hex.EncodeToString(l.set.ID[:])
		}
		list = append(list, status)
	}
	return list, n.keeperAlarms(l)
}

// askPeers asks these members how they are, all at once. Who is a voter, and
// where, is what the membership says: a peer is not asked for it.
func (n *Node) askPeers(members []cluster.Member) []client.PeerStatus {
	list := make([]client.PeerStatus, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() {
			list[i] = n.askPeer(m.ID)
			list[i].ID, list[i].Address, list[i].Voter = m.ID, m.Address, m.Voter
		})
	}
	wait.Wait()
	return list
}

// askPeer asks one peer for its own status; the answer of one that does not
// answer says only that.
func (n *Node) askPeer(id string) client.PeerStatus {
	if id == n.cfg.ID {
		return n.ownStatus()
	}
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	raw, err := n.cluster.Call(ctx, id, rpcStatus, nil)
	var p client.PeerStatus
	if err != nil || json.Unmarshal(raw, &p) != nil {
		return client.PeerStatus{ID: id, State: "unreachable", Sealed: true}
	}
	return p
}

func (n *Node) answerStatus(context.Context, string, []byte) ([]byte, error) {
	return json.Marshal(n.ownStatus())
}

func (n *Node) ownStatus() client.PeerStatus {
	status := n.cluster.Status()
	view := n.machine.View()
	data, all := view.Hashes()
	draining, _ := n.Draining()
	n.mu.Lock()
	reason, fault := n.sealReason, n.auditFault
	n.mu.Unlock()
	if status.Problem != nil {
		reason = status.Problem.Error()
	}
	if err := n.audit.Err(); err != nil {
		fault = err.Error()
	}
	inUse := ""
	if set, ok := n.seal.ShareSetInUse(); ok {
		inUse = hex.EncodeToString(set[:])
	}
	var keepers []string
	for _, k := range n.keepers {
		keepers = append(keepers, k.Name())
	}
	var alarms []client.Alarm
	for _, a := range status.Alarms {
		alarms = append(alarms, client.Alarm{Kind: string(a.Kind), Detail: a.Detail, Since: a.Since})
	}
	if since, err := seal.MemoryFault(); err != nil {
		alarms = append(alarms, client.Alarm{Kind: alarmMemory, Since: since,
			Detail: "the system refuses to lock memory, so that keys could reach swap: raise RLIMIT_MEMLOCK (LimitMEMLOCK) or turn swap off, and restart this peer"})
	}
	return client.PeerStatus{ID: n.cfg.ID, Alarms: alarms, Reachable: true, State: string(status.State), Sealed: n.store.Sealed(), Draining: draining, Reason: reason,
		Term: status.Term, CommitIndex: status.CommitCommand, AppliedIndex: view.Index(), Lag: status.Lag, LastContact: max(status.LastContact.Seconds(), -1), LastTerm: status.LastTerm, LastIndex: status.LastIndex,
		DataHash: hex.EncodeToString(data[:]), StateHash: hex.EncodeToString(all[:]),
		AuditCount: n.audit.Count(), AuditFault: fault, SVIDExpiry: n.source.Expiry(), Version: Version, Level: fsm.Level, Damaged: n.store.Damaged(), ShareSet: inUse, Keepers: keepers, Archive: n.archiveStatus()}
}
