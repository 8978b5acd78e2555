package fsm

import (
	"bytes"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// putPolicy writes a policy, new or old.
func (a *applier) putPolicy(p *fsmpb.PutPolicy, now int64) *fsmpb.Result {
	old, exists := a.policies.get(Token(p.Token))
	n := &policyRecord{token: Token(p.Token)}
	n.pb.Token, n.pb.Body, n.pb.Created, n.pb.Updated = n.token[:], p.Body, now, now
	n.size = policySize(&n.pb)
	var was, revision uint64
	if exists {
		was, revision, n.pb.Created = old.size, old.pb.Revision, old.pb.Created
	}
	if p.ExpectedRevision != revision {
		return refuse(fsmpb.Code_CONFLICT, "the policy changed")
	}
	if n.size > was && a.size-was+n.size > a.settings.StateLimitBytes {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	a.policyRevision = a.revise()
	n.pb.Revision = a.policyRevision
	n.hash = a.hash.policy(&n.pb)
	a.sums.data = a.sums.data.plus(n.hash)
	if exists {
		a.sums.data = a.sums.data.minus(old.hash)
	}
	a.size += n.size - was
	a.policies.set(n)
	a.dirty.policies = true
	a.changes.policy(n.token, old, n)
	return &fsmpb.Result{Code: fsmpb.Code_OK, Revision: n.pb.Revision}
}

// deletePolicy removes a policy.
func (a *applier) deletePolicy(p *fsmpb.DeletePolicy) *fsmpb.Result {
	old, ok := a.policies.get(Token(p.Token))
	if !ok {
		return refuse(fsmpb.Code_NOT_FOUND, "")
	}
	if p.ExpectedRevision != old.pb.Revision {
		return refuse(fsmpb.Code_CONFLICT, "the policy changed")
	}
	a.policyRevision = a.revise()
	a.sums.data = a.sums.data.minus(old.hash)
	a.size -= old.size
	a.policies.delete(old)
	a.dirty.policies = true
	a.changes.policy(old.token, old, nil)
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

// found gives the state its identity. A repetition compares only the identity:
// the settings may have been changed since.
func (a *applier) found(f *fsmpb.Found) *fsmpb.Result {
	if len(a.clusterID) != 0 {
		if bytes.Equal(a.clusterID, f.ClusterId) && a.incarnation == f.Incarnation {
			return &fsmpb.Result{Code: fsmpb.Code_OK, Revision: a.settingsRevision}
		}
		return refuse(fsmpb.Code_CONFLICT, "founded as another cluster")
	}
	a.clusterID, a.incarnation = f.ClusterId, f.Incarnation
	return a.adopt(f.Settings)
}

// putSettings replaces the settings. A lower limit never fails: from then on
// only what grows the state does. A smaller window forgets at once.
func (a *applier) putSettings(p *fsmpb.PutSettings) *fsmpb.Result {
	if p.ExpectedRevision != a.settingsRevision {
		return refuse(fsmpb.Code_CONFLICT, "the settings changed")
	}
	return a.adopt(p.Settings)
}

func (a *applier) adopt(s *fsmpb.Settings) *fsmpb.Result {
	settings, bad := withDefaults(s)
	if bad != "" {
		return refuse(fsmpb.Code_INVALID, bad) // decode lets none through
	}
	a.settings = settings
	a.settingsRevision = a.revise()
	a.dirty.settings = true
	a.trimWindow(a.hash)
	return &fsmpb.Result{Code: fsmpb.Code_OK, Revision: a.settingsRevision}
}

// raiseLevel lets commands use more from here on. Builds that do not know the
// level have stopped at this command.
func (a *applier) raiseLevel(r *fsmpb.RaiseLevel) *fsmpb.Result {
	a.level = max(a.level, r.Level)
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

// reseal replaces the state of the seal with a changed copy.
func (a *applier) reseal(change func(*fsmpb.SealState)) *fsmpb.Result {
	old := a.seal
	n := &fsmpb.SealState{Sealed: old.Sealed, Generation: old.Generation, Committed: old.Committed,
		Pending: old.Pending, Keyring: old.Keyring, Epochs: old.Epochs}
	change(n)
	a.size += sealSize(n) - sealSize(old)
	a.seal = n
	a.dirty.seal = true
	return &fsmpb.Result{Code: fsmpb.Code_OK, Revision: n.Generation}
}

// beginShareSet makes a share set pending, in place of any other that is. Who
// begins must know which set is committed.
func (a *applier) beginShareSet(b *fsmpb.BeginShareSet) *fsmpb.Result {
	var supersedes []byte
	if isID(b.Supersedes) {
		supersedes = b.Supersedes
	}
	committed := a.seal.Committed.GetId()
	if !bytes.Equal(supersedes, committed) {
		return refuse(fsmpb.Code_CONFLICT, "another share set is committed")
	}
	if bytes.Equal(b.Set.Id, committed) {
		return refuse(fsmpb.Code_CONFLICT, "this share set is committed already")
	}
	return a.reseal(func(s *fsmpb.SealState) { s.Pending = b.Set })
}

// commitShareSet makes the pending share set the committed one, with the
// keyring under its root key.
func (a *applier) commitShareSet(c *fsmpb.CommitShareSet) *fsmpb.Result {
	if !bytes.Equal(c.Id, a.seal.Pending.GetId()) {
		return refuse(fsmpb.Code_SUPERSEDED, "")
	}
	if c.Incarnation != 0 {
		if c.Incarnation < a.incarnation {
			return refuse(fsmpb.Code_CONFLICT, "the incarnation would fall")
		}
		a.incarnation = c.Incarnation
	}
	return a.reseal(func(s *fsmpb.SealState) {
		s.Committed, s.Pending, s.Keyring, s.Epochs = s.Pending, nil, c.Keyring, c.Epochs
	})
}

// abandonShareSet gives the pending share set up.
func (a *applier) abandonShareSet(c *fsmpb.AbandonShareSet) *fsmpb.Result {
	if !bytes.Equal(c.Id, a.seal.Pending.GetId()) {
		return refuse(fsmpb.Code_SUPERSEDED, "")
	}
	return a.reseal(func(s *fsmpb.SealState) { s.Pending = nil })
}

// setSeal seals or unseals by an operator's order.
func (a *applier) setSeal(p *fsmpb.SetSeal) *fsmpb.Result {
	if p.ExpectedGeneration != a.seal.Generation {
		return refuse(fsmpb.Code_CONFLICT, "the seal changed")
	}
	return a.reseal(func(s *fsmpb.SealState) { s.Sealed, s.Generation = p.Sealed, s.Generation+1 })
}

// anchorAudit notes the head of a peer's audit chain. Neither a seal nor a full
// state stops it: without anchors there is no audit, without audit no answer.
func (a *applier) anchorAudit(p *fsmpb.AnchorAudit, now int64) *fsmpb.Result {
	n := &fsmpb.Anchor{Peer: p.Peer, Count: p.Count, Head: p.Head, File: p.File,
		FirstCount: p.FirstCount, Index: a.index, Time: now}
	old, exists := a.anchors.Get(n)
	switch {
	case exists && p.Count <= old.Count:
		return refuse(fsmpb.Code_CONFLICT, "the audit chain is anchored further on")
	case exists:
		a.sums.anchors = a.sums.anchors.minus(a.hash.anchor(old))
		a.size -= anchorSize(old)
	case a.anchors.Len() >= MaxAnchors:
		return refuse(fsmpb.Code_TOO_LARGE, "too many peers have anchored")
	}
	a.sums.anchors = a.sums.anchors.plus(a.hash.anchor(n))
	a.size += anchorSize(n)
	a.anchors.Set(n)
	a.dirty.anchors = true
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}
