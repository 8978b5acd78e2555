package fsm

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// Level is the newest format level of commands and snapshots that this build
// knows. A command's meaning depends on its level alone, never on the build. A
// cluster begins at FirstLevel; RaiseLevel commands raise it once all its members
// know a newer one, and until then nothing newer may be used: see LevelOf.
//
// Level 2 has RaiseLevel, ReplaceKeyring and Reseal; level 3 RecordDrill,
// Settings.archive, BeginRestore, RestoreChunk, CommitRestore and AbandonRestore.
const (
	Level      = 3
	FirstLevel = 1
)

// ErrUnknownLevel says that an entry or a snapshot was written by a newer
// build. The peer has to stop: skipping it would make the peers differ.
type ErrUnknownLevel struct {
	Index uint64 // of the Raft entry or snapshot
	Level uint32 // that it has
	Known uint32 // that this build knows
}

func (e *ErrUnknownLevel) Error() string {
	return fmt.Sprintf("Raft index %d has format level %d, this build knows levels up to %d; run a newer build on this peer",
		e.Index, e.Level, e.Known)
}

// ErrOutOfOrder says that Apply was called with an index that is already part
// of the state: an error of the caller, which must stop.
type ErrOutOfOrder struct {
	Index   uint64 // of the refused entry
	Applied uint64 // of the last applied one
}

func (e *ErrOutOfOrder) Error() string {
	return fmt.Sprintf("Raft index %d was given to the state machine after index %d; restart this peer", e.Index, e.Applied)
}

// Options are those of one process. What decides results lies in the replicated
// settings instead, the bounds of the write-id window included: peers with
// different options must not differ in state.
type Options struct{}

// Machine is the state machine. Apply and Restore belong to one goroutine;
// View and Observe may be called by any.
type Machine struct {
	view atomic.Pointer[View] // what readers see; never nil

	// mu makes swapping the view and knowing who hears of it one step.
	mu        sync.Mutex
	observers []*observer // replaced, never changed in place

	// The rest is owned by the goroutine of Apply and Restore.
	st      *state
	hash    hasher
	changes changes
}

// New returns an empty machine, to be founded or restored.
func New(Options) *Machine {
	m := &Machine{st: newState(), hash: newHasher(), changes: newChanges()}
	m.view.Store(m.st.publish(&m.hash))
	return m
}

// View returns the state after the last applied entry. Any goroutine, no lock.
func (m *Machine) View() *View { return m.view.Load() }

// Observer hears of each entry.
type Observer interface {
	// Changed is called by the goroutine of Apply or Restore, once per entry,
	// after the view was swapped and before Apply returns. It must be quick, and
	// must not call Apply or Restore.
	Changed(Delta)
}

// Delta is what one entry changed.
type Delta struct {
	View     *View // the state after it
	Reset    bool  // a snapshot or a restore took the place of all: everything may differ, the lists are empty
	Secrets  []SecretChange
	Policies []PolicyChange
	Acts     []Act // each change of a secret for itself, in the order of the commands
	Seal     bool  // the state of the seal changed
}

// Act is one change of one secret, as it was made. Equal entries give equal acts
// on all peers.
type Act struct {
	Kind     ActKind
	Secret   *fsmpb.Secret // after it; what it was before, of a purge
	Versions []uint64      // that were changed, ascending; none of a purge
	Time     int64         // Unix nanoseconds, of the command
}

// ActKind is what was done to a secret.
type ActKind uint8

// The kinds.
const (
	ActPut ActKind = iota + 1
	ActDelete
	ActUndelete
	ActDestroy
	ActPurge
)

// SecretChange is one changed secret, listed once per entry however often the
// entry changed it.
type SecretChange struct {
	Token    Token
	Old, New *fsmpb.Secret // before and after the entry; nil: there was or is none
}

// PolicyChange is one changed policy, listed once per entry.
type PolicyChange struct {
	Token    Token
	Old, New *fsmpb.Policy
}

type observer struct{ Observer }

// Observe returns the present view and registers o for every delta after it,
// in one step: nothing is missed and nothing comes twice. After stop, a delta
// that is under way may still arrive. Any goroutine.
func (m *Machine) Observe(o Observer) (v *View, stop func()) {
	reg := &observer{o}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observers = append(m.observers[:len(m.observers):len(m.observers)], reg)
	return m.view.Load(), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		var kept []*observer
		for _, x := range m.observers {
			if x != reg {
				kept = append(kept, x)
			}
		}
		m.observers = kept
	}
}

