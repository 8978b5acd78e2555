package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/planted"
)

const (
	logFile      = "log.db"
	logCacheSize = 64 // entries; at 256 KiB each 16 MiB

	// The stored form of an entry is raft-boltdb's, with Extensions set to
	// sumFormat and the checksum. Raft and the other peers never see it.
	sumFormat = 1
	sumDomain = "spike-ha raft entry 1\x00"
)

// checkedLog keeps the Raft log in bbolt and adds a SHA-256 to each entry,
// which neither bbolt nor the library does: a flipped bit would otherwise be
// replicated to the others as if it had been agreed on. Safe for concurrent use.
type checkedLog struct {
	bolt   *raftboltdb.BoltStore
	stable *checkedStable // term and vote, in the same file
	path   string

	bytes   atomic.Int64  // of entries stored since the last snapshot
	entries atomic.Int64  // the same, counted
	grown   chan struct{} // cap 1; bytes reached limit
	limit   int64

	writes atomic.Uint64 // begun and ended by the main loop: odd while one is under way

	before func() error // see Config.beforeStore
}

// busy notes that the library's main loop waits for the disk, until the function
// that it returns is called.
func (s *checkedLog) busy() (done func()) {
	s.writes.Add(1)
	return func() { s.writes.Add(1) }
}

func openLog(dir string, limit int64) (*checkedLog, error) {
	path := filepath.Join(dir, logFile)
	if err := checkPages(path); err != nil {
		return nil, err
	}
	log := &checkedLog{path: path, limit: limit, grown: make(chan struct{}, 1)}
	err := guarded(path, func(string) (err error) {
		log.bolt, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				NoFreelistSync: true, // else each commit rewrites the whole list
				FreelistType:   bbolt.FreelistMapType,
				Timeout:        5 * time.Second,
			},
			MsgpackUseNewTimeFormat: true,
			NoSync:                  planted.Is(planted.NoFsync),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if log.stable, err = openStable(log.bolt, path); err != nil {
		return nil, errors.Join(err, log.bolt.Close())
	}
	return log, nil
}

// guarded turns into words what bbolt makes of a damaged file: errors of its
// own, panics, and faults in the map where a page number leads nowhere.
func guarded(path string, open func(path string) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &ErrCorruptLog{File: path, Detail: "its pages do not hang together"}
		}
	}()
	switch err := open(path); {
	case err == nil:
		return nil
	case errors.Is(err, bbolterrors.ErrInvalid), errors.Is(err, bbolterrors.ErrChecksum), errors.Is(err, bbolterrors.ErrVersionMismatch):
		return &ErrCorruptLog{File: path, Detail: err.Error()}
	default:
		return fmt.Errorf("open the Raft log %s: %w", path, err)
	}
}

func entrySum(h hash.Hash, l *raft.Log) []byte {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	h.Reset()
	h.Write([]byte(sumDomain))
	h.Write(head[:])
	h.Write(l.Data)
	return h.Sum([]byte{sumFormat})
}

func (s *checkedLog) FirstIndex() (uint64, error) { return s.bolt.FirstIndex() }
func (s *checkedLog) LastIndex() (uint64, error)  { return s.bolt.LastIndex() }

func (s *checkedLog) DeleteRange(lo, hi uint64) error { return s.bolt.DeleteRange(lo, hi) }

func (s *checkedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *checkedLog) StoreLogs(logs []*raft.Log) error {
	h := sha256.New()
	stored := make([]*raft.Log, len(logs))
	size := int64(0)
	for i, l := range logs {
		c := *l // the caller's entry goes on to the cache and the other peers
		c.Extensions = entrySum(h, l)
		stored[i] = &c
		size += int64(len(l.Data))
	}
	defer s.busy()()
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	if err := s.bolt.StoreLogs(stored); err != nil {
		return err
	}
	s.entries.Add(int64(len(logs)))
	if s.bytes.Add(size) >= s.limit {
		select {
		case s.grown <- struct{}{}:
		default:
		}
	}
	return nil
}

func (s *checkedLog) GetLog(index uint64, l *raft.Log) error {
	var stored raft.Log // never l: a failed read must leave no half entry
	if err := s.bolt.GetLog(index, &stored); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
			return err
		}
		return s.corrupt(index, "unreadable: "+err.Error())
	}
	if stored.Index != index {
		return s.corrupt(index, fmt.Sprintf("it says it is %d", stored.Index))
	}
	if subtle.ConstantTimeCompare(stored.Extensions, entrySum(sha256.New(), &stored)) != 1 {
		if len(stored.Extensions) > 0 && stored.Extensions[0] > sumFormat {
			return fmt.Errorf("%s: entry %d: %w", s.path, index, ErrNewerFormat)
		}
		return s.corrupt(index, "checksum does not match")
	}
	stored.Extensions = nil
	*l = stored
	return nil
}

