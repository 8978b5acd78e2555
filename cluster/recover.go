package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Recovery: when a majority of the voters is lost for good, one stopped peer is
// made a cluster of its own, from which the others are joined anew.
//
// Its whole log counts as committed, as nobody is left to ask what was, and is
// folded into a snapshot whose configuration is this peer alone. What the dead
// may have committed beyond it is lost, and three things keep it lost:
//
//   - The snapshot lies recoveryGap above everything that was, so that no index
//     ever means two entries, whatever a client or a write id remembers.
//   - The cluster gets a higher incarnation, drawn at random, so that two
//     recoveries of two peers do not get the same. No peer talks Raft, or takes a
//     call, across incarnations.
//   - Whoever of the old members comes back is told by the recovered peer, which
//     goes on looking for them (fence), or learns it when it asks for a leader. It
//     keeps that in its marker, stops, and does not start again: see heed.
//
// The library's RecoverCluster is not used: it makes the snapshot at the last
// index, and deletes what it has read without a mark that it has begun.

// recoveryGap is more than the dead can have committed beyond what this peer has.
const recoveryGap = 1 << 32

var (
	// ErrNewerPeer: another survivor holds entries that this peer does not.
	ErrNewerPeer = errors.New("another peer holds newer data: recover that one")
	// ErrNothingToRecover: the data is of a peer that never ran in a cluster.
	ErrNothingToRecover = errors.New("this data directory holds no cluster's data")
)

// Report is what a stopped peer's data directory holds, or what a running peer
// without a leader says that it holds.
type Report struct {
	ID                  string
	ClusterID           [16]byte
	Incarnation         uint64
	LastTerm, LastIndex uint64   // of the newest entry of the log
	Members             []Member // of the newest configuration, committed or not
	Recovering          bool     // a recovery was begun and did not end
}

// Newer tells whether a holds entries that b does not, as elections judge.
func (r Report) Newer(b Report) bool {
	return r.LastTerm > b.LastTerm || r.LastTerm == b.LastTerm && r.LastIndex > b.LastIndex
}

// Recovery says how to recover.
type Recovery struct {
	Dir     string
	Address string // under which this peer will be reached
	// Others are the reports of the other survivors.
	Others []Report
	// StateMachine is empty; it is fed the data and thrown away.
	StateMachine StateMachine
	Logger       *slog.Logger // default: discard
	// Force recovers although a report of Others is newer.
	Force bool
	// DryRun checks everything and changes nothing.
	DryRun bool

	afterStep func(string) error // for tests that crash there
}

// InspectData reports on a stopped peer's data directory, which it checks as a
// start does: unfinished snapshots are removed, and nothing else changes. Errors are those of Start.
func InspectData(ctx context.Context, dir string) (Report, error) {
	n, err := openStopped(ctx, dir, nil)
	if err != nil {
		return Report{}, err
	}
	defer n.release()
	r, _, err := n.report()
	return r, err
}

