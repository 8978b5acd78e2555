package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Forming a cluster, once in its life.
//
// The peer with the lowest id coordinates. It looks at all others first: each
// must be there, expect the same peers, and be empty. Then it draws the
// cluster's identity and makes it durable as prepared; has each other peer do
// the same; only then makes itself ready, and tells the others, who do the
// same and start Raft. Every step is a durable marker, asking for a step twice
// is the same as asking once, and a restart goes on from the marker.
//
// So when the first peer is ready, all have been prepared: a peer without a
// marker that meets a ready one has lost its data, and with it perhaps a vote.
// It never starts Raft.

const formRetry = 250 * time.Millisecond

// Identity is the cluster's id and incarnation, drawn at forming; ok once they
// are final here.
func (n *Node) Identity() (clusterID [16]byte, incarnation uint64, ok bool) {
	m := n.marker.Load()
	if m.GetPhase() < peerpb.Phase_PHASE_READY {
		return clusterID, 0, false
	}
	copy(clusterID[:], m.GetClusterId())
	return clusterID, m.GetIncarnation(), true
}

// form drives forming until it is complete, for the coordinator on all peers.
func (n *Node) form() {
	t := time.NewTimer(0)
	defer t.Stop()
	slow := formRetry
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		if n.removed.Load() { // nobody's business any more, until it is a member again
			t.Reset(8 * formRetry)
			continue
		}
		done, err := n.formStep(n.ctx)
		retry := formRetry
		if n.raft.Load() != nil {
			// Formed here; some peer has not heard of it, or is down.
			retry = 8 * formRetry
			if errors.Is(err, ErrNotReady) {
				err = nil
			}
		} else if n.cfg.ColdStart && errors.Is(err, ErrColdStart) {
			retry = slow // what is tried again costs more
			slow = min(2*slow, 16*formRetry)
		}
		n.setProblem(err)
		if done {
			return
		}
		t.Reset(retry)
	}
}

func (n *Node) setProblem(err error) {
	n.errMu.Lock()
	was := n.problem
	n.problem = err
	n.errMu.Unlock()
	if err != nil && n.ctx.Err() == nil && (was == nil || was.Error() != err.Error()) {
		n.log.Warn("forming the cluster does not proceed", "reason", err)
	}
}

// formStep does what can be done now. An error says what stands in the way; it
// is tried again.
func (n *Node) formStep(ctx context.Context) (done bool, err error) {
	m := n.marker.Load()
	switch {
	case takesIn(m) && n.raft.Load() != nil:
		return n.takeIn(ctx)
	case m.GetJoined():
		if n.raft.Load() == nil { // an error came between the marker and Raft
			return false, n.becomeReady()
		}
		return true, nil
	case m == nil && len(n.cfg.Join) > 0:
		err := n.joinStep(ctx)
		return err == nil && n.raft.Load() != nil, err
	case len(n.cfg.Peers) == 0: // formed, or prepared to, under another configuration
		return n.raft.Load() != nil, nil
	}
	done, err = n.formTogether(ctx, m)
	if m == nil && errors.Is(err, ErrWiped) {
		// Forming is over, so this peer can only join.
		switch joinErr := n.joinStep(ctx); {
		case joinErr == nil:
			return false, nil
		case !errors.Is(joinErr, ErrNotReady):
			err = joinErr
		}
	}
	return done, err
}

