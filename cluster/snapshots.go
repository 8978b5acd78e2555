package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
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
// Snapshots of versions before have none, and are believed. A snapshot whose
// description does not match is damage to all who ask for it; nobody goes on with
// an older one. Safe for concurrent use.
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

// List returns the newest snapshots, newest first, or ErrCorruptSnapshot when any is damaged.
func (s *checkedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	for {
		before, err := s.finished()
		if err != nil {
			return nil, err
		}
		list, err := s.list(len(before))
		if err == nil {
			return list, nil
		}
		if after, failed := s.finished(); failed != nil || slices.Equal(before, after) {
			return nil, errors.Join(err, failed)
		} // else one has come and another one gone
	}
}

// finished are the names of all snapshots that were completed.
func (s *checkedSnapshots) finished() (names []string, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if e.IsDir() && !strings.HasSuffix(e.Name(), unfinished) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (s *checkedSnapshots) list(found int) ([]*raft.SnapshotMeta, error) {
	list, err := s.FileSnapshotStore.List()
	if err != nil {
		return nil, err
	}
	if len(list) < min(found, keptSnapshots) { // the library leaves out what it cannot read
		return nil, fmt.Errorf("%w: %s: unreadable metadata", ErrCorruptSnapshot, s.dir)
	}
	for _, meta := range list {
		if err := s.check(meta); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Open reads a snapshot through before it returns it.
func (s *checkedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrCorruptSnapshot, filepath.Join(s.dir, id), err)
	}
	if err := s.check(meta); err != nil {
		return nil, nil, errors.Join(err, rc.Close())
	}
	return meta, rc, nil
}

func (s *checkedSnapshots) check(meta *raft.SnapshotMeta) error {
	corrupt := func(detail string) error {
		return fmt.Errorf("%w: %s: %s", ErrCorruptSnapshot, s.dir, detail)
	}
	dir := filepath.Join(s.dir, filepath.Base(meta.ID))
	state, err := os.Stat(filepath.Join(dir, "state.bin"))
	switch {
	case err != nil:
		return corrupt(fmt.Sprintf("of one that calls itself %q: %v", meta.ID, err))
	case state.Size() != meta.Size:
		return corrupt(fmt.Sprintf("%s has %d bytes of state instead of %d", meta.ID, state.Size(), meta.Size))
	}
	sum, err := os.ReadFile(filepath.Join(dir, sumFile))
	switch want := snapshotSum(meta); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return corrupt(err.Error())
	case len(sum) > 0 && sum[0] > sumFormat:
		return fmt.Errorf("%s: %w (checksum of format %d)", dir, ErrNewerFormat, sum[0])
	case !bytes.Equal(sum, want):
		return corrupt(fmt.Sprintf("the description of %s does not match its checksum", meta.ID))
	}
	return nil
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
