package fsm

import (
	"bytes"
	"crypto/sha256"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// replaceKeyring puts a keyring under the committed root key in the place of
// the present one. While a share set is pending it is refused: the keyring that
// is committed with that set was perhaps made before.
func (a *applier) replaceKeyring(r *fsmpb.ReplaceKeyring) *fsmpb.Result {
	if why := a.keyringMoved(r); why != "" {
		return refuse(fsmpb.Code_CONFLICT, why)
	}
	return a.reseal(func(s *fsmpb.SealState) { s.Keyring, s.Epochs = r.Keyring, r.Epochs })
}

// keyringMoved says why a keyring cannot take the place of the one that it was
// made of; empty: it can.
func (a *applier) keyringMoved(r *fsmpb.ReplaceKeyring) string {
	present := sha256.Sum256(a.seal.Keyring)
	switch {
	case a.seal.Pending != nil:
		return "a share set is pending"
	case !bytes.Equal(r.Committed, a.seal.Committed.GetId()):
		return "another share set is committed"
	case !bytes.Equal(r.Replaces, present[:]):
		return "the keyring changed"
	}
	return ""
}

// resealRecords replaces ciphertexts of what has not moved, and leaves the rest
// alone: whoever reseals looks again. The revisions stay, so that no writer has
// to decide again; a ciphertext that is replaced twice is as good as once.
func (a *applier) resealRecords(r *fsmpb.Reseal) *fsmpb.Result {
	result := &fsmpb.Result{Code: fsmpb.Code_OK}
	for rest := r.Versions; len(rest) > 0; {
		n := 1 // versions of one secret that follow one another cost one copy of its record
		for n < len(rest) && bytes.Equal(rest[n].Token, rest[0].Token) && rest[n].Revision == rest[0].Revision {
			n++
		}
		result.Resealed += a.resealSecret(rest[:n])
		rest = rest[n:]
	}
	for _, p := range r.Policies {
		result.Resealed += a.resealPolicy(p)
	}
	return result
}

func (a *applier) resealSecret(list []*fsmpb.ResealedVersion) (resealed uint64) {
	old, ok := a.secrets.get(Token(list[0].Token))
	if !ok || old.pb.Revision != list[0].Revision {
		return 0
	}
	values := make([]*fsmpb.ResealedVersion, len(old.pb.Versions)) // one for each version; nil: it stays
	first := old.pb.Versions[0].Version                            // numbers have no gaps
	for _, r := range list {
		if at := r.Version - first; r.Version >= first && at < uint64(len(values)) && !old.pb.Versions[at].Destroyed {
			values[at] = r
		}
	}
	n := old.next(len(values))
	var gain sum
	for i, v := range old.pb.Versions {
		value := old.values[i]
		if r := values[i]; r != nil {
			resealed++
			gain = gain.minus(a.hash.version(old.token, v, value))
			v = &fsmpb.Version{Version: v.Version, Created: v.Created, Deleted: v.Deleted, Value: r.Value}
			value = sha256.Sum256(r.Value)
			gain = gain.plus(a.hash.version(old.token, v, value))
		}
		n.addVersion(v, value)
	}
	if resealed == 0 || !a.room(n.size, old.size) {
		return 0
	}
	n.head = old.head
	a.sums.data = a.sums.data.plus(gain)
	a.size += n.size - old.size
	a.secrets.set(n)
	a.dirty.secrets = true
	a.changes.secret(n.token, old, n)
	return resealed
}

func (a *applier) resealPolicy(r *fsmpb.ResealedPolicy) (resealed uint64) {
	old, ok := a.policies.get(Token(r.Token))
	if !ok || old.pb.Revision != r.Revision {
		return 0
	}
	n := &policyRecord{token: old.token}
	n.pb.Token, n.pb.Body, n.pb.Revision = n.token[:], r.Body, old.pb.Revision
	n.pb.Created, n.pb.Updated = old.pb.Created, old.pb.Updated
	if n.size = policySize(&n.pb); !a.room(n.size, old.size) {
		return 0
	}
	n.hash = a.hash.policy(&n.pb)
	a.sums.data = a.sums.data.plus(n.hash).minus(old.hash)
	a.size += n.size - old.size
	a.policies.set(n)
	a.dirty.policies = true
	a.changes.policy(n.token, old, n)
	return 1
}
