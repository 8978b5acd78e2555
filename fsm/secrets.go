package fsm

import (
	"crypto/sha256"
	"slices"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// plan is what one operation makes of one secret. Making a plan changes nothing,
// so that a transaction can have all of its plans before it enacts any.
type plan struct {
	old, n *secretRecord // old nil: there was none; n nil: it goes
	gain   sum           // what the versions of n and old change in the data hash
	kind   ActKind
	idle   bool          // nothing changes, and that is fine
	result *fsmpb.Result // not OK: refused, and nothing else is set
}

func refusal(code fsmpb.Code, reason string) plan { return plan{result: refuse(code, reason)} }

// grows returns by how many bytes the plan makes the state larger and smaller.
func (p *plan) grows() (more, less uint64) {
	if p.n != nil {
		more = p.n.size
	}
	if p.old != nil {
		less = p.old.size
	}
	return more, less
}

// numbers are the versions that the plan changes.
func (p *plan) numbers() []uint64 {
	if p.kind == ActPut {
		return []uint64{p.result.Version}
	}
	return p.result.Versions
}

// carry enacts one plan, unless it is refused or the state has no room for it.
func (a *applier) carry(p plan) *fsmpb.Result {
	if p.result.Code != fsmpb.Code_OK {
		return p.result
	}
	if !p.idle && !a.room(p.grows()) {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	return a.enact(p)
}

// room tells whether the state may change by so many bytes. What does not grow
// it is never refused.
func (a *applier) room(more, less uint64) bool {
	return more <= less || a.size-less+more <= a.settings.StateLimitBytes
}

// enact makes a plan the state.
func (a *applier) enact(p plan) *fsmpb.Result {
	r := p.result
	if p.idle {
		r.Revision = p.old.pb.Revision
		return r
	}
	revision := a.revise()
	a.sums.data = a.sums.data.plus(p.gain)
	if p.old != nil {
		a.sums.data = a.sums.data.minus(p.old.head)
		a.size -= p.old.size
	}
	if n := p.n; n != nil {
		n.pb.Revision, r.Revision = revision, revision
		n.head = a.hash.secret(&n.pb)
		a.sums.data = a.sums.data.plus(n.head)
		a.size += n.size
		a.secrets.set(n)
		a.changes.secret(n.token, p.old, n)
		a.changes.act(Act{Kind: p.kind, Secret: &n.pb, Versions: p.numbers(), Time: a.time})
	} else {
		a.secrets.delete(p.old)
		a.changes.secret(p.old.token, p.old, nil)
		a.changes.act(Act{Kind: p.kind, Secret: &p.old.pb, Time: a.time})
	}
	a.dirty.secrets = true
	return r
}

// transaction enacts all of its operations or, when one cannot be, none. They
// name different secrets, so each is planned on the state before all of them.
func (a *applier) transaction(t *fsmpb.Transaction, now int64) *fsmpb.Result {
	plans := make([]plan, len(t.Operations))
	var more, less uint64
	for i, o := range t.Operations {
		p := a.operation(o, now)
		if p.result.Code != fsmpb.Code_OK {
			p.result.Operation = uint32(i + 1)
			return p.result
		}
		if !p.idle {
			m, l := p.grows()
			more, less = more+m, less+l
		}
		plans[i] = p
	}
	if !a.room(more, less) {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	r := &fsmpb.Result{Code: fsmpb.Code_OK, Operations: make([]*fsmpb.OperationResult, len(plans))}
	for i, p := range plans {
		one := a.enact(p)
		r.Operations[i] = &fsmpb.OperationResult{Version: one.Version, Revision: one.Revision, Versions: one.Versions}
	}
	return r
}

func (a *applier) operation(o *fsmpb.Operation, now int64) plan {
	switch op := o.Op.(type) {
	case *fsmpb.Operation_PutSecret:
		return a.planPut(op.PutSecret, now)
	case *fsmpb.Operation_DeleteVersions:
		d := op.DeleteVersions
		return a.planVersions(d.Token, d.ExpectedRevision, now, deletion(d.Versions))
	case *fsmpb.Operation_DestroyVersions:
		d := op.DestroyVersions
		return a.planVersions(d.Token, d.ExpectedRevision, now, destruction(d.Versions))
	case *fsmpb.Operation_PurgeSecret:
		return a.planPurge(op.PurgeSecret)
	}
	return refusal(fsmpb.Code_INVALID, "no operation") // decode lets none through
}

// planPut writes a version: of a new secret, or the next one of an old.
func (a *applier) planPut(p *fsmpb.PutSecret, now int64) plan {
	t := Token(p.Token)
	old, exists := a.secrets.get(t)
	var pb *fsmpb.Secret
	if exists {
		pb = &old.pb
	}
	if p.ExpectedRevision != pb.GetRevision() {
		return refusal(fsmpb.Code_CONFLICT, "the secret changed")
	}
	if p.Version != NextVersion(pb) {
		return refusal(fsmpb.Code_CONFLICT, "the value is sealed under another version number")
	}
	if uint64(len(p.Value)) > a.settings.SecretLimitBytes {
		return refusal(fsmpb.Code_TOO_LARGE, "")
	}
	if !exists {
		return a.planNew(t, p, now)
	}

	// The new version takes the place of a deleted one with its number, or comes
	// last: numbers have no gaps.
	put := &fsmpb.Version{Version: p.Version, Created: now, Value: p.Value}
	versions := old.pb.Versions
	at := len(versions)
	for at > 0 && versions[at-1].Version >= p.Version {
		at--
	}
	replaced := at < len(versions)
	count := len(versions)
	if !replaced {
		count++
	}
	drop := max(0, count-int(old.pb.MaxVersions)) // the lowest numbers go
	n := old.next(count - drop)
	n.pb.Updated = now
	value := digest(sha256.Sum256(p.Value))
	for i := drop; i < len(versions); i++ {
		if i == at {
			n.addVersion(put, value)
		} else {
			n.addVersion(versions[i], old.values[i])
		}
	}
	if !replaced {
		n.addVersion(put, value)
	}
	n.pb.Current = p.Version
	switch {
	case drop > 0:
		n.pb.Oldest = n.pb.Versions[0].Version
	case n.pb.Oldest == 0:
		n.pb.Oldest = p.Version
	}

	gain := a.hash.version(t, put, value)
	if replaced {
		gain = gain.minus(a.hash.version(t, versions[at], old.values[at]))
	}
	for i := range drop {
		gain = gain.minus(a.hash.version(t, versions[i], old.values[i]))
	}
	return plan{kind: ActPut, old: old, n: n, gain: gain, result: &fsmpb.Result{Code: fsmpb.Code_OK, Version: p.Version}}
}

// planNew writes the first version of a secret.
func (a *applier) planNew(t Token, p *fsmpb.PutSecret, now int64) plan {
	if len(p.Name) == 0 {
		return refusal(fsmpb.Code_INVALID, "a new secret without a name")
	}
	keep := p.MaxVersions
	if keep == 0 {
		keep = a.settings.MaxVersions
	}
	n := newSecretRecord(t, p.PathKeyId, p.Name, keep, 1)
	put := &fsmpb.Version{Version: p.Version, Created: now, Value: p.Value}
	value := digest(sha256.Sum256(p.Value))
	n.addVersion(put, value)
	n.pb.Created, n.pb.Updated = now, now
	n.pb.Current, n.pb.Oldest = p.Version, p.Version
	return plan{kind: ActPut, n: n, gain: a.hash.version(t, put, value), result: &fsmpb.Result{Code: fsmpb.Code_OK, Version: p.Version}}
}

// planPurge removes a secret with all its versions.
func (a *applier) planPurge(p *fsmpb.PurgeSecret) plan {
	old, ok := a.secrets.get(Token(p.Token))
	if !ok {
		return refusal(fsmpb.Code_NOT_FOUND, "")
	}
	if p.ExpectedRevision != old.pb.Revision {
		return refusal(fsmpb.Code_CONFLICT, "the secret changed")
	}
	var gain sum
	for i, v := range old.pb.Versions {
		gain = gain.minus(a.hash.version(old.token, v, old.values[i]))
	}
	return plan{kind: ActPurge, old: old, gain: gain, result: &fsmpb.Result{Code: fsmpb.Code_OK}}
}

// versionChange is what delete, undelete and destroy differ in.
type versionChange struct {
	numbers []uint64
	// pick says which numbers are meant when none are given.
	pick func(*fsmpb.Secret) []uint64
	// change returns the changed version, or nil to leave it.
	change func(v *fsmpb.Version, now int64) *fsmpb.Version
	// must: changing nothing is NOT_FOUND instead of OK.
	must bool
	kind ActKind
}

// deletion hides versions; deleting again renews the time. A destroyed version
// keeps its times.
func deletion(numbers []uint64) versionChange {
	return versionChange{
		kind:    ActDelete,
		numbers: numbers,
		pick:    func(s *fsmpb.Secret) []uint64 { return []uint64{s.Current} },
		change: func(v *fsmpb.Version, now int64) *fsmpb.Version {
			if v.Destroyed {
				return nil
			}
			return &fsmpb.Version{Version: v.Version, Created: v.Created, Deleted: mark(now), Value: v.Value}
		},
	}
}

// undeletion brings deleted versions back. Without numbers it is for a secret
// that is wholly deleted: the highest version that can come back does.
func undeletion(numbers []uint64) versionChange {
	return versionChange{
		kind:    ActUndelete,
		numbers: numbers,
		pick: func(s *fsmpb.Secret) []uint64 {
			if s.Current != 0 {
				return nil
			}
			for _, v := range slices.Backward(s.Versions) {
				if !v.Destroyed {
					return []uint64{v.Version}
				}
			}
			return nil
		},
		change: func(v *fsmpb.Version, _ int64) *fsmpb.Version {
			if v.Destroyed || v.Deleted == 0 {
				return nil
			}
			return &fsmpb.Version{Version: v.Version, Created: v.Created, Value: v.Value}
		},
		must: true,
	}
}

// destruction drops values for good. The number and the times stay; a version
// that was live counts as deleted now.
func destruction(numbers []uint64) versionChange {
	return versionChange{
		kind:    ActDestroy,
		numbers: numbers,
		change: func(v *fsmpb.Version, now int64) *fsmpb.Version {
			if v.Destroyed {
				return nil
			}
			d := &fsmpb.Version{Version: v.Version, Created: v.Created, Deleted: v.Deleted, Destroyed: true}
			if d.Deleted == 0 {
				d.Deleted = mark(now)
			}
			return d
		},
	}
}

// mark is a time that is not 0, which means live: the proposer's clock decides
// nothing, so a clock that stands at 0 must not undo a deletion.
func mark(now int64) int64 {
	if now == 0 {
		return 1
	}
	return now
}

// planVersions deletes, undeletes or destroys versions of a secret.
func (a *applier) planVersions(token []byte, expected uint64, now int64, c versionChange) plan {
	old, ok := a.secrets.get(Token(token))
	if !ok {
		return refusal(fsmpb.Code_NOT_FOUND, "")
	}
	if expected != old.pb.Revision {
		return refusal(fsmpb.Code_CONFLICT, "the secret changed")
	}
	numbers := c.numbers
	if len(numbers) == 0 {
		numbers = c.pick(&old.pb)
	}
	for i, v := range numbers {
		if v == 0 {
			numbers[i] = old.pb.Current // 0 when there is none: then it matches nothing
		}
	}
	slices.Sort(numbers)

	n := old.next(len(old.pb.Versions))
	n.pb.Updated = now
	var gain sum
	r := &fsmpb.Result{Code: fsmpb.Code_OK}
	for i, v := range old.pb.Versions {
		value := old.values[i]
		if _, meant := slices.BinarySearch(numbers, v.Version); meant {
			if changed := c.change(v, now); changed != nil {
				gain = gain.minus(a.hash.version(old.token, v, value))
				if changed.Destroyed {
					value = digest{}
				}
				gain = gain.plus(a.hash.version(old.token, changed, value))
				r.Versions = append(r.Versions, v.Version)
				v = changed
			}
		}
		n.addVersion(v, value)
	}
	switch {
	case len(r.Versions) > 0:
	case c.must:
		return refusal(fsmpb.Code_NOT_FOUND, "nothing to undelete")
	default: // nothing changed, and that is fine
		return plan{old: old, idle: true, result: r}
	}
	n.live()
	return plan{kind: c.kind, old: old, n: n, gain: gain, result: r}
}
