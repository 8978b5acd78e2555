package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	hclog "github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// checkedSnapshots keeps Raft's snapshots with the library, which has a checksum
// for the state but none for what it says of it. A flipped bit in there renames a
// member, or moves the index at which the log goes on, and a leader would send
// that to the others. So each snapshot has a file beside those of the library:
//
//	1 byte    format: 1
//	32 bytes  SHA-256 of sumSnapshot, and of identifier, index, term and configuration (see sum)
//
// Snapshots of versions before have none, and are believed. When the newest is
// damaged, so is the peer: nobody goes on with an older one. Safe for concurrent use.
type checkedSnapshots struct {
	*raft.FileSnapshotStore
	dir string
}

const (
	sumFile     = "meta.sum"
	sumSnapshot = "spike-ha raft snapshot 1\x00"

	unfinished    = ".tmp" // ends the name of a snapshot that is being written
	keptSnapshots = 2
)

func openSnapshots(dir string, logger hclog.Logger) (*checkedSnapshots, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, logger)
	if err != nil {
		return nil, fmt.Errorf("open the snapshots: %w", err)
	}
	return &checkedSnapshots{files, filepath.Join(dir, "snapshots")}, nil
}

// Create begins a snapshot. Nothing is found of it before its sink is closed.
func (s *checkedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, sink.ID()+unfinished)
	if err := writeDurably(filepath.Join(dir, sumFile), snapshotSum(&raft.SnapshotMeta{
		Version: version, ID: sink.ID(), Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex,
	})); err != nil {
		return nil, errors.Join(fmt.Errorf("create a snapshot: %w", err), sink.Cancel())
	}
	return sink, nil
}

// List returns the newest snapshot alone, or ErrCorruptSnapshot when that one is damaged. The
// library would begin with an older one, whose log may have been compacted away. What older
// ones hold is in the newest, so damage to them is nobody's concern.
func (s *checkedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	for {
		name, err := s.newest()
		if err != nil || name == "" {
			return nil, err
		}
		meta, err := s.describe(name)
		if err == nil {
			return []*raft.SnapshotMeta{meta}, nil
		}
		if after, failed := s.newest(); failed != nil {
			return nil, failed
		} else if after == name {
			return nil, err
		} // else it was replaced, and removed
	}
}

// newest is the name of the newest snapshot that was completed, "" when there is none. It goes by
// the names of the directories, which do not depend on what is in the files.
func (s *checkedSnapshots) newest() (name string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return "", err
	}
	var newest [3]uint64 // term, index, time
	for _, e := range entries {
		if !e.IsDir() || strings.HasSuffix(e.Name(), unfinished) {
			continue
		}
		var at [3]uint64
		if _, err := fmt.Sscanf(e.Name(), "%d-%d-%d", &at[0], &at[1], &at[2]); err != nil || fmt.Sprintf("%d-%d-%d", at[0], at[1], at[2]) != e.Name() {
			return "", s.corrupt(e.Name(), errors.New("no snapshot has such a name"))
		}
		if name == "" || slices.Compare(at[:], newest[:]) > 0 {
			name, newest = e.Name(), at
		}
	}
	return name, nil
}

// corrupt is what err says of a snapshot: that it is damaged, unless a file could only not be
// read now. That may pass, and whoever runs the peer is not told to throw its data away.
func (s *checkedSnapshots) corrupt(name string, err error) error {
	if unreadable(err) {
		return fmt.Errorf("read snapshot %s: %w", name, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrCorruptSnapshot, filepath.Join(s.dir, name), err)
}

// unreadable tells whether the system refused to read a file that is there.
func unreadable(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist)
}