func (n *Node) formTogether(ctx context.Context, m *peerpb.Marker) (done bool, err error) {
	if n.cfg.Peers[0].ID != n.cfg.ID {
		if n.raft.Load() != nil {
			return true, nil
		}
		return false, n.lookAround(ctx)
	}
	if m == nil && n.cfg.ColdStart || attempting(m) {
		return false, n.coldStart(ctx, m)
	}
	if m == nil {
		if err := n.each(ctx, &peerpb.FormRequest{Step: peerpb.FormRequest_STEP_INSPECT}, func(id string, r *peerpb.FormResponse) error {
			return n.mayPrepare(id, r, nil)
		}); err != nil {
			return false, err
		}
		m = &peerpb.Marker{Phase: peerpb.Phase_PHASE_PREPARED, ClusterId: make([]byte, 16), Incarnation: 1, Self: n.cfg.ID, Peers: n.formPeers()}
		if _, err := rand.Read(m.ClusterId); err != nil {
			return false, err
		}
		n.formMu.Lock()
		err := n.setMarker(m, peerpb.Phase_PHASE_PREPARED)
		n.formMu.Unlock()
		if err != nil {
			return false, err
		}
	}
	if m.GetPhase() == peerpb.Phase_PHASE_PREPARED {
		if !samePeers(m.GetPeers(), n.formPeers()) {
			return false, fmt.Errorf("%w: forming began with other peers than are configured now", ErrPeersDiffer)
		}
		req := &peerpb.FormRequest{Step: peerpb.FormRequest_STEP_PREPARE, ClusterId: m.GetClusterId(), Incarnation: m.GetIncarnation()}
		if err := n.each(ctx, req, func(id string, r *peerpb.FormResponse) error {
			if err := n.mayPrepare(id, r, m); err != nil {
				return err
			}
			if r.GetPhase() < peerpb.Phase_PHASE_PREPARED {
				return fmt.Errorf("peer %s is not prepared", id)
			}
			return nil
		}); err != nil {
			return false, err
		}
		if err := n.becomeReady(); err != nil {
			return false, err
		}
	}
	// Also after a restart: who was ready may not have told everybody.
	m = n.marker.Load()
	req := &peerpb.FormRequest{Step: peerpb.FormRequest_STEP_READY, ClusterId: m.GetClusterId(), Incarnation: m.GetIncarnation()}
	err = n.each(ctx, req, func(id string, r *peerpb.FormResponse) error {
		switch {
		case r.GetVerdict() == peerpb.FormResponse_VERDICT_NOT_PREPARED:
			return fmt.Errorf("peer %s: %w", id, ErrWiped)
		case r.GetVerdict() != peerpb.FormResponse_VERDICT_OK:
			return n.mayPrepare(id, r, m)
		}
		return nil
	})
	return err == nil, err
}

// lookAround is what a peer does that waits to be prepared: it cannot tell by
// itself whether the others wait, too, or have formed long ago.
func (n *Node) lookAround(ctx context.Context) error {
	if n.marker.Load() != nil {
		return nil // prepared; the coordinator goes on
	}
	var found error
	_ = n.each(ctx, &peerpb.FormRequest{Step: peerpb.FormRequest_STEP_INSPECT}, func(id string, r *peerpb.FormResponse) error {
		switch {
		case r.GetPhase() >= peerpb.Phase_PHASE_READY && n.cfg.ColdStart:
			found = &told{ErrWiped, fmt.Sprintf("%v: peer %s is of cluster %x, incarnation %d, and this one waits to be taken in", ErrNotAdmitted, id, r.GetClusterId(), r.GetIncarnation())}
		case r.GetPhase() >= peerpb.Phase_PHASE_READY:
			found = formedAlready(id, r)
		case found == nil && !samePeers(r.GetPeers(), n.formPeers()):
			found = n.differ(id, r)
		case found == nil && r.GetColdStart() != n.cfg.ColdStart:
			found = fmt.Errorf("%w; peer %s has it: %t", ErrNotRestoring, id, r.GetColdStart())
		}
		return nil
	})
	switch {
	case found != nil:
		return found
	case n.cfg.ColdStart:
		return fmt.Errorf("%w: waiting for %s to restore the cluster from the archive; its status says what for", ErrNotReady, n.cfg.Peers[0].ID)
	}
	return fmt.Errorf("%w: waiting for %s to form the cluster", ErrNotReady, n.cfg.Peers[0].ID)
}

