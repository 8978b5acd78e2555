package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// ErrCorruptSnapshot is the kind of every error of Restore that says the
// snapshot is not one that WriteSnapshot wrote.
var ErrCorruptSnapshot = errors.New("corrupt state snapshot")

func corrupt(why string) error { return fmt.Errorf("%w: %s", ErrCorruptSnapshot, why) }

// Restore replaces the whole state by a snapshot, which must be all that r
// holds. Everything is checked before anything is replaced: after an error the
// machine is as it was. Observers get one Delta with Reset set. Errors:
// ErrCorruptSnapshot, *ErrUnknownLevel, or what reading returned. The index may
// go back: Raft decides what is installed. Only the goroutine of Apply may call it.
func (m *Machine) Restore(r io.Reader) error {
	s := newState()
	in := &restorer{in: newSnapshotReader(r), state: s, hash: &m.hash, loader: newLoader(&m.hash)}
	if err := in.run(); err != nil {
		return fmt.Errorf("restore state snapshot: %w", err)
	}
	m.st = s
	m.show(s.publish(&m.hash), Delta{Reset: true, Seal: true})
	return nil
}

type restorer struct {
	*state
	in     *snapshotReader
	hash   *hasher
	loader loader             // takes the secrets and policies of the state, then those that are staged
	area   *fsmpb.StagingArea // whose records are read; nil: those of the state are
	tr     fsmpb.SnapshotTrailer
	part   int // of the stream that has been reached, by the field numbers of SnapshotRecord
}

func (r *restorer) run() error {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r.in, magic); err != nil {
		return truncated(err)
	}
	if string(magic) != snapshotMagic {
		return corrupt("it does not begin like one")
	}
	first, err := r.in.record()
	if err != nil {
		return err
	}
	if err := r.header(first.GetHeader()); err != nil {
		return err
	}
	for {
		stream := r.in.sha.Sum(nil)
		rec, err := r.in.record()
		if err != nil {
			return err
		}
		if t, ok := rec.Record.(*fsmpb.SnapshotRecord_Trailer); ok {
			return r.trailer(t.Trailer, stream)
		}
		if why := r.record(rec); why != "" {
			return corrupt(why)
		}
	}
}

func (r *restorer) header(h *fsmpb.SnapshotHeader) error {
	switch {
	case h == nil:
		return corrupt("no header")
	case h.Level > Level:
		return &ErrUnknownLevel{Index: h.Index, Level: h.Level, Known: Level}
	case h.Format != snapshotFormat:
		return corrupt("its format is unknown to this build")
	case h.Level == 0 || unknown(h) || h.Seal == nil || h.Settings == nil:
		return corrupt("bad header")
	}
	r.index, r.term, r.level = h.Index, h.Term, h.Level
	r.settingsRevision, r.revision, r.policyRevision = h.SettingsRevision, h.Revision, h.PolicyRevision
	r.windowFloor, r.restored = h.WindowFloor, h.Restored
	r.loader.revision, r.loader.policyRevision = h.Revision, h.PolicyRevision
	if h.WindowFloor > h.Index || h.SettingsRevision > h.Revision || h.PolicyRevision > h.Revision {
		return corrupt("counters in the header do not fit")
	}
	if len(h.ClusterId) == 0 {
		if h.Level != FirstLevel || h.Restored != nil || h.Incarnation != 0 || h.Revision != 0 || h.WindowFloor != 0 || len(h.Drills) != 0 ||
			!proto.Equal(h.Settings, r.settings) || !proto.Equal(h.Seal, r.seal) {
			return corrupt("state without an identity")
		}
		return nil
	}
	settings, bad := withDefaults(h.Settings)
	if h.Settings.Archive != nil && h.Level < 3 {
		bad = "settings of a later level"
	}
	if !isID(h.ClusterId) || h.Incarnation == 0 || h.Revision == 0 || bad != "" || !proto.Equal(settings, h.Settings) {
		return corrupt("bad identity or settings in the header")
	}
	if bad := checkSeal(h.Seal); bad != "" {
		return corrupt(bad)
	}
	if bad := checkDrills(h); bad != "" {
		return corrupt(bad)
	}
	if h.Restored != nil && (h.Level < 3 || h.Restored.Index > h.Index || !checkRestored(h.Restored)) {
		return corrupt("bad last restore in the header")
	}
	r.clusterID, r.incarnation, r.settings, r.seal, r.drills = h.ClusterId, h.Incarnation, h.Settings, h.Seal, h.Drills
	r.size = sealSize(h.Seal) + drillsSize(h.Drills)
	return nil
}

