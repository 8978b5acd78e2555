package cluster

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/measure"
)

// A snapshot begins with a head of ours; what follows is the state machine's.
//
//	8 bytes  magic "SPIKESNP"
//	uint32   format, big endian, now 1
//	uint64   index of the last command applied
//	uint64   its term
//
// The library's own snapshot index may be that of a barrier, which never
// reaches the state machine; with the head every peer counts commands alike.
const (
	snapshotMagic  = "SPIKESNP"
	snapshotFormat = 1
	snapshotHead   = 8 + 4 + 8 + 8
)

var errMachineStopped = errors.New("the state machine has stopped")

// machine stands between the library and the StateMachine. Its methods are
// called by the library's goroutine for the state machine (Restore at start by
// Start's); applied and wait may be used by any.
type machine struct {
	sm   StateMachine
	fail func(error)        // the node stops
	took *measure.Histogram // of entries

	stopped bool // owned by the library's goroutine
	term    uint64

	applied atomic.Uint64 // greatest command index that sm has applied or restored
	calls   atomic.Uint64 // of Apply begun and ended: odd while one is under way

	mu      sync.Mutex // guards waiters
	waiters []waiter
}

type waiter struct {
	index uint64
	ch    chan struct{}
}

// outcome of an entry, as the library hands it to the proposer.
type applyResult struct {
	term    uint64
	results [][]byte
	err     error
}

func (m *machine) Apply(l *raft.Log) any {
	if m.stopped {
		return &applyResult{err: errMachineStopped}
	}
	commands, err := decodeEnvelope(l.Data)
	if err != nil {
		return m.stop(fmt.Errorf("entry %d: %w; this peer cannot go on without knowing it", l.Index, err))
	}
	failpoint.Hit(failpoint.ClusterApplyBefore)
	m.calls.Add(1)
	begun := time.Now()
	results, err := m.sm.Apply(l.Index, l.Term, commands)
	m.took.Since(begun)
	m.calls.Add(1)
	if err == nil && len(results) != len(commands) {
		err = fmt.Errorf("%d results for %d commands", len(results), len(commands))
	}
	if err != nil {
		return m.stop(fmt.Errorf("apply entry %d: %w", l.Index, err))
	}
	m.advance(l.Index, l.Term)
	failpoint.Hit(failpoint.ClusterApplyAfter)
	return &applyResult{term: l.Term, results: results}
}

func (m *machine) stop(err error) *applyResult {
	m.stopped = true
	m.fail(err)
	return &applyResult{err: errMachineStopped}
}

func (m *machine) advance(index, term uint64) {
	m.term = term
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied.Store(index)
	kept := m.waiters[:0]
	for _, w := range m.waiters {
		if w.index <= index {
			close(w.ch)
		} else {
			kept = append(kept, w)
		}
	}
	clear(m.waiters[len(kept):])
	m.waiters = kept
}

// wait returns a channel that is closed once index is applied, and a function
// to call when it is no longer awaited.
func (m *machine) wait(index uint64) (<-chan struct{}, func()) {
	ch := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.applied.Load() >= index {
		close(ch)
		return ch, func() {}
	}
	m.waiters = append(m.waiters, waiter{index, ch})
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i, w := range m.waiters {
			if w.ch == ch {
				m.waiters = append(m.waiters[:i], m.waiters[i+1:]...)
				return
			}
		}
	}
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.stopped {
		return nil, errMachineStopped
	}
	s, err := m.sm.Snapshot()
	if err != nil {
		return nil, err
	}
	return &machineSnapshot{state: s, index: m.applied.Load(), term: m.term}, nil
}

func (m *machine) Restore(rc io.ReadCloser) error {
	if m.stopped {
		return errMachineStopped // also: never fall back to an older snapshot
	}
	failpoint.Hit(failpoint.ClusterRestoreBefore)
	index, term, err := readSnapshotHead(rc)
	if err == nil && index < m.applied.Load() { // somebody may have read what came after
		err = fmt.Errorf("it is of index %d, and %d is applied", index, m.applied.Load())
	}
	if err == nil {
		err = m.sm.Restore(rc)
	}
	if err != nil {
		err = fmt.Errorf("restore a snapshot: %w", err)
		m.stop(err)
		return err
	}
	m.advance(index, term)
	failpoint.Hit(failpoint.ClusterRestoreAfter)
	return nil
}

func readSnapshotHead(r io.Reader) (index, term uint64, err error) {
	var h [snapshotHead]byte
	_, err = io.ReadFull(r, h[:])
	if unreadable(err) {
		return 0, 0, err
	}
	if err != nil || string(h[:8]) != snapshotMagic {
		return 0, 0, fmt.Errorf("%w: not a snapshot of this software", ErrCorruptSnapshot)
	}
	switch f := binary.BigEndian.Uint32(h[8:]); {
	case f > snapshotFormat:
		return 0, 0, fmt.Errorf("%w (snapshot format %d)", ErrNewerFormat, f)
	case f != snapshotFormat:
		return 0, 0, fmt.Errorf("%w: format %d", ErrCorruptSnapshot, f)
	}
	return binary.BigEndian.Uint64(h[12:]), binary.BigEndian.Uint64(h[20:]), nil
}

func snapshotHeader(index, term uint64) []byte {
	b := append(make([]byte, 0, snapshotHead), snapshotMagic...)
	b = binary.BigEndian.AppendUint32(b, snapshotFormat)
	b = binary.BigEndian.AppendUint64(b, index)
	return binary.BigEndian.AppendUint64(b, term)
}

type machineSnapshot struct {
	state       Snapshot
	index, term uint64
}

func (s *machineSnapshot) Persist(sink raft.SnapshotSink) error {
	failpoint.Hit(failpoint.ClusterSnapshotBefore)
	w := bufio.NewWriterSize(sink, 256<<10)
	_, err := w.Write(snapshotHeader(s.index, s.term))
	if err == nil {
		err = s.state.Write(w)
	}
	if err == nil {
		err = w.Flush()
	}
	failpoint.Hit(failpoint.ClusterSnapshotAfter)
	if err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s *machineSnapshot) Release() {}
