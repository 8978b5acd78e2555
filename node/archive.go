package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/s3"
)

// archiveAddress reads where an archive is: a directory, or a bucket and a prefix in it.
func archiveAddress(address string) (dir string, bucket *url.URL, prefix string, err error) {
	u, err := url.Parse(address)
	switch {
	case err != nil: // which would quote the address
		return "", nil, "", errors.New("the address of the archive is no URL; write file:///DIRECTORY or s3://BUCKET/PREFIX")
	case u.Scheme == "file" && u.Host == "" && u.Path != "" && u.RawQuery == "":
		return u.Path, nil, "", nil
	case u.Scheme == "file":
		return "", nil, "", errors.New("the address of an archive in a directory is file:///DIRECTORY")
	case u.Scheme == "s3":
		prefix, err = snapshot.ParsePrefix(u.Path)
		return "", u, prefix, err
	}
	return "", nil, "", fmt.Errorf("an archive cannot be at %.20q; write file:///DIRECTORY or s3://BUCKET/PREFIX", u.Scheme+"://")
}

// OpenArchive opens the archive at an address: file:///DIRECTORY, or s3://BUCKET/PREFIX?options (see package s3). Large objects
// are spooled in the directory spool.
func OpenArchive(ctx context.Context, address, spool string) (*snapshot.Archive, error) {
	dir, u, prefix, err := archiveAddress(address)
	if err != nil {
		return nil, err
	}
	var bucket snapshot.Bucket
	if u != nil {
		bucket, err = s3.Open(ctx, u)
	} else {
		bucket, err = snapshot.NewDirectory(dir)
	}
	if err != nil {
		return nil, err
	}
	return snapshot.New(bucket, prefix, spool), nil
}

// ProbeArchive finds out what the store of an archive does, and what these credentials may do there. A directory has nothing to find out.
func ProbeArchive(ctx context.Context, address string) (s3.Capabilities, error) {
	_, u, prefix, err := archiveAddress(address)
	if err == nil && u == nil {
		err = errors.New("only a store of buckets is probed, s3://…; a directory does what archives need if it has hard links")
	}
	if err != nil {
		return s3.Capabilities{}, err
	}
	bucket, err := s3.Open(ctx, u)
	if err != nil {
		return s3.Capabilities{}, err
	}
	return bucket.Probe(ctx, prefix)
}

// archiveCipher gives archives the operations of the seal.
type archiveCipher struct{ keys *seal.Seal }

func (c archiveCipher) Seal(w io.Writer, context []byte) (io.WriteCloser, error) {
	return c.keys.ArchiveStream(w, context)
}

func (c archiveCipher) Open(r io.Reader, context []byte) io.Reader {
	plain, err := c.keys.OpenArchive(r, context)
	return &archiveReader{plain, err}
}

// archiveReader says of what does not open what archives say.
type archiveReader struct {
	plain io.Reader
	err   error
}

func (r *archiveReader) Read(p []byte) (n int, err error) {
	if err = r.err; err == nil {
		n, err = r.plain.Read(p)
	}
	if errors.Is(err, seal.ErrOpen) {
		err = snapshot.ErrDamaged
	}
	return n, err
}

// archiveSource is this peer as a Shipper sees it.
type archiveSource struct{ n *Node }

func (s archiveSource) Entries(after uint64, maxBytes int) ([]snapshot.LogEntry, uint64, error) {
	list, through, err := s.n.cluster.Entries(after, maxBytes)
	if errors.Is(err, cluster.ErrCompacted) {
		err = snapshot.ErrCompacted
	}
	entries := make([]snapshot.LogEntry, len(list))
	for i, e := range list {
		entries[i] = snapshot.LogEntry{Index: e.Index, Term: e.Term, Data: e.Data}
	}
	return entries, through, err
}

func (s archiveSource) State() (snapshot.Header, func(io.Writer) error) {
	view := s.n.machine.View()
	return stateHeader(view), view.WriteSnapshot
}

