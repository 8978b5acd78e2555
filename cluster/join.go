package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Joining a formed cluster, and finding out that one has left it.
//
// An empty peer asks those it knows of how it stands. The leader answers, after
// a read-index round, from its configuration: only as a learner it may come in.
// It keeps the cluster's identity in a durable marker, starts Raft without a
// configuration, and the leader, which tries to reach it all the while, brings
// it up. An empty peer that is a voter has lost its data, and perhaps a vote:
// it stays out until it was removed and added again.
//
// A peer that has data but no leader asks the same question: whoever removed it
// while it was away cannot tell it otherwise, because the members do not talk
// Raft with those that are none.

// standing is how the leader says that a peer stands.
type standing struct {
	verdict     peerpb.AdmitResponse_Verdict
	clusterID   []byte
	incarnation uint64
	members     []*peerpb.Member
	level       uint32
}

// ask asks the peers that this one knows of until one can tell.
func (n *Node) ask(ctx context.Context) (s standing, at string, err error) {
	req := &peerpb.AdmitRequest{Id: n.cfg.ID, Scope: n.scope(), Address: n.cfg.Advertise}
	if n.cfg.Levels != nil {
		req.Level, _ = n.cfg.Levels()
	}
	err = fmt.Errorf("%w: no peer to ask", ErrNotReady)
	for _, id := range n.acquainted() {
		resp, askErr := n.askAdmit(ctx, id, req)
		if askErr == nil && resp.GetVerdict() != peerpb.AdmitResponse_VERDICT_UNKNOWN {
			return standing{resp.GetVerdict(), resp.GetClusterId(), resp.GetIncarnation(), resp.GetMembers(), resp.GetLevel()}, id, nil
		}
		if askErr == nil {
			askErr = fmt.Errorf("%w: peer %s knows no leader that could tell", ErrNotReady, id)
		}
		err = askErr
	}
	return standing{}, "", err
}

// acquainted are the ids of all other peers that this one can find.
func (n *Node) acquainted() []string {
	var ids []string
	seen := map[string]bool{n.cfg.ID: true}
	add := func(id string) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, p := range n.cfg.Join {
		add(p.ID)
	}
	for _, p := range n.cfg.Peers {
		add(p.ID)
	}
	for _, p := range n.marker.Load().GetPeers() {
		add(p.GetId())
	}
	if r := n.raft.Load(); r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			add(string(s.ID))
		}
	}
	return ids
}

func (n *Node) askAdmit(ctx context.Context, id string, req *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, n.dialTimeout()+time.Second)
	defer cancel()
	conn, err := n.peers.ready(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: peer %s: %w", ErrNotReady, id, err)
	}
	resp, err := peerpb.NewPeerClient(conn).Admit(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%w: peer %s: %w", ErrNotReady, id, err)
	}
	return resp, nil
}

// joinStep asks to be let in. An error says what stands in the way.
func (n *Node) joinStep(ctx context.Context) error {
	s, at, err := n.ask(ctx)
	if err != nil {
		return err
	}
	switch s.verdict {
	case peerpb.AdmitResponse_VERDICT_LEARNER:
	case peerpb.AdmitResponse_VERDICT_VOTER:
		return fmt.Errorf("cluster %x: %w: it is a voter there and may have voted; remove it, then add it as a learner", s.clusterID, ErrWiped)
	case peerpb.AdmitResponse_VERDICT_NO_MEMBER:
		if n.cfg.ColdStart {
			return fmt.Errorf("cluster %x: %w: %s takes it in by itself if that cluster was just restored; else add %s with its address", s.clusterID, ErrNotAdmitted, n.cfg.Peers[0].ID, n.cfg.ID)
		}
		return fmt.Errorf("cluster %x: %w: add %s with its address, then it joins by itself", s.clusterID, ErrNotAdmitted, n.cfg.ID)
	default:
		return n.refusal(s, at)
	}
	if len(s.clusterID) != 16 || s.incarnation == 0 || len(s.members) == 0 {
		return fmt.Errorf("%w: peer %s did not say of which cluster it is", ErrNotReady, at)
	}
	n.formMu.Lock()
	defer n.formMu.Unlock()
	if n.ctx.Err() != nil {
		return ErrStopped
	}
	if n.marker.Load() != nil {
		return nil // prepared for forming meanwhile, or admitted
	}
	m := &peerpb.Marker{ClusterId: s.clusterID, Incarnation: s.incarnation, Self: n.cfg.ID, Peers: s.members, Joined: true}
	if err := n.setMarker(m, peerpb.Phase_PHASE_READY); err != nil {
		return err
	}
	n.log.Info("this peer was admitted as a learner", "cluster", fmt.Sprintf("%x", s.clusterID), "incarnation", s.incarnation)
	return n.startRaft()
}