// mayPrepare says whether the peer that answered r is fit for being prepared
// for m (nil: for an identity not drawn yet).
func (n *Node) mayPrepare(id string, r *peerpb.FormResponse, m *peerpb.Marker) error {
	same := m != nil && string(r.GetClusterId()) == string(m.GetClusterId()) && r.GetIncarnation() == m.GetIncarnation()
	switch {
	case r.GetPhase() >= peerpb.Phase_PHASE_READY && !same && m == nil:
		return formedAlready(id, r)
	case r.GetPhase() != peerpb.Phase_PHASE_EMPTY && !same:
		return fmt.Errorf("%w: peer %s holds data of cluster %x; if that is a leftover, remove raft/ in its data directory and keep audit/", ErrForeignData, id, r.GetClusterId())
	case r.GetVerdict() == peerpb.FormResponse_VERDICT_PEERS_DIFFER || m == nil && !samePeers(r.GetPeers(), n.formPeers()):
		return n.differ(id, r)
	case m == nil && r.GetColdStart():
		return fmt.Errorf("%w; peer %s has it", ErrNotRestoring, id)
	case r.GetVerdict() != peerpb.FormResponse_VERDICT_OK:
		return fmt.Errorf("peer %s: %v", id, r.GetVerdict())
	}
	return nil
}

// formedAlready is what an empty peer says that meets a formed one. It cannot
// tell by itself which of the two has the wrong data directory.
func formedAlready(id string, r *peerpb.FormResponse) error {
	return fmt.Errorf("peer %s has formed cluster %x; either %w, or there %w", id, r.GetClusterId(), ErrWiped, ErrForeignData)
}

func (n *Node) differ(id string, r *peerpb.FormResponse) error {
	return fmt.Errorf("%w: peer %s expects %s, this peer %s", ErrPeersDiffer, id, listPeers(r.GetPeers()), listPeers(n.formPeers()))
}

