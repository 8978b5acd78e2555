package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
)

// Beginning a cluster with what is kept elsewhere, once all peers have lost everything.
//
// The peer with the lowest id coordinates, as in forming: each other peer must be there, be empty, expect the same peers,
// and be configured for it, too. Then it has the state read and checked, and keeps a random nonce in its marker (prepared), with which it claims the
// next incarnation. From here on it goes on with this attempt or not at all: one that lost against others never tries the incarnation after
// it. It seeds its own data with the state, as a cluster of one voter, of which the marker (started) is the last step, and takes in the others.
//
// They have nothing to keep in mind: an empty peer that finds a formed cluster joins it as a learner, and the coordinator, whose marker says
// whom it awaits, adds and promotes each once.

// ErrColdStart: the peers cannot begin with what is kept elsewhere, or not all are to. The text says why.
var ErrColdStart = errors.New("the cluster is not restored")

// ErrNotRestoring: some peers are configured to restore the cluster, and some to form a new one.
var ErrNotRestoring = fmt.Errorf("%w: configure all peers with --restore-latest, or none", ErrColdStart)

// Attempt is one try of a set of peers to begin an incarnation.
type Attempt struct {
	ClusterID   [16]byte
	Incarnation uint64
	Nonce       [32]byte // drawn for this attempt, and durable here before Claim is called
	Peers       []Peer
}

// Origin is where a cluster can begin with a state that is kept elsewhere. One goroutine calls its methods, and calls them again, a little later,
// after each error.
type Origin interface {
	// Read finds the state to begin with, and checks it; all of Seeding but Dir, ID and Address counts. With an attempt that was begun before, it must be for
	// that one's cluster, and the incarnation stays.
	Read(ctx context.Context, begun *Attempt) (Seeding, error)
	// Claim returns nil when the incarnation of the attempt is this peer set's and no other's, also when it was claimed by the same attempt before.
	Claim(context.Context, Attempt) error
	// TakeIn adds a peer as a learner, or promotes it: see AddLearner and Promote.
	TakeIn(ctx context.Context, id, address string, promote bool) error
}

// attempting tells whether m is of an attempt that has not come to its end.
func attempting(m *peerpb.Marker) bool {
	return m.GetPhase() == peerpb.Phase_PHASE_PREPARED && len(m.GetAttempt()) > 0
}

// coldStart does what can be done now, on the coordinator. Raft runs when it returns nil.
func (n *Node) coldStart(ctx context.Context, m *peerpb.Marker) error {
	switch {
	case !n.cfg.ColdStart:
		return fmt.Errorf("%w: this peer began to restore incarnation %d of cluster %x; start all with --restore-latest to go on, or give that up: remove raft/ in its data directory",
			ErrColdStart, m.GetIncarnation(), m.GetClusterId())
	case m != nil && !samePeers(m.GetPeers(), n.formPeers()):
		return fmt.Errorf("%w: restoring began with the peers %s, and these are %s", ErrPeersDiffer, listPeers(m.GetPeers()), listPeers(n.formPeers()))
	}
	if err := n.allEmpty(ctx); err != nil {
		return err
	}
	var attempt Attempt
	var begun *Attempt
	if m != nil {
		attempt, begun = attemptOf(m), &attempt
	}
	state, err := n.cfg.Origin.Read(ctx, begun)
	if err != nil {
		return err
	}
	if m == nil {
		m = &peerpb.Marker{ClusterId: state.ClusterID[:], Incarnation: state.Incarnation, Self: n.cfg.ID, Peers: n.formPeers(), Attempt: make([]byte, 32)}
		if _, err := rand.Read(m.Attempt); err != nil {
			return err
		}
		n.formMu.Lock()
		err := n.setMarker(m, peerpb.Phase_PHASE_PREPARED)
		n.formMu.Unlock()
		if err != nil {
			return err
		}
	}
	if err := n.allEmpty(ctx); err != nil { // reading takes long
		return err
	}
	attempt = attemptOf(m)
	if err := n.cfg.Origin.Claim(ctx, attempt); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ClusterColdClaimed)
	n.formMu.Lock()
	defer n.formMu.Unlock()
	if n.ctx.Err() != nil {
		return ErrStopped
	}
	if err := n.seed(state); err != nil {
		return fmt.Errorf("keep the state to begin with: %w", err)
	}
	others := slices.DeleteFunc(n.formPeers(), func(p *peerpb.Member) bool { return p.GetId() == n.cfg.ID })
	m = proto.Clone(m).(*peerpb.Marker)
	m.Attempt, m.Awaited, m.Superseded = nil, others, others
	if err := n.setMarker(m, peerpb.Phase_PHASE_STARTED); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ClusterColdSeeded)
	n.log.Warn("the cluster begins with what was kept elsewhere", "cluster", fmt.Sprintf("%x", m.GetClusterId()), "incarnation", m.GetIncarnation(), "index", state.StateIndex)
	return n.startRaft()
}

func attemptOf(m *peerpb.Marker) Attempt {
	a := Attempt{Incarnation: m.GetIncarnation()}
	copy(a.ClusterID[:], m.GetClusterId())
	copy(a.Nonce[:], m.GetAttempt())
	for _, p := range m.GetPeers() {
		a.Peers = append(a.Peers, Peer{p.GetId(), p.GetAddress()})
	}
	return a
}