func (n *Node) refusal(s standing, at string) error {
	switch s.verdict {
	case peerpb.AdmitResponse_VERDICT_FOREIGN:
		m := n.marker.Load()
		return fmt.Errorf("%w: peer %s is of cluster %x incarnation %d, this peer has the data of %x incarnation %d",
			ErrForeignData, at, s.clusterID, s.incarnation, m.GetClusterId(), m.GetIncarnation())
	case peerpb.AdmitResponse_VERDICT_WRONG_ID:
		return fmt.Errorf("%w: this peer is configured as %q, but its certificate has another id", ErrWrongPeer, n.cfg.ID)
	case peerpb.AdmitResponse_VERDICT_LEVEL:
		return fmt.Errorf("%w (level %d)", ErrLevel, s.level)
	}
	return fmt.Errorf("%w: peer %s: %v", ErrNotReady, at, s.verdict)
}

// bootJoined makes the first term of a peer that joins durable: from here on
// its log file counts as data, and its loss is noticed.
func (n *Node) bootJoined(m *peerpb.Marker) error {
	if term, err := n.store.stable.GetUint64(keyTerm); err != nil || term == 0 {
		if err := n.store.stable.SetUint64(keyTerm, 1); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	return n.setMarker(m, peerpb.Phase_PHASE_STARTED)
}

// belong finds out why this peer, which runs Raft, hears no leader: it may have
// been removed, or hold the data of another cluster.
func (n *Node) belong() {
	every := max(2*n.cfg.Timing.Election, 100*time.Millisecond)
	t := time.NewTicker(every)
	defer t.Stop()
	stranger := false // it was told so, and Status.Problem says it
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		r := n.raft.Load()
		if r == nil {
			continue
		}
		if n.leader() != "" {
			if _, member := find(r.GetConfiguration().Configuration(), n.cfg.ID); member && stranger {
				n.setProblem(nil)
				stranger = false
				if n.removed.CompareAndSwap(true, false) {
					n.log.Info("this peer is a member again")
				}
			}
			n.moved(r)
			continue
		}
		s, at, err := n.ask(n.ctx)
		if err != nil || n.leader() != "" {
			continue
		}
		if n.isMember(at) { // who was removed, and recovered by mistake, must not end the others
			n.heed(s.clusterID, s.incarnation)
		}
		switch s.verdict {
		case peerpb.AdmitResponse_VERDICT_NO_MEMBER:
			if n.removed.CompareAndSwap(false, true) {
				n.log.Error("this peer was removed from the cluster; it serves nothing")
			}
			stranger = true
			n.setProblem(ErrRemoved)
		case peerpb.AdmitResponse_VERDICT_FOREIGN, peerpb.AdmitResponse_VERDICT_WRONG_ID, peerpb.AdmitResponse_VERDICT_LEVEL:
			stranger = true
			n.setProblem(n.refusal(s, at))
		}
	}
}