// describe returns what a snapshot says of itself, once that has been checked.
func (s *checkedSnapshots) describe(name string) (*raft.SnapshotMeta, error) {
	raw, err := os.ReadFile(filepath.Join(s.dir, name, "meta.json"))
	if err != nil {
		return nil, s.corrupt(name, err)
	}
	meta := new(raft.SnapshotMeta) // and the checksum of the state, which Open checks
	if err := json.Unmarshal(raw, meta); err != nil {
		return nil, s.corrupt(name, fmt.Errorf("its description: %w", err))
	}
	if meta.Version < raft.SnapshotVersionMin || meta.Version > raft.SnapshotVersionMax {
		return nil, s.corrupt(name, fmt.Errorf("its description is of version %d", meta.Version))
	}
	return meta, s.check(name, meta)
}

// Open reads a snapshot through before it returns it. ErrCorruptSnapshot is of the newest alone: an
// older one may be gone, or half of it, when newer ones were completed since it was listed.
func (s *checkedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := s.open(id)
	if errors.Is(err, ErrCorruptSnapshot) {
		if newest, failed := s.newest(); failed != nil {
			err = failed
		} else if newest != id {
			err = fmt.Errorf("snapshot %s is not the newest any more, and cannot be read", id)
		}
	}
	return meta, rc, err
}

func (s *checkedSnapshots) open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		return nil, nil, s.corrupt(id, err)
	}
	if err := s.check(id, meta); err != nil {
		return nil, nil, errors.Join(err, rc.Close())
	}
	return meta, rc, nil
}

func (s *checkedSnapshots) check(name string, meta *raft.SnapshotMeta) error {
	dir := filepath.Join(s.dir, name)
	state, err := os.Stat(filepath.Join(dir, "state.bin"))
	switch {
	case err != nil:
		return s.corrupt(name, err)
	case meta.ID != name:
		return s.corrupt(name, fmt.Errorf("it calls itself %q", meta.ID))
	case state.Size() != meta.Size:
		return s.corrupt(name, fmt.Errorf("it has %d bytes of state instead of %d", state.Size(), meta.Size))
	}
	sum, err := os.ReadFile(filepath.Join(dir, sumFile))
	switch want := snapshotSum(meta); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return s.corrupt(name, err)
	case len(sum) > 0 && sum[0] > sumFormat:
		return fmt.Errorf("%s: %w (checksum of format %d)", dir, ErrNewerFormat, sum[0])
	case !bytes.Equal(sum, want):
		return s.corrupt(name, errors.New("its description does not match its checksum"))
	}
	return nil
}

// raftSnapshots is what the library gets to see, which would go on without a snapshot that is
// damaged: as a leader that never brings a follower back. The node is told, and ends.
type raftSnapshots struct {
	*checkedSnapshots
	fail func(error)
}

func (s raftSnapshots) List() ([]*raft.SnapshotMeta, error) {
	list, err := s.checkedSnapshots.List()
	s.judge(err)
	return list, err
}

func (s raftSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := s.checkedSnapshots.Open(id)
	s.judge(err)
	return meta, rc, err
}

func (s raftSnapshots) judge(err error) {
	if errors.Is(err, ErrCorruptSnapshot) || errors.Is(err, ErrNewerFormat) {
		s.fail(err)
	}
}

// snapshotSum is what the file has of a snapshot. Everything is a big-endian uint64
// or bytes after their length; size and checksum of the state are checked against the state.
func snapshotSum(meta *raft.SnapshotMeta) []byte {
	h := sha256.New()
	number := func(u uint64) { h.Write(binary.BigEndian.AppendUint64(nil, u)) }
	text := func(s string) { number(uint64(len(s))); h.Write([]byte(s)) }
	h.Write([]byte(sumSnapshot))
	number(uint64(meta.Version))
	text(meta.ID)
	number(meta.Index)
	number(meta.Term)
	number(meta.ConfigurationIndex)
	number(uint64(len(meta.Configuration.Servers)))
	for _, s := range meta.Configuration.Servers {
		number(uint64(s.Suffrage))
		text(string(s.ID))
		text(string(s.Address))
	}
	return h.Sum([]byte{sumFormat})
}