// show makes v what readers see and tells the observers.
func (m *Machine) show(v *View, d Delta) {
	d.View = v
	m.mu.Lock()
	m.view.Store(v)
	observers := m.observers
	m.mu.Unlock()
	for _, o := range observers {
		o.Changed(d)
	}
}

// Apply applies the commands of one Raft entry in order and returns one
// marshalled Result for each. A malformed command gets the result INVALID; no
// bytes make Apply panic. The whole entry becomes visible at once, as one View
// and one Delta.
//
// An error means that nothing of the entry was applied and that the caller must
// stop: *ErrUnknownLevel for a command of a newer build, *ErrOutOfOrder for an
// index that was applied before. Only one goroutine may call Apply and Restore.
func (m *Machine) Apply(index, term uint64, commands [][]byte) (results [][]byte, err error) {
	if index <= m.st.index {
		return nil, &ErrOutOfOrder{Index: index, Applied: m.st.index}
	}
	shapes := make([]shape, len(commands))
	for i, c := range commands {
		shapes[i] = scan(c)
		if l := shapes[i].level; l > Level {
			return nil, &ErrUnknownLevel{Index: index, Level: l, Known: Level}
		}
	}
	m.st.index, m.st.term = index, term
	m.changes.room = len(commands)
	a := applier{state: m.st, hash: &m.hash, changes: &m.changes}
	results = make([][]byte, len(commands))
	for i, c := range commands {
		results[i] = encodeResult(a.command(c, shapes[i]))
	}
	d := m.changes.delta()
	d.Seal = m.st.dirty.seal
	m.show(m.st.publish(&m.hash), d)
	return results, nil
}

// scalars is the part of the state that is not in trees. What the pointers and
// slices in it refer to never changes; changes replace it.
type scalars struct {
	level            uint32
	clusterID        []byte
	incarnation      uint64
	settings         *fsmpb.Settings
	settingsRevision uint64
	revision         uint64 // the last one given out to any record
	policyRevision   uint64
	seal             *fsmpb.SealState
	windowFloor      uint64
	windowBytes      uint64
	size             uint64
	drills           []*fsmpb.Drill  // of the archive, oldest first
	restored         *fsmpb.Restored // nil: there was none
}

// state is what Apply works on: the next view while it is being made.
type state struct {
	index, term uint64
	scalars
	secrets  tree[*secretRecord]
	policies tree[*policyRecord]
	anchors  *btree.BTreeG[*fsmpb.Anchor]
	window   window
	staging  *staging // nil: there is none
	sums     sums
	last     *View // of which unchanged trees are used again
	dirty    dirty
}

// dirty says which parts changed since the last view.
type dirty struct{ secrets, policies, anchors, seal, settings, drills, staging bool }

func newState() *state {
	s := &state{
		secrets:  newTree[*secretRecord](),
		policies: newTree[*policyRecord](),
		anchors:  newAnchors(),
		window:   newWindow(),
		dirty:    dirty{secrets: true, policies: true, anchors: true, seal: true, settings: true, drills: true},
	}
	s.level = FirstLevel
	s.settings = &fsmpb.Settings{}
	s.seal = &fsmpb.SealState{}
	return s
}

// publish freezes the state as a view.
func (s *state) publish(h *hasher) *View {
	v := &View{index: s.index, term: s.term}
	if s.last != nil {
		v.secrets, v.policies, v.anchors, v.staging = s.last.secrets, s.last.policies, s.last.anchors, s.last.staging
	}
	if s.dirty.secrets {
		v.secrets = s.secrets.freeze()
	}
	if s.dirty.policies {
		v.policies = s.policies.freeze()
	}
	if s.dirty.anchors {
		v.anchors = s.anchors.Copy()
	}
	if s.dirty.seal {
		s.sums.seal = h.seal(s.seal)
	}
	if s.dirty.settings {
		s.sums.settings = h.settings(s.settings)
	}
	if s.dirty.drills {
		s.sums.drills = h.drills(s.drills)
	}
	if s.dirty.staging {
		v.staging, s.sums.staging = nil, sum{}
		if s.staging != nil {
			v.staging, s.sums.staging = s.staging.copy(), h.staging(s.staging.area())
		}
	}
	v.window = s.window.frozen()
	v.scalars = s.scalars
	v.data = s.sums.data
	v.all = s.sums.all(h.counters(&s.scalars))
	s.dirty = dirty{}
	s.last = v
	return v
}
