package fsm

import (
	"bytes"
	"crypto/sha256"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// loader takes secrets and policies that were made elsewhere: of a snapshot, or of
// a restore. They come in the order of their tokens, and each is checked, so that
// what was loaded is what commands could have made. After a refusal it is of no use.
type loader struct {
	secrets        tree[*secretRecord]
	policies       tree[*policyRecord]
	data           sum
	size, versions uint64
	revision       uint64 // no record has a higher one
	policyRevision uint64 // no policy has a higher one

	hash *hasher
	open *secretRecord // whose versions are being taken
	pb   *fsmpb.Secret // what its record said
}

func newLoader(h *hasher) loader {
	return loader{secrets: newTree[*secretRecord](), policies: newTree[*policyRecord](), hash: h}
}

// copy is a loader that goes on from here and leaves l as it is.
func (l *loader) copy() loader {
	c := *l
	c.secrets, c.policies = l.secrets.freeze(), l.policies.freeze()
	return c
}

// secret begins a secret; version and closeSecret follow. When resumed, it is the
// last one, which was closed as partial.
func (l *loader) secret(s *fsmpb.Secret, resumed bool) string {
	switch {
	case unknown(s):
		return "unknown field in a secret"
	case len(s.Token) != len(Token{}) || len(s.PathKeyId) > MaxKeyID || len(s.Name) == 0 || len(s.Name) > MaxName:
		return "bad token, key id or name in a secret"
	case s.MaxVersions == 0 || s.MaxVersions > MaxVersions || s.Revision == 0 || s.Revision > l.revision:
		return "bad numbers in a secret"
	case l.policies.len() > 0:
		return "a secret after a policy"
	}
	last, ok := l.secrets.last()
	l.pb = s
	if resumed {
		if !ok || !sameHead(s, &last.pb) {
			return "not the secret that was to go on"
		}
		l.open = last.next(len(last.pb.Versions) + 1)
		for i, v := range last.pb.Versions {
			l.open.addVersion(v, last.values[i])
		}
		l.data = l.data.minus(last.head)
		l.size -= last.size
		return ""
	}
	if ok && bytes.Compare(last.token[:], s.Token) >= 0 {
		return "secrets out of order"
	}
	l.open = newSecretRecord(Token(s.Token), s.PathKeyId, s.Name, s.MaxVersions, max(1, len(s.Versions)))
	return ""
}

// sameHead compares everything but versions.
func sameHead(a, b *fsmpb.Secret) bool {
	return bytes.Equal(a.Token, b.Token) && bytes.Equal(a.PathKeyId, b.PathKeyId) && bytes.Equal(a.Name, b.Name) &&
		a.Revision == b.Revision && a.Current == b.Current && a.Oldest == b.Oldest && a.MaxVersions == b.MaxVersions &&
		a.Created == b.Created && a.Updated == b.Updated
}

// version takes the next version of the secret that is open.
func (l *loader) version(v *fsmpb.Version) string {
	if l.open == nil {
		return "a version without its secret"
	}
	n := len(l.open.pb.Versions)
	switch {
	case unknown(v) || v.Version == 0:
		return "bad version"
	case n >= int(l.pb.MaxVersions):
		return "too many versions"
	case n > 0 && l.open.pb.Versions[n-1].Version != v.Version-1:
		return "versions out of order"
	case len(v.Value) > MaxSecretValue || v.Destroyed != (len(v.Value) == 0) || v.Destroyed && v.Deleted == 0:
		return "value and times of a version do not fit"
	}
	var value digest
	if !v.Destroyed {
		value = sha256.Sum256(v.Value)
	}
	l.open.addVersion(v, value)
	l.data = l.data.plus(l.hash.version(l.open.token, v, value))
	l.versions++
	return ""
}

// closeSecret completes the secret whose last version has been taken, if one is
// open; a partial one has more to come, and its numbers cannot be checked before.
func (l *loader) closeSecret(partial bool) string {
	n := l.open
	if n == nil {
		return ""
	}
	l.open = nil
	n.live()
	if len(n.pb.Versions) == 0 || !partial && n.pb.Current != l.pb.Current {
		return "versions and current version do not fit"
	}
	if o := l.pb.Oldest; !partial && ((o == 0) != (n.pb.Current == 0) || o != 0 && (o < n.pb.Versions[0].Version || o > n.pb.Current)) {
		return "versions and oldest version do not fit"
	}
	n.pb.Current, n.pb.Oldest = l.pb.Current, l.pb.Oldest
	n.pb.Revision, n.pb.Created, n.pb.Updated = l.pb.Revision, l.pb.Created, l.pb.Updated
	n.head = l.hash.secret(&n.pb)
	l.data = l.data.plus(n.head)
	l.size += n.size
	l.secrets.set(n)
	return ""
}

func (l *loader) policy(p *fsmpb.Policy) string {
	if unknown(p) || len(p.Token) != len(Token{}) || len(p.Body) == 0 || len(p.Body) > MaxPolicyBody ||
		p.Revision == 0 || p.Revision > l.policyRevision {
		return "bad policy"
	}
	if last, ok := l.policies.last(); ok && bytes.Compare(last.token[:], p.Token) >= 0 {
		return "policies out of order"
	}
	n := &policyRecord{token: Token(p.Token), size: policySize(p), hash: l.hash.policy(p)}
	n.pb.Token, n.pb.Body, n.pb.Revision = n.token[:], p.Body, p.Revision
	n.pb.Created, n.pb.Updated = p.Created, p.Updated
	l.data = l.data.plus(n.hash)
	l.size += n.size
	l.policies.set(n)
	return ""
}