// each asks all other peers and returns the first of their errors; see is
// called for each that answers.
func (n *Node) each(ctx context.Context, req *peerpb.FormRequest, see func(id string, r *peerpb.FormResponse) error) error {
	req.Peers = n.formPeers()
	var first error
	for _, p := range n.cfg.Peers {
		if p.ID == n.cfg.ID || req.GetStep() == peerpb.FormRequest_STEP_READY && !n.votes(p.ID) {
			continue // whoever was removed since, or is to join, is not waited for
		}
		r, err := n.askForm(ctx, p.ID, req)
		if err == nil {
			err = see(p.ID, r)
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (n *Node) askForm(ctx context.Context, id string, req *peerpb.FormRequest) (*peerpb.FormResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, n.dialTimeout()+time.Second)
	defer cancel()
	conn, err := n.peers.ready(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: peer %s: %w", ErrNotReady, id, err)
	}
	r, err := peerpb.NewPeerClient(conn).Form(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%w: peer %s: %w", ErrNotReady, id, err)
	}
	return r, nil
}

// votes tells whether the peer id still is a voter, as all were at forming.
func (n *Node) votes(id string) bool {
	r := n.raft.Load()
	if r == nil {
		return true
	}
	s, ok := find(r.GetConfiguration().Configuration(), id)
	return ok && s.Suffrage == raft.Voter
}

// Form answers another peer that forms the cluster.
func (s service) Form(ctx context.Context, req *peerpb.FormRequest) (*peerpb.FormResponse, error) {
	n := s.n
	from, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	n.formMu.Lock()
	defer n.formMu.Unlock()
	verdict, err := n.formFor(from, req)
	if err != nil {
		n.setProblem(fmt.Errorf("%s: %w", req.GetStep(), err))
		if !errors.Is(err, ErrPeersDiffer) && !errors.Is(err, ErrForeignData) && !errors.Is(err, ErrNotRestoring) {
			verdict = peerpb.FormResponse_VERDICT_FAILED
		}
	}
	m := n.marker.Load()
	return &peerpb.FormResponse{
		ColdStart: n.cfg.ColdStart, Verdict: verdict, Phase: m.GetPhase(), ClusterId: m.GetClusterId(), Incarnation: m.GetIncarnation(), Peers: n.formPeers(),
	}, nil
}

func (n *Node) formFor(from string, req *peerpb.FormRequest) (peerpb.FormResponse_Verdict, error) {
	if req.GetStep() == peerpb.FormRequest_STEP_INSPECT {
		return peerpb.FormResponse_VERDICT_OK, nil
	}
	if n.ctx.Err() != nil {
		return peerpb.FormResponse_VERDICT_FAILED, nil
	}
	m := n.marker.Load()
	if m != nil && (string(m.GetClusterId()) != string(req.GetClusterId()) || m.GetIncarnation() != req.GetIncarnation()) {
		return peerpb.FormResponse_VERDICT_FOREIGN, fmt.Errorf("%w: peer %s forms cluster %x, this peer holds data of cluster %x",
			ErrForeignData, from, req.GetClusterId(), m.GetClusterId())
	}
	if m.GetPhase() >= peerpb.Phase_PHASE_READY {
		if n.raft.Load() == nil { // a crash or an error came between the marker and Raft
			return peerpb.FormResponse_VERDICT_OK, n.startRaft()
		}
		return peerpb.FormResponse_VERDICT_OK, nil
	}
	if len(n.cfg.Join) > 0 {
		return peerpb.FormResponse_VERDICT_NOT_PREPARED, nil // it does not form, it joins
	}
	if !samePeers(req.GetPeers(), n.formPeers()) {
		return peerpb.FormResponse_VERDICT_PEERS_DIFFER, fmt.Errorf("%w: peer %s expects %s, this peer %s",
			ErrPeersDiffer, from, listPeers(req.GetPeers()), listPeers(n.formPeers()))
	}
	if from != n.cfg.Peers[0].ID || from == n.cfg.ID {
		return peerpb.FormResponse_VERDICT_NOT_COORDINATOR, nil
	}
	if m == nil && n.cfg.ColdStart { // asked for a restore, it becomes no part of a new cluster
		return peerpb.FormResponse_VERDICT_PEERS_DIFFER, fmt.Errorf("%w; peer %s has it not", ErrNotRestoring, from)
	}
	if req.GetStep() == peerpb.FormRequest_STEP_READY {
		if m == nil {
			return peerpb.FormResponse_VERDICT_NOT_PREPARED, nil
		}
		return peerpb.FormResponse_VERDICT_OK, n.readyLocked()
	}
	if m != nil {
		return peerpb.FormResponse_VERDICT_OK, nil // prepared already
	}
	if len(req.GetClusterId()) != 16 || req.GetIncarnation() == 0 {
		return peerpb.FormResponse_VERDICT_FAILED, nil
	}
	return peerpb.FormResponse_VERDICT_OK, n.setMarker(&peerpb.Marker{
		ClusterId: req.GetClusterId(), Incarnation: req.GetIncarnation(), Self: n.cfg.ID, Peers: n.formPeers(),
	}, peerpb.Phase_PHASE_PREPARED)
}

func (n *Node) becomeReady() error {
	n.formMu.Lock()
	defer n.formMu.Unlock()
	return n.readyLocked()
}

func (n *Node) readyLocked() error {
	if n.ctx.Err() != nil {
		return ErrStopped
	}
	if n.marker.Load().GetPhase() < peerpb.Phase_PHASE_READY {
		if err := n.setMarker(n.marker.Load(), peerpb.Phase_PHASE_READY); err != nil {
			return err
		}
	}
	if n.raft.Load() != nil {
		return nil
	}
	return n.startRaft()
}

// setMarker makes m durable in phase. Under formMu, or before the node runs.
func (n *Node) setMarker(m *peerpb.Marker, phase peerpb.Phase) error {
	m = proto.Clone(m).(*peerpb.Marker)
	m.Phase = phase
	if err := writeMarker(n.cfg.Dir, m); err != nil {
		return fmt.Errorf("keep the cluster marker: %w", err)
	}
	n.marker.Store(m)
	if h := n.cfg.afterMarker; h != nil {
		return h(n.ctx, phase)
	}
	return nil
}

func (n *Node) formPeers() []*peerpb.Member {
	out := make([]*peerpb.Member, len(n.cfg.Peers))
	for i, p := range n.cfg.Peers {
		out[i] = &peerpb.Member{Id: p.ID, Address: p.Address}
	}
	return out
}

func samePeers(a, b []*peerpb.Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].GetId() != b[i].GetId() || a[i].GetAddress() != b[i].GetAddress() {
			return false
		}
	}
	return true
}

func listPeers(l []*peerpb.Member) string {
	s := "["
	for i, p := range l {
		if i > 0 {
			s += " "
		}
		s += p.GetId() + "=" + p.GetAddress()
	}
	return s + "]"
}
