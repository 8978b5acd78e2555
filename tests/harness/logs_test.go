package harness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// keep writes a log whose entries count from first.
func keep(t *testing.T, dir string, first uint64, entries ...raft.Log) string {
	dir = filepath.Join(t.TempDir(), dir)
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "raft", "log.db"), MsgpackUseNewTimeFormat: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		entries[i].Index = first + uint64(i)
		if err := store.StoreLog(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func of(term uint64, data string) raft.Log { return raft.Log{Term: term, Data: []byte(data)} }

func TestSameLogs(t *testing.T) {
	t.Parallel()
	a := keep(t, "a", 1, of(1, "1"), of(1, "2"), of(2, "3"), of(2, "4"))
	for _, tc := range []struct {
		name    string
		first   uint64
		log     []raft.Log
		applied uint64
		differ  bool
	}{
		{"the same", 1, []raft.Log{of(1, "1"), of(1, "2"), of(2, "3"), of(2, "4")}, 4, false},
		{"shorter", 1, []raft.Log{of(1, "1"), of(1, "2")}, 2, false},
		{"compacted", 3, []raft.Log{of(2, "3"), of(2, "4"), of(2, "5")}, 4, false},
		{"another end, never committed", 1, []raft.Log{of(1, "1"), of(1, "2"), of(1, "x")}, 2, false},
		{"another end, applied", 1, []raft.Log{of(1, "1"), of(1, "2"), of(1, "x")}, 3, true},
		{"forged", 1, []raft.Log{of(1, "1"), of(1, "2"), of(2, "x")}, 0, true},
		{"of another kind", 1, []raft.Log{{Term: 1, Data: []byte("1"), Type: raft.LogNoop}}, 0, true},
		{"the same after a difference", 1, []raft.Log{of(1, "1"), of(1, "2"), of(1, "x"), of(2, "4")}, 0, true},
	} {
		b := keep(t, "b", tc.first, tc.log...)
		if err := SameLogs(tc.applied, a, b, filepath.Join(t.TempDir(), "none")); errors.Is(err, ErrLogsDiffer) != tc.differ || err != nil && !tc.differ {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := SameLogs(0, a, filepath.Join(t.TempDir(), "none")); err == nil || errors.Is(err, ErrLogsDiffer) {
		t.Errorf("one log alone: %v", err)
	}
}
