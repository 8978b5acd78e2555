package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// Snapshots that people ask for: into the archive, or into a file.

const rpcSave = "node.snapshot.save"

type saveCall struct {
	ID []byte `json:"id"`
}

type saveAnswer struct {
	refused
	Saved store.SavedSnapshot `json:"saved"`
}

// SaveSnapshot asks the leader, who ships.
func (o operator) SaveSnapshot(ctx context.Context, id [16]byte) (store.SavedSnapshot, error) {
	n := o.n
	if n.cfg.Archive == "" {
		return store.SavedSnapshot{}, errNoArchive
	}
	payload, err := json.Marshal(saveCall{id[:]})
	if err != nil {
		return store.SavedSnapshot{}, err
	}
	raw, err := n.cluster.Call(ctx, cluster.Leader, rpcSave, payload)
	if err != nil {
		return store.SavedSnapshot{}, saveCallError(err)
	}
	var answer saveAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return store.SavedSnapshot{}, err
	}
	return answer.Saved, answer.err("snapshot")
}

// saveCallError never says that the outcome is unknown: asking again does no harm.
func saveCallError(err error) error {
	if errors.Is(err, cluster.ErrNoHandler) {
		return &secret.Error{Code: secret.CodeConflict, Subject: "snapshot", Reason: "level_too_low", Message: "the leader's release cannot be asked for a snapshot; upgrade it first"}
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "the leader, who ships into the archive, does not answer; ask again", Cause: err}
}

var errNoArchive = &secret.Error{Code: secret.CodeConflict, Subject: "archive", Reason: "no_archive", Message: "this peer has none: start the peers with --archive, or save into a file (--out)"}

// answerSave makes a snapshot here.
func (n *Node) answerSave(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var call saveCall
	if err := json.Unmarshal(payload, &call); err != nil || len(call.ID) != 16 {
		return nil, errors.New("not a call of this kind")
	}
	saved, err := n.save(ctx, [16]byte(call.ID))
	return json.Marshal(saveAnswer{refusedFor(err), saved})
}

func (n *Node) save(ctx context.Context, id [16]byte) (saved store.SavedSnapshot, err error) {
	s := n.shipper.Load()
	if s == nil {
		return saved, &secret.Error{Code: secret.CodeUnavailable, Subject: "archive", Message: "nobody ships into the archive now, which takes a leader with its keys and --archive; see 'spikectl status'"}
	}
	item, done, err := n.saves.do(ctx, id, n.loops.Go, func() (snapshot.Item, error) { return s.Save(n.ctx) })
	if err != nil {
		return saved, saveError(err)
	}
	return store.SavedSnapshot{Done: done, Name: item.Name, Index: item.Last, Size: item.Size}, nil
}

// saveError says in the door's words why something could not be done with an archive.
func saveError(err error) error {
	var known *secret.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, snapshot.ErrForbidden):
		return &secret.Error{Code: secret.CodeConflict, Subject: "archive", Reason: "archive_forbidden", Message: err.Error(), Cause: err}
	}
	return &secret.Error{Code: secret.CodeConflict, Subject: "archive", Reason: "archive_failed", Message: err.Error(), Cause: err}
}

// ExportSnapshot does it here. What was acknowledged before is in it.
func (o operator) ExportSnapshot(ctx context.Context, begin func(size int64) (io.Writer, error)) (store.SavedSnapshot, error) {
	n := o.n
	if n.store.Sealed() {
		return store.SavedSnapshot{}, &secret.Error{Code: secret.CodeSealed, Message: "this peer is sealed: it has no keys to write an archive with"}
	}
	id, incarnation, ok := n.cluster.Identity()
	if !ok {
		return store.SavedSnapshot{}, logError(cluster.ErrNotReady)
	}
	if _, err := n.cluster.WaitRead(ctx); err != nil {
		return store.SavedSnapshot{}, logError(err)
	}
	spool, err := n.spool()
	if err != nil {
		return store.SavedSnapshot{}, err
	}
	cfg := snapshot.ShipperConfig{Source: archiveSource{n}, Cipher: archiveCipher{n.seal}, Cluster: id, Incarnation: incarnation, Peer: n.cfg.ID, Now: n.now}
	item, err := snapshot.Export(ctx, cfg, spool, begin)
	return store.SavedSnapshot{Done: err == nil, Name: item.Name, Index: item.Last, Size: item.Size}, err
}

// spool is where snapshots lie on their way, as ciphertext.
func (n *Node) spool() (string, error) {
	dir := filepath.Join(n.cfg.DataDir, "spool")
	return dir, os.MkdirAll(dir, 0o700)
}
