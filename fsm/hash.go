package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// sum is a 256-bit number: the sum modulo 2^256 of the SHA-256 hashes of a
// multiset of records. Adding and taking away are one addition each, and the
// order of history leaves no trace. An adversary who chooses records freely can
// make two multisets collide with less work than SHA-256 promises; the sums are
// there to find divergence, forgery is stopped before Apply.
type sum [4]uint64 // least significant first

func (s sum) plus(t sum) (r sum) {
	var c uint64
	for i := range s {
		r[i], c = bits.Add64(s[i], t[i], c)
	}
	return r
}

func (s sum) minus(t sum) (r sum) {
	var b uint64
	for i := range s {
		r[i], b = bits.Sub64(s[i], t[i], b)
	}
	return r
}

// bytes returns the number big-endian.
func (s sum) bytes() (b [32]byte) {
	for i, w := range s {
		binary.BigEndian.PutUint64(b[24-8*i:], w)
	}
	return b
}

func sumOf(b [32]byte) (s sum) {
	for i := range s {
		s[i] = binary.BigEndian.Uint64(b[24-8*i:])
	}
	return s
}

// sums are the parts of the state hashes. Three change with each record; seal,
// settings, drills and staging are computed anew when they changed.
type sums struct{ data, anchors, window, seal, settings, drills, staging sum }

func (s *sums) all(counters sum) sum {
	return s.data.plus(s.anchors).plus(s.window).plus(s.seal).plus(s.settings).plus(s.drills).plus(s.staging).plus(counters)
}

// Kinds of hashed records. Like everything in the encoding below they are
// pinned by the golden log: changing one needs a new format level.
const (
	kindSecret byte = iota + 1
	kindVersion
	kindPolicy
	kindAnchor
	kindWindow
	kindSeal
	kindSettings
	kindCounters
	kindStaging
	kindDrills byte = 32
)

// hasher computes hashes of records over an encoding of its own: one byte of
// kind, then each field in order, numbers as 8 bytes big-endian, byte strings
// behind their length. The protobuf encoding is not used, because it promises
// no two builds the same bytes. One goroutine.
type hasher struct {
	buf []byte
}

func newHasher() hasher { return hasher{buf: make([]byte, 0, 1024)} }

func (h *hasher) begin(kind byte) {
	if cap(h.buf) > 256<<10 { // a large keyring went through
		h.buf = make([]byte, 0, 1024)
	}
	h.buf = append(h.buf[:0], kind)
}

func (h *hasher) num(n uint64) { h.buf = binary.BigEndian.AppendUint64(h.buf, n) }

func (h *hasher) flag(f bool) {
	if f {
		h.num(1)
	} else {
		h.num(0)
	}
}

func (h *hasher) raw(b []byte) {
	h.num(uint64(len(b)))
	h.buf = append(h.buf, b...)
}

func (h *hasher) str(s string) {
	h.num(uint64(len(s)))
	h.buf = append(h.buf, s...)
}

func (h *hasher) end() sum { return sumOf(sha256.Sum256(h.buf)) }

// secret hashes a secret without its versions.
func (h *hasher) secret(s *fsmpb.Secret) sum {
	h.begin(kindSecret)
	h.raw(s.Token)
	h.raw(s.PathKeyId)
	h.raw(s.Name)
	h.num(s.Revision)
	h.num(s.Current)
	h.num(s.Oldest)
	h.num(uint64(s.MaxVersions))
	h.num(uint64(s.Created))
	h.num(uint64(s.Updated))
	h.num(uint64(len(s.Versions)))
	return h.end()
}

// version hashes one version of a secret through the digest of its value, so
// that whatever leaves the value alone costs the same for values of any size.
func (h *hasher) version(t Token, v *fsmpb.Version, value digest) sum {
	h.begin(kindVersion)
	h.raw(t[:])
	h.num(v.Version)
	h.num(uint64(v.Created))
	h.num(uint64(v.Deleted))
	h.flag(v.Destroyed)
	h.raw(value[:])
	return h.end()
}