func checkSeal(s *fsmpb.SealState) string {
	if unknown(s) {
		return "unknown field"
	}
	for _, set := range []*fsmpb.ShareSet{s.Committed, s.Pending} {
		if set != nil {
			if bad := checkShareSet(set); bad != "" {
				return bad
			}
		}
	}
	if (s.Committed == nil) != (len(s.Keyring) == 0) || len(s.Keyring) > MaxKeyring ||
		s.Committed == nil && len(s.Epochs) != 0 {
		return "keyring and committed share set do not fit"
	}
	return checkEpochs(s.Epochs)
}

// record takes one record between header and trailer, or says what is wrong.
func (r *restorer) record(rec *fsmpb.SnapshotRecord) string {
	part := 0
	switch x := rec.Record.(type) {
	case *fsmpb.SnapshotRecord_Version:
		r.tr.Versions++
		return r.loader.version(x.Version) // belongs to the part of secrets
	case *fsmpb.SnapshotRecord_Secret:
		part = 2
	case *fsmpb.SnapshotRecord_Policy:
		part = 4
	case *fsmpb.SnapshotRecord_Anchor:
		part = 5
	case *fsmpb.SnapshotRecord_Window:
		part = 6
	case *fsmpb.SnapshotRecord_Staging:
		part = 8
	}
	if part < r.part || part == 0 || r.area != nil && part > 4 {
		return "records out of order"
	}
	r.part = part
	if bad := r.loader.closeSecret(false); bad != "" {
		return bad
	}
	if len(r.clusterID) == 0 {
		return "records without an identity"
	}
	switch x := rec.Record.(type) {
	case *fsmpb.SnapshotRecord_Secret:
		r.tr.Secrets++
		if len(x.Secret.Versions) != 0 {
			return "unknown field in a secret"
		}
		return r.loader.secret(x.Secret, false)
	case *fsmpb.SnapshotRecord_Policy:
		r.tr.Policies++
		return r.loader.policy(x.Policy)
	case *fsmpb.SnapshotRecord_Anchor:
		return r.anchor(x.Anchor)
	case *fsmpb.SnapshotRecord_Window:
		return r.windowEntry(x.Window)
	case *fsmpb.SnapshotRecord_Staging:
		return r.stagingArea(x.Staging)
	}
	return ""
}

func (r *restorer) anchor(a *fsmpb.Anchor) string {
	if unknown(a) || a.Index == 0 || a.Index > r.index {
		return "bad anchor"
	}
	if bad := checkAnchor(a.Peer, a.File, a.Head, a.Count, a.FirstCount); bad != "" {
		return bad
	}
	if last, ok := r.anchors.Max(); ok && last.Peer >= a.Peer || r.tr.Anchors >= MaxAnchors {
		return "anchors out of order or too many"
	}
	r.sums.anchors = r.sums.anchors.plus(r.hash.anchor(a))
	r.size += anchorSize(a)
	r.anchors.Set(a)
	r.tr.Anchors++
	return ""
}

func (r *restorer) windowEntry(w *fsmpb.WindowEntry) string {
	if unknown(w) || len(w.Id) != 16 || len(w.Request) > 32 || len(w.Versions) > MaxVersions {
		return "bad write-id result"
	}
	if bad := checkOperationResults(w.Operations); bad != "" {
		return bad
	}
	e := &windowEntry{id: [16]byte(w.Id), index: w.Index, requestLen: uint8(len(w.Request)),
		applied: w.Applied, version: w.Version, revision: w.Revision, versions: w.Versions, operations: w.Operations}
	copy(e.request[:], w.Request)
	if _, twice := r.window.byID[e.id]; twice {
		return "two results of one write id"
	}
	after := r.windowFloor
	if n := len(r.window.entries); n > 0 {
		after = r.window.entries[n-1].applied
	}
	if e.applied < after || e.applied > r.index || e.index >= e.applied {
		return "write-id results out of order"
	}
	floor := r.windowFloor
	r.remember(r.hash, e)
	if r.windowFloor != floor {
		return "more write-id results than the settings allow"
	}
	r.tr.Window++
	return ""
}

