package fsm

import (
	"bytes"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// A restore into a running cluster goes through the log: begin opens a staging
// area beside the state, chunks fill it, and commit puts it in the place of all
// secrets and policies, in one entry that costs the same however large it is. So
// every peer, also one that joins in the middle, has the same at the same index.

// MaxStaged is how many records one chunk may have, versions counted.
const MaxStaged = 8192

// staging is what a restore has brought so far.
type staging struct {
	begun   *fsmpb.BeginRestore // never changes
	next    uint64              // the chunk that it takes next
	partial bool                // the last secret goes on in that one
	loader
}

func newStaging(b *fsmpb.BeginRestore, h *hasher) *staging {
	s := &staging{begun: b, next: 1, loader: newLoader(h)}
	s.revision, s.policyRevision = b.Revision, b.Revision
	return s
}

func (s *staging) copy() *staging {
	return &staging{begun: s.begun, next: s.next, partial: s.partial, loader: s.loader.copy()}
}

// full says whether exactly what was announced is there.
func (s *staging) full() bool {
	data := s.data.bytes()
	return !s.partial && uint64(s.secrets.len()) == s.begun.Secrets && s.versions == s.begun.Versions &&
		uint64(s.policies.len()) == s.begun.Policies && bytes.Equal(data[:], s.begun.DataHash)
}

func (s *staging) area() *fsmpb.StagingArea {
	data := s.data.bytes()
	return &fsmpb.StagingArea{Begun: s.begun, Next: s.next, Partial: s.partial, Secrets: uint64(s.secrets.len()), Versions: s.versions,
		Policies: uint64(s.policies.len()), DataHash: data[:]}
}

func (a *applier) isStaged(id []byte) bool {
	return a.staging != nil && bytes.Equal(a.staging.begun.Id, id)
}

func (a *applier) beginRestore(b *fsmpb.BeginRestore) *fsmpb.Result {
	if !a.isStaged(b.Id) {
		a.staging = newStaging(b, a.hash)
		a.dirty.staging = true
	}
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

// restoreChunk works on a copy, so that a chunk that is refused half-way has
// changed nothing.
func (a *applier) restoreChunk(c *fsmpb.RestoreChunk) *fsmpb.Result {
	switch {
	case !a.isStaged(c.Id):
		return refuse(fsmpb.Code_SUPERSEDED, "this restore is not the staged one")
	case c.Sequence < a.staging.next:
		return &fsmpb.Result{Code: fsmpb.Code_OK}
	case c.Sequence > a.staging.next:
		return refuse(fsmpb.Code_CONFLICT, "chunks before it are missing")
	}
	s := a.staging.copy()
	if bad := s.chunk(c); bad != "" {
		return refuse(fsmpb.Code_INVALID, bad)
	}
	if s.size > a.settings.StateLimitBytes {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	a.staging = s
	a.dirty.staging = true
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

func (s *staging) chunk(c *fsmpb.RestoreChunk) string {
	if s.partial && len(c.Secrets) == 0 || c.Partial && (len(c.Secrets) == 0 || len(c.Policies) > 0) {
		return "a secret is not whole"
	}
	for i, secret := range c.Secrets {
		if bad := s.secret(secret, i == 0 && s.partial); bad != "" {
			return bad
		}
		for _, v := range secret.Versions {
			if bad := s.version(v); bad != "" {
				return bad
			}
		}
		if bad := s.closeSecret(c.Partial && i == len(c.Secrets)-1); bad != "" {
			return bad
		}
	}
	for _, p := range c.Policies {
		if bad := s.policy(p); bad != "" {
			return bad
		}
	}
	if uint64(s.secrets.len()) > s.begun.Secrets || s.versions > s.begun.Versions || uint64(s.policies.len()) > s.begun.Policies {
		return "more records than were announced"
	}
	s.partial = c.Partial
	s.next++
	return ""
}

// commitRestore swaps what is staged in. What stays: settings, audit anchors, and
// the results of write ids, so that the retry of a write that was acknowledged
// before is still answered as such.
func (a *applier) commitRestore(c *fsmpb.CommitRestore) *fsmpb.Result {
	s := a.staging
	switch {
	case !a.isStaged(c.Id):
		return refuse(fsmpb.Code_SUPERSEDED, "this restore is not the staged one")
	case !s.full() || !bytes.Equal(c.DataHash, s.begun.DataHash):
		return refuse(fsmpb.Code_INVALID, "what is staged is not what was announced")
	}
	if why := a.keyringMoved(c.Keyring); why != "" {
		return refuse(fsmpb.Code_CONFLICT, why)
	}
	size := s.size + sealSize(a.seal) + drillsSize(a.drills)
	a.anchors.Scan(func(x *fsmpb.Anchor) bool {
		size += anchorSize(x)
		return true
	})
	if !a.room(size, a.size) {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	a.secrets, a.policies, a.sums.data, a.size = s.secrets, s.policies, s.data, size
	a.dirty.secrets, a.dirty.policies = true, true
	// Above every revision of either, so that no decision of before stands.
	a.revision = max(a.revision, s.begun.Revision)
	a.policyRevision = a.revise()
	a.restored = &fsmpb.Restored{Id: c.Id, Request: s.begun.Request, Index: a.index}
	a.unstage()
	a.changes.reset = true
	return a.reseal(func(s *fsmpb.SealState) {
		s.Keyring, s.Epochs, s.Generation = c.Keyring.Keyring, c.Keyring.Epochs, s.Generation+1
	})
}

func (a *applier) abandonRestore(c *fsmpb.AbandonRestore) *fsmpb.Result {
	if !a.isStaged(c.Id) {
		return refuse(fsmpb.Code_SUPERSEDED, "this restore is not the staged one")
	}
	a.unstage()
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

func (s *state) unstage() {
	s.staging = nil
	s.dirty.staging = true
}

// scanChunk counts records before anything is allocated for them.
func scanChunk(b []byte) string {
	count := 0
	for rest := b; len(rest) > 0; {
		num, typ, n := protowire.ConsumeField(rest)
		if n < 0 {
			return "not a chunk"
		}
		if (num == 3 || num == 4) && typ == protowire.BytesType {
			count++
		}
		if num == 3 && typ == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(rest)
			secret, _ := protowire.ConsumeBytes(rest[tag:])
			for len(secret) > 0 {
				num, _, n := protowire.ConsumeField(secret)
				if n < 0 {
					return "not a chunk"
				}
				if num == 10 {
					count++
				}
				secret = secret[n:]
			}
		}
		if count > MaxStaged {
			return "too many records in a chunk"
		}
		rest = rest[n:]
	}
	if count == 0 {
		return "an empty chunk"
	}
	return ""
}

func checkBegin(b *fsmpb.BeginRestore) string {
	switch {
	case b == nil:
		return "no restore"
	case unknown(b):
		return "unknown field"
	case !isID(b.Id) || !isID(b.Request):
		return "id or request of a restore not 16 bytes"
	case len(b.DataHash) != 32:
		return "data hash is not 32 bytes"
	case b.Secrets > math.MaxInt64 || b.Versions > math.MaxInt64 || b.Policies > math.MaxInt64 || b.Revision > math.MaxInt64:
		return "numbers too high"
	}
	return ""
}

func checkChunk(c *fsmpb.RestoreChunk) string {
	switch {
	case unknown(c):
		return "unknown field"
	case !isID(c.Id) || c.Sequence == 0:
		return "id of a restore not 16 bytes, or no sequence"
	}
	return "" // the records are checked against what came before them
}

func checkCommitRestore(c *fsmpb.CommitRestore) string {
	switch {
	case unknown(c):
		return "unknown field"
	case !isID(c.Id) || len(c.DataHash) != 32:
		return "id of a restore not 16 bytes, or data hash not 32"
	case c.Keyring == nil:
		return "no keyring"
	}
	return checkReplace(c.Keyring)
}

func checkRestored(r *fsmpb.Restored) bool {
	return !unknown(r) && isID(r.GetId()) && isID(r.GetRequest())
}