// Recover makes the stopped peer in r.Dir a cluster of its own, as described
// above, and returns what it held and the new incarnation. A crash at any
// step is made up for by calling it again; until then the peer does not start.
// Doing it again afterwards changes nothing.
//
// Errors: ErrNewerPeer, ErrForeignData (a report of another cluster),
// ErrNothingToRecover, ErrSuperseded and those of Start; nothing was changed.
func Recover(ctx context.Context, r Recovery) (before Report, incarnation uint64, err error) {
	if err := validAddress(r.Address); err != nil {
		return before, 0, err
	}
	n, err := openStopped(ctx, r.Dir, &r)
	if err != nil {
		return before, 0, err
	}
	defer n.release()
	m := n.marker.Load()
	before, conf, err := n.report()
	if err != nil {
		return before, 0, err
	}
	if len(before.Members) == 0 {
		return before, 0, fmt.Errorf("%s: %w: it was let in, and was sent nothing yet", r.Dir, ErrNothingToRecover)
	}
	if m.GetPhase() == peerpb.Phase_PHASE_STARTED && len(before.Members) == 1 && before.Members[0] == (Member{before.ID, r.Address, true}) {
		return before, before.Incarnation, nil // done already
	}
	for _, o := range r.Others {
		switch {
		case o.ID == before.ID:
			return before, 0, fmt.Errorf("%w: a report on %s itself", ErrInvalidChange, o.ID)
		case o.ClusterID != before.ClusterID:
			return before, 0, fmt.Errorf("%w: peer %s is of cluster %x, this data of %x", ErrForeignData, o.ID, o.ClusterID, before.ClusterID)
		case o.Incarnation > before.Incarnation:
			return before, 0, fmt.Errorf("%w: peer %s is of incarnation %d, this data of %d", ErrSuperseded, o.ID, o.Incarnation, before.Incarnation)
		case o.Incarnation == before.Incarnation && o.Newer(before) && !r.Force:
			return before, 0, fmt.Errorf("%w: %s has entry %d of term %d, %s ends at %d of term %d", ErrNewerPeer,
				o.ID, o.LastIndex, o.LastTerm, before.ID, before.LastIndex, before.LastTerm)
		}
	}
	plan := m.GetRecovery()
	if plan == nil {
		plan = &peerpb.Recovery{Incarnation: m.GetIncarnation() + 1 + rand.Uint64N(1<<20),
			LastTerm: before.LastTerm, LastIndex: before.LastIndex, Index: before.LastIndex + recoveryGap}
	}
	if r.DryRun {
		return before, plan.GetIncarnation(), nil
	}
	m = proto.Clone(m).(*peerpb.Marker)
	m.Recovery = plan
	m.Recovery.Address = r.Address
	if m.GetPhase() != peerpb.Phase_PHASE_RECOVERING {
		for _, s := range conf.Servers { // beside those of an earlier recovery that did not come back yet
			if string(s.ID) != n.cfg.ID {
				m.Superseded = slices.DeleteFunc(m.Superseded, func(p *peerpb.Member) bool { return p.GetId() == string(s.ID) })
				m.Superseded = append(m.Superseded, &peerpb.Member{Id: string(s.ID), Address: string(s.Address)})
			}
		}
	}
	step := func(name string, do func() error) {
		if err == nil {
			err = do()
		}
		if err == nil && r.afterStep != nil {
			err = r.afterStep(name)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	step("note that recovery begins", func() error { return n.setMarker(m, peerpb.Phase_PHASE_RECOVERING) })
	step("fold the log into a snapshot", func() error { return n.fold(r, plan) })
	step("drop the log", func() error {
		first, err := n.store.FirstIndex()
		if err != nil || first == 0 {
			return err
		}
		last, err := n.store.LastIndex()
		if err != nil {
			return err
		}
		return n.store.DeleteRange(first, last)
	})
	done := proto.Clone(m).(*peerpb.Marker)
	done.Incarnation, done.Joined, done.Recovery = plan.GetIncarnation(), false, nil
	done.Peers = []*peerpb.Member{{Id: n.cfg.ID, Address: r.Address}}
	step("note the new incarnation", func() error { return n.setMarker(done, peerpb.Phase_PHASE_STARTED) })
	return before, plan.GetIncarnation(), err
}

// openStopped opens and checks the data of a peer that does not run.
func openStopped(ctx context.Context, dir string, r *Recovery) (*Node, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNothingToRecover, err)
	}
	m, err := readMarker(dir)
	switch {
	case err != nil:
		return nil, err
	case m.GetPhase() == peerpb.Phase_PHASE_SUPERSEDED:
		return nil, fmt.Errorf("%s: %w", dir, ErrSuperseded)
	case m.GetPhase() < peerpb.Phase_PHASE_STARTED:
		return nil, fmt.Errorf("%s: %w", dir, ErrNothingToRecover)
	}
	c := Config{ID: m.GetSelf(), Dir: dir, SnapshotBytes: 1 << 62, Logger: slog.New(slog.DiscardHandler)}
	if r != nil {
		c.StateMachine = r.StateMachine
		if r.Logger != nil {
			c.Logger = r.Logger
		}
	}
	n := newNode(c)
	n.lock, err = lockDir(dir)
	if err == nil {
		n.marker.Store(m)
		err = n.openData(ctx)
	}
	if err != nil {
		n.release()
		return nil, err
	}
	return n, nil
}