func (h *hasher) policy(p *fsmpb.Policy) sum {
	h.begin(kindPolicy)
	h.raw(p.Token)
	h.num(p.Revision)
	h.num(uint64(p.Created))
	h.num(uint64(p.Updated))
	h.raw(p.Body)
	return h.end()
}

func (h *hasher) anchor(a *fsmpb.Anchor) sum {
	h.begin(kindAnchor)
	h.str(a.Peer)
	h.num(a.Count)
	h.raw(a.Head)
	h.str(a.File)
	h.num(a.FirstCount)
	h.num(a.Index)
	h.num(uint64(a.Time))
	return h.end()
}

func (h *hasher) window(e *windowEntry) sum {
	h.begin(kindWindow)
	h.raw(e.id[:])
	h.num(e.index)
	h.raw(e.requestBytes())
	h.num(e.applied)
	h.num(e.version)
	h.num(e.revision)
	h.num(uint64(len(e.versions)))
	for _, v := range e.versions {
		h.num(v)
	}
	if len(e.operations) > 0 {
		h.num(uint64(len(e.operations)))
		for _, o := range e.operations {
			h.num(o.Version)
			h.num(o.Revision)
			h.num(uint64(len(o.Versions)))
			for _, v := range o.Versions {
				h.num(v)
			}
		}
	}
	return h.end()
}

func (h *hasher) seal(s *fsmpb.SealState) sum {
	h.begin(kindSeal)
	h.flag(s.Sealed)
	h.num(s.Generation)
	for _, set := range []*fsmpb.ShareSet{s.Committed, s.Pending} {
		h.flag(set != nil)
		h.raw(set.GetId())
		h.num(uint64(set.GetShares()))
		h.num(uint64(set.GetThreshold()))
		h.num(uint64(len(set.GetFingerprints())))
		for _, f := range set.GetFingerprints() {
			h.raw(f)
		}
		h.num(uint64(len(set.GetKeepers())))
		for _, k := range set.GetKeepers() {
			h.str(k)
		}
	}
	h.raw(s.Keyring)
	h.num(uint64(len(s.Epochs)))
	for _, e := range s.Epochs {
		h.str(e.Purpose)
		h.raw(e.Id)
	}
	return h.end()
}

func (h *hasher) settings(s *fsmpb.Settings) sum {
	h.begin(kindSettings)
	h.num(uint64(s.MaxVersions))
	h.num(s.StateLimitBytes)
	h.num(s.SecretLimitBytes)
	h.flag(s.WireRecovery)
	h.flag(s.IndexReads)
	h.num(s.WindowEntries)
	h.num(s.WindowBytes)
	if s.Archive != nil { // which settings of before level 3 had not
		h.care(s.Archive)
	}
	return h.end()
}

func (h *hasher) counters(s *scalars) sum {
	h.begin(kindCounters)
	h.raw(s.clusterID)
	h.num(s.incarnation)
	h.num(s.settingsRevision)
	h.num(s.revision)
	h.num(s.policyRevision)
	h.num(s.windowFloor)
	if s.level > FirstLevel { // which had no level to hash
		h.num(uint64(s.level))
	}
	if r := s.restored; r != nil {
		h.raw(r.Id)
		h.raw(r.Request)
		h.num(r.Index)
	}
	return h.end()
}

// staging hashes the staging area through the data hash of what is in it.
func (h *hasher) staging(s *fsmpb.StagingArea) sum {
	h.begin(kindStaging)
	h.raw(s.Begun.Id)
	h.raw(s.Begun.Request)
	h.raw(s.Begun.DataHash)
	h.num(s.Begun.Secrets)
	h.num(s.Begun.Versions)
	h.num(s.Begun.Policies)
	h.num(s.Begun.Revision)
	h.num(s.Next)
	h.flag(s.Partial)
	h.num(s.Secrets)
	h.num(s.Versions)
	h.num(s.Policies)
	h.raw(s.DataHash)
	return h.end()
}