func checkOperationResults(results []*fsmpb.OperationResult) string {
	versions := 0
	for _, o := range results {
		if unknown(o) {
			return "unknown field in a write-id result"
		}
		versions += len(o.Versions)
	}
	if len(results) > MaxOperations || versions > MaxVersions {
		return "a write-id result of too many operations"
	}
	return ""
}

// stagingArea begins what is staged: secrets and policies follow.
func (r *restorer) stagingArea(s *fsmpb.StagingArea) string {
	if bad := r.closeLoader(); bad != "" {
		return bad
	}
	if bad := checkBegin(s.Begun); bad != "" {
		return bad
	}
	if unknown(s) || r.level < 3 || s.Next == 0 || s.Partial && (s.Secrets == 0 || s.Policies != 0) {
		return "bad staging area"
	}
	r.area, r.part = s, 0
	r.loader = newStaging(s.Begun, r.hash).loader
	return ""
}

// closeLoader makes what was loaded a part of the state.
func (r *restorer) closeLoader() string {
	l := &r.loader
	if r.area == nil {
		r.secrets, r.policies, r.sums.data = l.secrets, l.policies, l.data
		r.size += l.size
		return ""
	}
	r.staging = &staging{begun: r.area.Begun, next: r.area.Next, partial: r.area.Partial, loader: *l}
	if !proto.Equal(r.staging.area(), r.area) {
		return "what is staged is not what its area says"
	}
	r.sums.staging = r.hash.staging(r.area)
	r.dirty.staging = true
	return ""
}

// trailer compares what was read with what was written.
func (r *restorer) trailer(t *fsmpb.SnapshotTrailer, stream []byte) error {
	if bad := r.loader.closeSecret(r.area.GetPartial()); bad != "" {
		return corrupt(bad)
	}
	if bad := r.closeLoader(); bad != "" {
		return corrupt(bad)
	}
	r.sums.seal, r.sums.settings, r.sums.drills = r.hash.seal(r.seal), r.hash.settings(r.settings), r.hash.drills(r.drills)
	data := r.sums.data.bytes()
	all := r.sums.all(r.hash.counters(&r.scalars)).bytes()
	switch {
	case unknown(t):
		return corrupt("unknown field in the trailer")
	case t.Secrets != r.tr.Secrets || t.Versions != r.tr.Versions || t.Policies != r.tr.Policies ||
		t.Anchors != r.tr.Anchors || t.Window != r.tr.Window:
		return corrupt("records are missing or too many")
	case !bytes.Equal(t.StreamHash, stream):
		return corrupt("the hash of its bytes is another")
	case !bytes.Equal(t.DataHash, data[:]) || !bytes.Equal(t.AllHash, all[:]):
		return corrupt("the hash of its state is another")
	}
	switch n, err := io.ReadFull(r.in, make([]byte, 1)); {
	case n > 0:
		return corrupt("bytes after the trailer")
	case err != io.EOF:
		return err
	}
	return nil
}

// snapshotReader reads records and hashes what it read.
type snapshotReader struct {
	in  *bufio.Reader
	sha hash.Hash
	buf bytes.Buffer
}

func newSnapshotReader(r io.Reader) *snapshotReader {
	return &snapshotReader{in: bufio.NewReaderSize(r, 64<<10), sha: sha256.New()}
}

func (s *snapshotReader) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	s.sha.Write(b[:n])
	return n, err
}

func (s *snapshotReader) ReadByte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == nil {
		s.sha.Write([]byte{b})
	}
	return b, err
}

// record reads one record. The buffer grows with what is really there, not with
// what a length promises.
func (s *snapshotReader) record() (*fsmpb.SnapshotRecord, error) {
	n, err := s.length()
	if err != nil {
		return nil, err
	}
	s.buf.Reset()
	if _, err := io.CopyN(&s.buf, s, int64(n)); err != nil {
		return nil, truncated(err)
	}
	rec := new(fsmpb.SnapshotRecord)
	if err := proto.Unmarshal(s.buf.Bytes(), rec); err != nil || unknown(rec) || rec.Record == nil {
		return nil, corrupt("a record is not decodable")
	}
	return rec, nil
}

func (s *snapshotReader) length() (uint64, error) {
	var n uint64
	for shift := 0; shift < 28; shift += 7 {
		b, err := s.ReadByte()
		if err != nil {
			return 0, truncated(err)
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if n > maxSnapshotRecord {
				break
			}
			return n, nil
		}
	}
	return 0, corrupt("a record is too long")
}

func truncated(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return corrupt("it ends early")
	}
	return err
}