func (s *checkedLog) corrupt(index uint64, detail string) error {
	return &ErrCorruptLog{File: s.path, Index: index, Detail: detail}
}

// dropDiverging drops what does not lead to the snapshot of an index and term. Where the entry of that index is another
// one, the whole log is: the snapshot's was committed, so neither that entry nor any after it ever was. Where there is
// none, the log ended before the snapshot, or a restore left a gap: what is before it may never have been committed, and
// would be sent to followers one day as if it had been. All of it is in the snapshot.
func (s *checkedLog) dropDiverging(index, term uint64) error {
	var l raft.Log
	err := s.GetLog(index, &l)
	absent := errors.Is(err, raft.ErrLogNotFound)
	if index == 0 || err == nil && l.Term == term || err != nil && !absent {
		return nil // damage is for verify to find
	}
	first, last, err := s.bounds()
	if err != nil {
		return err
	}
	if absent {
		last = min(last, index)
	}
	if first > last || last == 0 {
		return nil
	}
	return s.DeleteRange(first, last)
}

// bounds are the first and the last index; 0 when there is none.
func (s *checkedLog) bounds() (first, last uint64, err error) {
	if first, err = s.FirstIndex(); err == nil {
		last, err = s.LastIndex()
	}
	return first, last, err
}

// verify reads every entry, and insists that there is no gap after the snapshot
// (entries at or before snapshotIndex are only a convenience for followers).
// It sets the byte counter to what is newer than the snapshot.
func (s *checkedLog) verify(ctx context.Context, snapshotIndex uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	for i := first; i <= last; i++ {
		if i&1023 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			if !errors.Is(err, raft.ErrLogNotFound) {
				return err
			}
			if i > snapshotIndex {
				return s.corrupt(i, "missing")
			}
			continue
		}
		if i > snapshotIndex {
			s.bytes.Add(int64(len(l.Data)))
			s.entries.Add(1)
		}
	}
	if last > snapshotIndex && first > snapshotIndex+1 {
		return s.corrupt(snapshotIndex+1, "missing")
	}
	return nil
}

// raftLog and raftStable are what the library gets to see. When the disk lies
// or fails, the library would panic, or carry on as a leader that cannot
// write. Instead the node is told, and the calling goroutine ends here: its
// deferred functions refuse what it was about to answer, and nothing is
// acknowledged on top of a broken disk.
type raftLog struct {
	*raft.LogCache
	live *atomic.Bool // false until the library's goroutines run
	fail func(error)
}

func (s raftLog) GetLog(index uint64, l *raft.Log) error {
	err := s.LogCache.GetLog(index, l)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		s.end(err)
	}
	return err
}

func (s raftLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s raftLog) StoreLogs(logs []*raft.Log) error {
	failpoint.Hit(failpoint.ClusterLogBefore)
	err := s.LogCache.StoreLogs(logs)
	if err != nil {
		s.end(fmt.Errorf("write the Raft log: %w", err))
	}
	failpoint.Hit(failpoint.ClusterLogAfter)
	return err
}

func (s raftLog) DeleteRange(lo, hi uint64) error {
	err := s.LogCache.DeleteRange(lo, hi)
	if err != nil {
		s.end(fmt.Errorf("truncate the Raft log: %w", err))
	}
	return err
}

func (s raftLog) end(err error) {
	if s.live.Load() {
		s.fail(err)
		runtime.Goexit()
	}
}

type raftStable struct {
	*checkedStable
	log  *checkedLog
	live *atomic.Bool
	fail func(error)
}

func (s raftStable) Get(k []byte) ([]byte, error) {
	v, err := s.checkedStable.Get(k)
	s.read(err)
	return v, err
}

func (s raftStable) GetUint64(k []byte) (uint64, error) {
	v, err := s.checkedStable.GetUint64(k)
	s.read(err)
	return v, err
}

// read ends a peer that does not know what it voted. The library would go on, and never vote again.
func (s raftStable) read(err error) {
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) && s.live.Load() {
		s.fail(fmt.Errorf("read term or vote: %w", err))
		runtime.Goexit()
	}
}

func (s raftStable) Set(k, v []byte) error {
	defer s.log.busy()()
	failpoint.Hit(failpoint.ClusterVoteBefore)
	return s.check(s.checkedStable.Set(k, v))
}

func (s raftStable) SetUint64(k []byte, v uint64) error {
	defer s.log.busy()()
	failpoint.Hit(failpoint.ClusterVoteBefore)
	return s.check(s.checkedStable.SetUint64(k, v))
}

func (s raftStable) check(err error) error {
	if err != nil && s.live.Load() {
		s.fail(fmt.Errorf("write term or vote: %w", err))
		runtime.Goexit()
	}
	failpoint.Hit(failpoint.ClusterVoteAfter)
	return err
}