// report says what the opened data holds. After a crash in the middle of a
// recovery that is what it held before.
func (n *Node) report() (Report, raft.Configuration, error) {
	m := n.marker.Load()
	r := Report{ID: n.cfg.ID, ClusterID: [16]byte(m.GetClusterId()), Incarnation: m.GetIncarnation()}
	var conf raft.Configuration
	list, err := n.snapshots.List()
	if err != nil {
		return r, conf, err
	}
	after := uint64(0)
	if len(list) > 0 {
		after, conf = list[0].Index, list[0].Configuration
		r.LastTerm, r.LastIndex = list[0].Term, list[0].Index
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return r, conf, err
	}
	for i := after + 1; i <= last; i++ {
		var l raft.Log
		if err := n.cache.GetLog(i, &l); err != nil {
			return r, conf, err
		}
		r.LastTerm, r.LastIndex = l.Term, l.Index
		if l.Type == raft.LogConfiguration {
			conf = raft.DecodeConfiguration(l.Data)
		}
	}
	if p := m.GetRecovery(); p != nil {
		r.Recovering, r.LastTerm, r.LastIndex = true, p.GetLastTerm(), p.GetLastIndex()
	}
	for _, s := range conf.Servers {
		r.Members = append(r.Members, Member{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return r, conf, nil
}

// fold makes the snapshot that a recovered peer starts from, unless an earlier
// attempt has.
func (n *Node) fold(r Recovery, plan *peerpb.Recovery) error {
	list, err := n.snapshots.List()
	if err != nil {
		return err
	}
	if len(list) > 0 && list[0].Index == plan.GetIndex() {
		return nil
	}
	var failed error
	sm := &machine{sm: r.StateMachine, took: &n.counters.apply, fail: func(err error) { failed = errors.Join(failed, err) }}
	after := uint64(0)
	if len(list) > 0 {
		_, rc, err := n.snapshots.Open(list[0].ID)
		if err != nil {
			return err
		}
		err = sm.Restore(rc)
		_ = rc.Close()
		if err != nil {
			return err
		}
		after = list[0].Index
	}
	for i := after + 1; i <= plan.GetLastIndex(); i++ {
		var l raft.Log
		if err := n.cache.GetLog(i, &l); err != nil {
			return err
		}
		if l.Type == raft.LogCommand {
			sm.Apply(&l)
		}
		if failed != nil {
			return failed
		}
	}
	state, err := sm.Snapshot()
	if err != nil {
		return err
	}
	sink, err := seedSink(n.snapshots, n.cfg.ID, plan.GetAddress(), plan.GetIndex(), plan.GetLastTerm())
	if err != nil {
		return err
	}
	return state.Persist(sink)
}

// fence tells the members from before a recovery, wherever they come back, that
// the cluster goes on without them.
func (n *Node) fence() {
	t := time.NewTicker(max(2*n.cfg.Timing.Election, 100*time.Millisecond))
	defer t.Stop()
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
		conf := r.GetConfiguration().Configuration()
		for _, p := range n.marker.Load().GetSuperseded() {
			// A learner may have been added before what it has of before came back.
			if s, back := find(conf, p.GetId()); back && s.Suffrage == raft.Voter {
				continue
			}
			_, _ = n.askAdmit(n.ctx, p.GetId(), &peerpb.AdmitRequest{Id: n.cfg.ID, Scope: n.scope()})
		}
	}
}

// heed is told which incarnation of which cluster another peer is of. A higher
// one of its own cluster says that this peer must never serve again what it holds.
func (n *Node) heed(cluster []byte, incarnation uint64) {
	m := n.marker.Load()
	if m.GetPhase() < peerpb.Phase_PHASE_READY || string(cluster) != string(m.GetClusterId()) || incarnation <= m.GetIncarnation() {
		return
	}
	n.formMu.Lock()
	defer n.formMu.Unlock()
	m = proto.Clone(n.marker.Load()).(*peerpb.Marker)
	m.SupersededBy, m.Phase = incarnation, peerpb.Phase_PHASE_SUPERSEDED
	if err := writeMarker(n.cfg.Dir, m); err != nil { // then the next start learns it anew
		n.log.Error("keep the cluster marker", "error", err)
	}
	n.marker.Store(m) // what is written after this keeps it
	n.fail(fmt.Errorf("%w (this peer is of incarnation %d, the cluster of %d)", ErrSuperseded, m.GetIncarnation(), incarnation))
}
