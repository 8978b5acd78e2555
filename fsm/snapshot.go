package fsm

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// A snapshot is the magic bytes and then records, each a SnapshotRecord behind
// its length as a varint. Secrets and their versions are records of their own,
// so that no record is larger than one value.
const (
	snapshotMagic  = "spike-ha fsm\x00\x01\r\n"
	snapshotFormat = 1
	// maxSnapshotRecord bounds what Restore reads before it knows what it is.
	maxSnapshotRecord = MaxSecretValue + 64<<10
)

// WriteSnapshot writes the state of the view, the write-id window included.
// Beginning costs nothing, and neither Apply nor other readers wait for it.
// Writes of 64 KiB, none is retried: after an error what was written is useless.
func (v *View) WriteSnapshot(w io.Writer) error {
	if err := v.writeSnapshot(w); err != nil {
		return fmt.Errorf("write state snapshot at index %d: %w", v.index, err)
	}
	return nil
}

func (v *View) writeSnapshot(out io.Writer) error {
	w := &snapshotWriter{out: bufio.NewWriterSize(out, 64<<10), sha: sha256.New()}
	w.write([]byte(snapshotMagic))
	w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Header{Header: v.header()}})

	t := &fsmpb.SnapshotTrailer{Anchors: uint64(v.anchors.Len()), Window: uint64(len(v.window))}
	w.records(v.secrets, v.policies, t)
	v.anchors.Scan(func(a *fsmpb.Anchor) bool {
		w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Anchor{Anchor: a}})
		return w.err == nil
	})
	for _, e := range v.window {
		if w.err != nil {
			break
		}
		w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Window{Window: &fsmpb.WindowEntry{
			Id: e.id[:], Index: e.index, Request: e.requestBytes(), Applied: e.applied,
			Version: e.version, Revision: e.revision, Versions: e.versions, Operations: e.operations}}})
	}

	if v.staging != nil {
		w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Staging{Staging: v.staging.area()}})
		w.records(v.staging.secrets, v.staging.policies, t)
	}
	data, all := v.Hashes()
	t.DataHash, t.AllHash, t.StreamHash = data[:], all[:], w.sha.Sum(nil)
	w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Trailer{Trailer: t}})
	if w.err != nil {
		return w.err
	}
	return w.out.Flush()
}

func (v *View) header() *fsmpb.SnapshotHeader {
	return &fsmpb.SnapshotHeader{
		Format: snapshotFormat, Level: v.level, Index: v.index, Term: v.term,
		ClusterId: v.clusterID, Incarnation: v.incarnation,
		Settings: v.settings, SettingsRevision: v.settingsRevision,
		Revision: v.revision, PolicyRevision: v.policyRevision,
		Seal: v.seal, WindowFloor: v.windowFloor, Restored: v.restored, Drills: v.drills,
	}
}

// snapshotWriter keeps the first error and does nothing after it.
type snapshotWriter struct {
	out *bufio.Writer
	sha hash.Hash
	buf []byte
	err error
}

func (w *snapshotWriter) write(b []byte) {
	if w.err == nil {
		w.sha.Write(b)
		_, w.err = w.out.Write(b)
	}
}

// records writes secrets, each followed by its versions, and policies, and counts them.
func (w *snapshotWriter) records(secrets tree[*secretRecord], policies tree[*policyRecord], t *fsmpb.SnapshotTrailer) {
	secrets.scan(func(r *secretRecord) bool {
		w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Secret{Secret: &fsmpb.Secret{
			Token: r.pb.Token, PathKeyId: r.pb.PathKeyId, Name: r.pb.Name, Revision: r.pb.Revision,
			Current: r.pb.Current, Oldest: r.pb.Oldest, MaxVersions: r.pb.MaxVersions,
			Created: r.pb.Created, Updated: r.pb.Updated}}})
		t.Secrets++
		for _, version := range r.pb.Versions {
			w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Version{Version: version}})
			t.Versions++
		}
		return w.err == nil
	})
	policies.scan(func(r *policyRecord) bool {
		w.record(&fsmpb.SnapshotRecord{Record: &fsmpb.SnapshotRecord_Policy{Policy: &r.pb}})
		t.Policies++
		return w.err == nil
	})
}

func (w *snapshotWriter) record(r *fsmpb.SnapshotRecord) {
	if w.err != nil {
		return
	}
	opts := proto.MarshalOptions{Deterministic: true}
	w.buf = protowire.AppendVarint(w.buf[:0], uint64(opts.Size(r)))
	if w.buf, w.err = opts.MarshalAppend(w.buf, r); w.err == nil {
		w.write(w.buf)
	}
}
