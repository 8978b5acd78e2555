package fsm

import (
	"bytes"
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// What a restore needs of the state that it restores, which some other machine
// has, and of the one that it takes the place of.

// BeginRestore is the command that announces the secrets and policies of v.
func (v *View) BeginRestore(id, request [16]byte) *fsmpb.BeginRestore {
	data := v.data.bytes()
	b := &fsmpb.BeginRestore{Id: id[:], Request: request[:], DataHash: data[:], Secrets: uint64(v.secrets.len()), Policies: uint64(v.policies.len()), Revision: v.revision}
	v.secrets.scan(func(r *secretRecord) bool {
		b.Versions += uint64(len(r.pb.Versions))
		return true
	})
	return b
}

// RestoreChunks are the commands that bring the secrets and policies of v to the
// staging area, each of about size bytes at most, or more when one version is
// larger. What they refer to is shared with v.
func (v *View) RestoreChunks(id [16]byte, size int) iter.Seq[*fsmpb.RestoreChunk] {
	return func(yield func(*fsmpb.RestoreChunk) bool) {
		c := &chunker{id: id, limit: size, yield: yield, more: true}
		v.secrets.scan(func(r *secretRecord) bool {
			c.secret(&r.pb)
			return c.more
		})
		v.policies.scan(func(r *policyRecord) bool {
			c.room(proto.Size(&r.pb)+recordFrame, 1)
			c.chunk.Policies = append(c.chunk.Policies, &r.pb)
			return c.more
		})
		c.emit(false)
	}
}

// recordFrame is at least what a record needs beside its own bytes.
const recordFrame = 8

type chunker struct {
	id       [16]byte
	limit    int
	yield    func(*fsmpb.RestoreChunk) bool
	more     bool // is wanted
	sequence uint64
	chunk    *fsmpb.RestoreChunk // nil: a new one is to be begun
	size     int                 // bytes in chunk
	count    int                 // records in chunk
}

// room begins a new chunk when there is no room for so much more in this one.
func (c *chunker) room(size, count int) {
	if c.count > 0 && (c.size+size > c.limit || c.count+count > MaxStaged) {
		c.emit(false)
	}
	c.take(size, count)
}

func (c *chunker) take(size, count int) {
	if c.chunk == nil {
		c.sequence++
		c.chunk = &fsmpb.RestoreChunk{Id: c.id[:], Sequence: c.sequence}
	}
	c.size += size
	c.count += count
}

func (c *chunker) emit(partial bool) {
	if c.chunk != nil && c.more {
		c.chunk.Partial = partial
		c.more = c.yield(c.chunk)
	}
	c.chunk, c.size, c.count = nil, 0, 0
}

// secret goes into one chunk, or, when it is too large for any, into several.
func (c *chunker) secret(s *fsmpb.Secret) {
	if size := proto.Size(s) + recordFrame; size <= c.limit {
		c.room(size, 1+len(s.Versions))
		c.chunk.Secrets = append(c.chunk.Secrets, s)
		return
	}
	c.emit(false)
	for rest := s.Versions; len(rest) > 0 && c.more; {
		part := &fsmpb.Secret{Token: s.Token, PathKeyId: s.PathKeyId, Name: s.Name, Revision: s.Revision, Current: s.Current,
			Oldest: s.Oldest, MaxVersions: s.MaxVersions, Created: s.Created, Updated: s.Updated}
		c.take(proto.Size(part)+recordFrame, 1)
		for n := 0; len(rest) > 0; n++ {
			size := proto.Size(rest[0]) + recordFrame
			if n > 0 && c.size+size > c.limit {
				break
			}
			c.take(size, 1)
			part.Versions, rest = append(part.Versions, rest[0]), rest[1:]
		}
		c.chunk.Secrets = []*fsmpb.Secret{part}
		c.emit(len(rest) > 0)
	}
}

// Staged says how far a restore has come that was begun and is not committed.
type Staged struct {
	ID       [16]byte
	Next     uint64 // the chunk that the staging area takes next
	Records  uint64 // staged: secrets, and policies
	Expected uint64
	Bytes    uint64 // accounted, as in Size
}

// Staged describes the staging area; false: there is none.
func (v *View) Staged() (s Staged, ok bool) {
	if v.staging == nil {
		return s, false
	}
	a := v.staging.begun
	return Staged{ID: [16]byte(a.Id), Next: v.staging.next, Records: uint64(v.staging.secrets.len() + v.staging.policies.len()),
		Expected: a.Secrets + a.Policies, Bytes: v.staging.size}, true
}

// Restored is the last restore that was committed; nil: there was none.
func (v *View) Restored() *fsmpb.Restored { return v.restored }

// Difference is how two states differ, counted.
type Difference struct {
	Secrets, Policies Changes
	// Newest is when the newest change was made that is in the first state, in Unix
	// nanoseconds by the clock of who made it; 0: it is empty.
	Newest int64
}

// Changes count the records that a change of state makes appear, vanish or change.
type Changes struct{ Appear, Vanish, Change uint64 }

// DifferenceTo says what taking v for to would do. A record that was only sealed
// anew counts as unchanged: revisions and times are compared, not ciphertexts.
func (v *View) DifferenceTo(to *View) (d Difference) {
	d.Secrets = compare(v.secrets, to.secrets, func(a, b *secretRecord) bool {
		d.Newest = max(d.Newest, a.pb.Updated)
		return b == nil || a.head == b.head
	})
	d.Policies = compare(v.policies, to.policies, func(a, b *policyRecord) bool {
		d.Newest = max(d.Newest, a.pb.Updated)
		return b == nil || a.pb.Revision == b.pb.Revision && a.pb.Created == b.pb.Created && a.pb.Updated == b.pb.Updated
	})
	return d
}

// compare walks two trees at once. same is asked of each record of the first, with
// nil or the one in its place.
func compare[R keyed](from, to tree[R], same func(a, b R) bool) (c Changes) {
	var none R
	next, stop := iter.Pull(func(yield func(R) bool) { to.scan(yield) })
	defer stop()
	other, ok := next()
	from.scan(func(r R) bool {
		for ok && bytes.Compare(other.key()[:], r.key()[:]) < 0 {
			c.Appear++
			other, ok = next()
		}
		if !ok || *other.key() != *r.key() {
			same(r, none)
			c.Vanish++
			return true
		}
		if !same(r, other) {
			c.Change++
		}
		other, ok = next()
		return true
	})
	for ; ok; other, ok = next() {
		c.Appear++
	}
	return c
}