// allEmpty is nil when each other peer says that it has nothing and is to have the same as this one.
func (n *Node) allEmpty(ctx context.Context) error {
	var data, other error
	err := n.each(ctx, &peerpb.FormRequest{Step: peerpb.FormRequest_STEP_INSPECT, ColdStart: true}, func(id string, r *peerpb.FormResponse) error {
		switch {
		case r.GetPhase() >= peerpb.Phase_PHASE_READY && data == nil:
			data = &told{ErrWiped, fmt.Sprintf("%v: peer %s has the data of cluster %x, incarnation %d, and while any peer has data nothing is restored from the archive. With a majority of such peers, take those that lost theirs in again: "+
				"'spikectl cluster remove', then 'cluster join'; without one, 'spikectl cluster recover' on one that has data. To give that data up, remove raft/ in the data directory of %s",
				ErrColdStart, id, r.GetClusterId(), r.GetIncarnation(), id)}
		case r.GetPhase() == peerpb.Phase_PHASE_PREPARED && other == nil:
			other = fmt.Errorf("%w: peer %s has begun to form cluster %x; if that is a leftover, remove raft/ in its data directory and keep audit/", ErrForeignData, id, r.GetClusterId())
		case !samePeers(r.GetPeers(), n.formPeers()) && other == nil:
			other = n.differ(id, r)
		case !r.GetColdStart() && other == nil:
			other = fmt.Errorf("%w; peer %s has it not", ErrNotRestoring, id)
		}
		return nil
	})
	switch {
	case data != nil:
		return data
	case other != nil:
		return other
	case err != nil:
		return fmt.Errorf("the cluster is restored only when every peer is seen to be empty: %w", err)
	}
	return nil
}

// seed fills the empty stores of this peer with the state; it is whole once the marker says so. Under formMu.
func (n *Node) seed(s Seeding) error {
	if err := dropSeed(n.cfg.Dir); err != nil {
		return err
	}
	sink, err := seedSink(n.snapshots, n.cfg.ID, n.cfg.Advertise, s.Index, s.Term)
	if err != nil {
		return err
	}
	if err := (&machineSnapshot{state: s.State, index: s.StateIndex, term: s.StateTerm}).Persist(sink); err != nil {
		return err
	}
	// Else the first leader would begin a term lower than that of what it has.
	return n.store.stable.SetUint64(keyTerm, s.Term)
}

// dropSeed removes the snapshots that an attempt has left which was cut short: no marker speaks of them.
func dropSeed(dir string) error {
	list, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	for _, name := range list {
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

// takeIn adds those that are awaited, promotes those that it added, and strikes off whoever has a vote. It goes on where it ended, whoever leads; a
// peer that it added and an operator removed stays out.
func (n *Node) takeIn(ctx context.Context) (done bool, err error) {
	failpoint.Hit(failpoint.ClusterColdTakeIn)
	for _, p := range n.marker.Load().GetAwaited() {
		if _, member := n.suffrage(p.GetId()); !member {
			if failed := n.cfg.Origin.TakeIn(ctx, p.GetId(), p.GetAddress(), false); failed != nil {
				err = errors.Join(err, fmt.Errorf("taking in %s: %w", p.GetId(), failed))
				continue
			}
		}
		err = errors.Join(err, n.awaits(func(m *peerpb.Marker) { m.Awaited, m.Learning = without(m.Awaited, p), append(m.Learning, p) }))
	}
	for _, p := range n.marker.Load().GetLearning() {
		if voter, member := n.suffrage(p.GetId()); member && !voter {
			if failed := n.cfg.Origin.TakeIn(ctx, p.GetId(), "", true); failed != nil {
				err = errors.Join(err, fmt.Errorf("giving %s its vote: %w", p.GetId(), failed))
				continue
			}
		}
		err = errors.Join(err, n.awaits(func(m *peerpb.Marker) { m.Learning = without(m.Learning, p) }))
	}
	return !takesIn(n.marker.Load()), err
}

func takesIn(m *peerpb.Marker) bool { return len(m.GetAwaited()) > 0 || len(m.GetLearning()) > 0 }

// awaits makes a change of whom this peer is to take in durable.
func (n *Node) awaits(change func(*peerpb.Marker)) error {
	n.formMu.Lock()
	defer n.formMu.Unlock()
	m := proto.Clone(n.marker.Load()).(*peerpb.Marker)
	change(m)
	return n.setMarker(m, m.GetPhase())
}

func without(list []*peerpb.Member, p *peerpb.Member) []*peerpb.Member {
	return slices.DeleteFunc(list, func(m *peerpb.Member) bool { return m.GetId() == p.GetId() })
}

// suffrage tells whether the peer id is a member, and has a vote, by the configuration that this peer knows.
func (n *Node) suffrage(id string) (voter, member bool) {
	s, ok := find(n.raft.Load().GetConfiguration().Configuration(), id)
	return ok && s.Suffrage == raft.Voter, ok
}