// Admit tells the caller, or on behalf of a member somebody else, how it stands.
func (s service) Admit(ctx context.Context, req *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	n := s.n
	from, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	id, inc, formed := n.Identity()
	resp := &peerpb.AdmitResponse{ClusterId: id[:], Incarnation: inc}
	if formed && n.isMember(from) {
		n.heed(req.GetScope().GetClusterId(), req.GetScope().GetIncarnation())
	}
	r := n.raft.Load()
	if !formed || r == nil || n.ctx.Err() != nil || n.removed.Load() {
		return &peerpb.AdmitResponse{}, nil
	}
	if from != req.GetId() && !n.passedOn(from) {
		resp.Verdict = peerpb.AdmitResponse_VERDICT_WRONG_ID
		return resp, nil
	}
	if sc := req.GetScope(); sc != nil && !n.ours(sc) {
		resp.Verdict = peerpb.AdmitResponse_VERDICT_FOREIGN
		return resp, nil
	}
	n.places.announce(n, req.GetId(), req.GetAddress())
	if !n.leads() {
		leader := n.leader()
		if leader == "" || leader == from || n.passedOn(from) && from != req.GetId() { // once is enough
			return &peerpb.AdmitResponse{}, nil
		}
		resp, err := n.askAdmit(ctx, leader, req)
		if err != nil {
			return &peerpb.AdmitResponse{}, nil
		}
		return resp, nil
	}
	if _, err := n.reads.round.do(ctx); err != nil {
		return &peerpb.AdmitResponse{}, nil
	}
	conf := r.GetConfiguration().Configuration()
	for _, m := range conf.Servers {
		resp.Members = append(resp.Members, &peerpb.Member{Id: string(m.ID), Address: string(m.Address)})
	}
	server, member := find(conf, req.GetId())
	uses := uint32(0)
	if n.cfg.Levels != nil {
		_, uses = n.cfg.Levels()
	}
	switch {
	case !member:
		resp.Verdict, resp.Members = peerpb.AdmitResponse_VERDICT_NO_MEMBER, nil
	case req.GetLevel() != 0 && req.GetLevel() < uses:
		resp.Verdict, resp.Level = peerpb.AdmitResponse_VERDICT_LEVEL, uses
	case server.Suffrage == raft.Voter:
		resp.Verdict = peerpb.AdmitResponse_VERDICT_VOTER
	default:
		// Only once that is committed: a demotion that is not yet may be lost, and
		// with it the peer a voter, that must not come in without its data.
		at, err := n.configurationIndex(r)
		if err != nil || at > r.CommitIndex() {
			return &peerpb.AdmitResponse{}, nil
		}
		resp.Verdict = peerpb.AdmitResponse_VERDICT_LEARNER
	}
	return resp, nil
}

// passedOn tells whether from may ask for others.
func (n *Node) passedOn(from string) bool {
	_, ok := find(n.raft.Load().GetConfiguration().Configuration(), from)
	return ok
}

// isMember tells whether to take what the peer id says for a member's word.
func (n *Node) isMember(id string) bool {
	if r := n.raft.Load(); r != nil {
		if conf := r.GetConfiguration().Configuration(); len(conf.Servers) > 0 {
			_, ok := find(conf, id)
			return ok
		}
	}
	for _, p := range n.cfg.Peers {
		if p.ID == id {
			return true
		}
	}
	for _, p := range n.cfg.Join {
		if p.ID == id {
			return true
		}
	}
	for _, p := range n.marker.Load().GetPeers() {
		if p.GetId() == id {
			return true
		}
	}
	return false
}

// admits tells whether the peer id may open a connection. Anybody with a
// Nexus certificate may ask how it stands: see onlyMembers. Raft is for members; but
// a peer that knows no leader cannot tell, for its configuration may be old: the
// members of today may all be strangers to it. Votes and entries of strangers
// are safe: the library checks terms and gives no vote to who is no voter.
func (n *Node) admits(id, alpn string) bool {
	return alpn != alpnRaft || n.isMember(id) || n.raft.Load() != nil && n.leader() == ""
}

// onlyMembers keeps those that are no members from every method but Admit, and
// from the inspecting half of Form: a peer that forms may meet one that formed.
func (n *Node) onlyMembers(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	form, isForm := req.(*peerpb.FormRequest)
	inspects := isForm && form.GetStep() == peerpb.FormRequest_STEP_INSPECT
	if info.FullMethod != peerpb.Peer_Admit_FullMethodName && !inspects {
		from, err := caller(ctx)
		if err != nil {
			return nil, err
		}
		if !n.isMember(from) {
			return nil, status.Errorf(codes.PermissionDenied, "%s is not a member of this cluster", from)
		}
	}
	return next(ctx, req)
}
