package fsm

import (
	"crypto/sha256"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// digest is the SHA-256 of a sealed value; zero for a destroyed one.
type digest [sha256.Size]byte

// secretRecord is a secret with what the machine knows about it. The protobuf
// message is embedded, not pointed to: at a hundred thousand secrets each
// allocation counts. Immutable once it is in the tree.
type secretRecord struct {
	pb     fsmpb.Secret // pb.Token is token[:]
	token  Token
	values []digest // of pb.Versions, one each
	head   sum      // hash of pb without its versions
	size   uint64   // accounted bytes
}

// policyRecord is the same for a policy.
type policyRecord struct {
	pb    fsmpb.Policy
	token Token
	hash  sum
	size  uint64
}

func (r *secretRecord) key() *Token { return &r.token }
func (r *policyRecord) key() *Token { return &r.token }

// Accounted bytes beyond the variable parts of a record: about what it costs in
// memory. They decide STATE_FULL and so belong to the format level.
const (
	secretOverhead    = 384
	versionOverhead   = 160
	policyOverhead    = 256
	anchorOverhead    = 256
	windowOverhead    = 192
	operationOverhead = 96 // of a transaction, in the window
)

func versionSize(v *fsmpb.Version) uint64 { return versionOverhead + uint64(len(v.Value)) }

func policySize(p *fsmpb.Policy) uint64 { return policyOverhead + uint64(len(p.Body)) }

func anchorSize(a *fsmpb.Anchor) uint64 {
	return anchorOverhead + uint64(len(a.Peer)+len(a.Head)+len(a.File))
}

func sealSize(s *fsmpb.SealState) uint64 {
	n := len(s.Keyring)
	for _, e := range s.Epochs {
		n += len(e.Purpose) + len(e.Id)
	}
	for _, set := range []*fsmpb.ShareSet{s.Committed, s.Pending} {
		n += len(set.GetId()) + 32*len(set.GetFingerprints())
		for _, k := range set.GetKeepers() {
			n += len(k)
		}
	}
	return uint64(n)
}

// newSecretRecord starts a record; versions come with addVersion.
func newSecretRecord(t Token, keyID, name []byte, maxVersions uint32, versions int) *secretRecord {
	r := &secretRecord{token: t, size: secretOverhead + uint64(len(keyID)+len(name))}
	r.pb.Token = r.token[:]
	r.pb.PathKeyId, r.pb.Name, r.pb.MaxVersions = keyID, name, maxVersions
	r.pb.Versions = make([]*fsmpb.Version, 0, versions)
	r.values = make([]digest, 0, versions)
	return r
}

// next starts the successor of r: the same secret, no versions yet.
func (r *secretRecord) next(versions int) *secretRecord {
	n := newSecretRecord(r.token, r.pb.PathKeyId, r.pb.Name, r.pb.MaxVersions, versions)
	n.pb.Created, n.pb.Updated, n.pb.Revision = r.pb.Created, r.pb.Updated, r.pb.Revision
	n.pb.Current, n.pb.Oldest = r.pb.Current, r.pb.Oldest
	return n
}

func (r *secretRecord) addVersion(v *fsmpb.Version, d digest) {
	r.pb.Versions = append(r.pb.Versions, v)
	r.values = append(r.values, d)
	r.size += versionSize(v)
}

// live recomputes current and oldest: the highest and the lowest live version.
func (r *secretRecord) live() {
	r.pb.Current, r.pb.Oldest = 0, 0
	for _, v := range r.pb.Versions {
		if v.Deleted == 0 {
			r.pb.Current = v.Version
			if r.pb.Oldest == 0 {
				r.pb.Oldest = v.Version
			}
		}
	}
}

// NextVersion returns the number that the next put to a secret has to carry and
// that its value has to be sealed under; nil is a secret that does not exist.
// It is one above the current version, or above the highest when none is live,
// and always above every destroyed one: a destroyed number never returns, while
// that of a deleted version may, with a new value.
func NextVersion(s *fsmpb.Secret) uint64 {
	versions := s.GetVersions()
	if len(versions) == 0 {
		return 1
	}
	next := s.Current + 1
	if s.Current == 0 {
		next = versions[len(versions)-1].Version + 1
	}
	for i := len(versions) - 1; i >= 0 && versions[i].Version >= next; i-- {
		if versions[i].Destroyed {
			return versions[i].Version + 1
		}
	}
	return next
}
