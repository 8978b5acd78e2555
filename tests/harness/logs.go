package harness

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// ErrLogsDiffer says that two peers' Raft logs contradict each other.
var ErrLogsDiffer = errors.New("the Raft logs of two peers differ")

// entryOf is what two logs may not disagree about.
type entryOf struct {
	term uint64
	sum  [sha256.Size]byte // of kind, data and checksum
}

// SameLogs compares the Raft logs in the data directories of peers that do not
// run, each with each, and returns ErrLogsDiffer where they break what Raft
// promises:
//
//   - entries of the same index and term are the same;
//   - where two logs have an entry of the same index and term, they are the
//     same before it, too;
//   - up to applied, an index that all state machines have come to, they are
//     the same; 0 when none is known.
//
// Entries that one of two has compacted away are not compared, nor is a log that
// does not exist. Another error says that a log cannot be read, since it is
// damaged, or that there are not two.
func SameLogs(applied uint64, dirs ...string) error {
	logs := map[string]map[uint64]entryOf{}
	for _, dir := range dirs {
		file := filepath.Join(dir, "raft", "log.db")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			continue
		}
		entries, err := readLog(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for other, theirs := range logs {
			if err := contradiction(entries, theirs, applied); err != nil {
				return fmt.Errorf("%w: %s and %s: %w", ErrLogsDiffer, filepath.Base(other), filepath.Base(dir), err)
			}
		}
		logs[dir] = entries
	}
	if len(logs) < 2 {
		return fmt.Errorf("%d Raft logs are nothing to compare", len(logs))
	}
	return nil
}

func contradiction(a, b map[uint64]entryOf, applied uint64) error {
	matching := uint64(0) // the last index at which both have an entry of the same term
	for i, e := range a {
		if o, ok := b[i]; ok && o.term == e.term {
			matching = max(matching, i)
		}
	}
	for i, e := range a {
		o, ok := b[i]
		switch {
		case !ok:
		case e.term == o.term && e.sum != o.sum:
			return fmt.Errorf("two entries of index %d and term %d", i, e.term)
		case e.term != o.term && i <= applied:
			return fmt.Errorf("index %d was applied, and is of terms %d and %d", i, e.term, o.term)
		case e.term != o.term && i <= matching:
			return fmt.Errorf("index %d is of terms %d and %d, but %d is the same", i, e.term, o.term, matching)
		}
	}
	return nil
}

// readLog reads a copy of a log: bbolt maps its file, and a map of a file that this process serves itself, through faultfs, may
// wait for itself for ever. A damaged file has bbolt panic, now and then.
func readLog(file string) (entries map[uint64]entryOf, err error) {
	scratch, err := os.MkdirTemp("", "log")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	file = filepath.Join(scratch, "log.db")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return nil, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a page may be looked for behind the end of the file
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	store, err := raftboltdb.New(raftboltdb.Options{Path: file, MsgpackUseNewTimeFormat: true, BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: time.Second}})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	first, err := store.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := store.LastIndex()
	if err != nil {
		return nil, err
	}
	entries = map[uint64]entryOf{}
	for i := first; i <= last; i++ {
		var l raft.Log
		err := store.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			continue // a gap that a snapshot covers
		}
		if err != nil {
			return nil, err
		}
		head := binary.BigEndian.AppendUint64([]byte{byte(l.Type)}, uint64(len(l.Data)))
		entries[i] = entryOf{l.Term, sha256.Sum256(append(append(head, l.Data...), l.Extensions...))}
	}
	return entries, nil
}

// SameLogs kills all peers and compares their logs: see the function.
func (c *Cluster) SameLogs(applied uint64) (failed error) {
	var dirs []string
	for i, p := range c.peers {
		p.Thaw()
		if _, _, runs := p.Running(); runs {
			failed = errors.Join(failed, p.Kill())
		}
		dirs = append(dirs, c.DataDir(i))
	}
	if failed != nil {
		return failed
	}
	return SameLogs(applied, dirs...)
}