func stateHeader(view *fsm.View) (h snapshot.Header) {
	if !view.Founded() {
		return h
	}
	h.Last, h.Term, h.Level = view.Index(), view.Term(), view.Level()
	h.Data, h.All = view.Hashes()
	return h
}

func (s archiveSource) Keyring() ([]byte, uint64) {
	view := s.n.machine.View()
	if view.Seal().Committed == nil {
		return nil, view.Index()
	}
	return encodeSeal(view), view.Index()
}

// encodeSeal is the body of a keyring object: what is needed to open the keyring with shares.
func encodeSeal(view *fsm.View) []byte {
	id, incarnation := view.Cluster()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&fsmpb.SnapshotHeader{Level: view.Level(), ClusterId: id, Incarnation: incarnation, Seal: view.Seal()})
	if err != nil {
		panic("node: the state of the seal has no encoding: " + err.Error()) // it came from one
	}
	return b
}

// sealOf reads an encodeSeal.
func sealOf(b []byte) (st seal.State, pb *fsmpb.SnapshotHeader, err error) {
	pb = new(fsmpb.SnapshotHeader)
	if err := proto.Unmarshal(b, pb); err != nil || len(pb.ClusterId) != 16 || pb.Seal.GetCommitted() == nil || pb.Level > fsm.Level {
		return st, nil, fmt.Errorf("%w: the keyring's state of the seal", snapshot.ErrFormat)
	}
	st = sealStateOf(pb.Seal, pb.ClusterId, pb.Incarnation)
	if err := st.Committed.Validate(); err != nil {
		return st, nil, fmt.Errorf("%w: %w", snapshot.ErrFormat, err)
	}
	st.Sealed, st.Pending = false, nil
	return st, pb, nil
}

// archiveMachine is a state machine that an archive is replayed into.
type archiveMachine struct {
	*fsm.Machine
	cluster [16]byte
}

func (m archiveMachine) Restore(h snapshot.Header, r io.Reader) error {
	if err := m.Machine.Restore(r); err != nil {
		return err
	}
	view := m.View()
	id, _ := view.Cluster()
	data, all := view.Hashes()
	if view.Index() != h.Last || data != h.Data || all != h.All || [16]byte(id) != m.cluster {
		return fmt.Errorf("%w: the state is not the one that its header describes", snapshot.ErrForeign)
	}
	return nil
}

func (m archiveMachine) Apply(e snapshot.LogEntry) error {
	commands, err := cluster.Entry{Index: e.Index, Term: e.Term, Data: e.Data}.Commands()
	if err == nil {
		_, err = m.Machine.Apply(e.Index, e.Term, commands)
	}
	return err
}

// archiveError says what is wrong with an archive, or with reading it.
func archiveError(err error) error {
	var known *secret.Error
	var gap *snapshot.GapError
	conflict := func(reason, message string) error {
		return &secret.Error{Code: secret.CodeConflict, Subject: "archive", Message: message + "; nothing was changed", Reason: reason, Cause: err}
	}
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.Is(err, snapshot.ErrNothing), errors.Is(err, snapshot.ErrNoKeyring):
		return conflict("archive_nothing", err.Error())
	case errors.As(err, &gap):
		return conflict("archive_gap", err.Error())
	case errors.Is(err, errRecord):
		return conflict("archive_keys", "a record of that state is under a key that this cluster does not have any more")
	case errors.Is(err, snapshot.ErrForeign):
		return conflict("archive_foreign", err.Error())
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrFormat), errors.Is(err, snapshot.ErrNotFound), errors.Is(err, fsm.ErrCorruptSnapshot), errors.As(err, new(*fsm.ErrUnknownLevel)):
		return conflict("archive_damaged", err.Error())
	case errors.Is(err, seal.ErrSealed):
		return keyError(err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errGivenUp(err)
	}
	return &secret.Error{Code: secret.CodeUnavailable, Subject: "archive", Message: "the archive cannot be read now; nothing was changed", Reason: "archive_unreadable", Cause: err}
}
