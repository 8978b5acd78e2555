package fsm

import (
	"iter"

	"github.com/tidwall/btree"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// Token names a secret or a policy: a keyed hash of its name, 32 bytes.
type Token [32]byte

// View is the state after one Raft entry. It never changes; its methods take no
// lock and may be called by any goroutine. Records that it hands out are shared
// by all: nobody may change them or keep writing to slices inside them.
type View struct {
	index, term uint64
	scalars
	secrets  tree[*secretRecord]
	policies tree[*policyRecord]
	anchors  *btree.BTreeG[*fsmpb.Anchor]
	window   []*windowEntry // oldest first; entries never change
	staging  *staging       // nil: there is none
	data     sum
	all      sum
}

// Index returns the Raft index of the last applied entry, 0 before any.
func (v *View) Index() uint64 { return v.index }

// Term returns the Raft term of the last applied entry.
func (v *View) Term() uint64 { return v.term }

// Founded reports whether the state has an identity; without it every command
// but Found is refused.
func (v *View) Founded() bool { return len(v.clusterID) != 0 }

// Cluster returns the cluster's id, 16 bytes, and its incarnation; nil and 0
// before founding.
func (v *View) Cluster() (id []byte, incarnation uint64) { return v.clusterID, v.incarnation }

// Level returns the cluster's format level, which commands may use.
func (v *View) Level() uint32 { return v.level }

// Settings returns the settings in force, defaults filled in; never nil.
func (v *View) Settings() *fsmpb.Settings { return v.settings }

// SettingsRevision returns what PutSettings has to expect.
func (v *View) SettingsRevision() uint64 { return v.settingsRevision }

// Secret returns the secret that the token names.
func (v *View) Secret(t Token) (*fsmpb.Secret, bool) {
	r, ok := v.secrets.get(t)
	if !ok {
		return nil, false
	}
	return &r.pb, true
}

// Secrets ranges over all secrets in the order of their tokens.
func (v *View) Secrets() iter.Seq[*fsmpb.Secret] {
	return func(yield func(*fsmpb.Secret) bool) {
		v.secrets.scan(func(r *secretRecord) bool { return yield(&r.pb) })
	}
}

// SecretCount returns the number of secrets, wholly deleted ones included.
func (v *View) SecretCount() int { return v.secrets.len() }

// Policy returns the policy that the token names.
func (v *View) Policy(t Token) (*fsmpb.Policy, bool) {
	r, ok := v.policies.get(t)
	if !ok {
		return nil, false
	}
	return &r.pb, true
}

// Policies ranges over all policies in the order of their tokens.
func (v *View) Policies() iter.Seq[*fsmpb.Policy] {
	return func(yield func(*fsmpb.Policy) bool) {
		v.policies.scan(func(r *policyRecord) bool { return yield(&r.pb) })
	}
}

// PolicyRevision moves with each change of any policy and never returns.
func (v *View) PolicyRevision() uint64 { return v.policyRevision }

// PolicyCount returns the number of policies.
func (v *View) PolicyCount() int { return v.policies.len() }

// Seal returns the state of the seal; never nil.
func (v *View) Seal() *fsmpb.SealState { return v.seal }

// Anchor returns the last audit anchor of a peer.
func (v *View) Anchor(peer string) (*fsmpb.Anchor, bool) {
	return v.anchors.Get(&fsmpb.Anchor{Peer: peer})
}

// Anchors ranges over the peers that have anchored, in the order of their ids.
func (v *View) Anchors() iter.Seq2[string, *fsmpb.Anchor] {
	return func(yield func(string, *fsmpb.Anchor) bool) {
		v.anchors.Scan(func(a *fsmpb.Anchor) bool { return yield(a.Peer, a) })
	}
}

// Hashes returns the two state hashes: data over secrets and policies, all over
// everything that is replicated. Machines that applied the same entries have
// equal hashes at equal indices. They find divergence, not forgery.
func (v *View) Hashes() (data, all [32]byte) { return v.data.bytes(), v.all.bytes() }

// Size returns the accounted bytes of the state and the limit over which
// commands that grow it are refused. The write-id window is not part of it: it
// has bounds of its own.
func (v *View) Size() (bytes, limit uint64) { return v.size, v.settings.GetStateLimitBytes() }

// WindowFloor returns the index below which write ids are refused.
func (v *View) WindowFloor() uint64 { return v.windowFloor }

// WindowLen returns the number of results kept for retries.
func (v *View) WindowLen() int { return len(v.window) }
