package fsm

import (
	"crypto/sha256"
	"slices"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// putSecret writes a version: of a new secret, or the next one of an old.
func (a *applier) putSecret(p *fsmpb.PutSecret, now int64) *fsmpb.Result {
	t := Token(p.Token)
	old, exists := a.secrets.get(t)
	var pb *fsmpb.Secret
	if exists {
		pb = &old.pb
	}
	if p.ExpectedRevision != pb.GetRevision() {
		return refuse(fsmpb.Code_CONFLICT, "the secret changed")
	}
	if p.Version != NextVersion(pb) {
		return refuse(fsmpb.Code_CONFLICT, "the value is sealed under another version number")
	}
	if uint64(len(p.Value)) > a.settings.SecretLimitBytes {
		return refuse(fsmpb.Code_TOO_LARGE, "")
	}
	if !exists {
		return a.newSecret(t, p, now)
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

	if n.size > old.size && a.size-old.size+n.size > a.settings.StateLimitBytes {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	data := a.sums.data.plus(a.hash.version(t, put, value))
	if replaced {
		data = data.minus(a.hash.version(t, versions[at], old.values[at]))
	}
	for i := range drop {
		data = data.minus(a.hash.version(t, versions[i], old.values[i]))
	}
	return a.replaceSecret(old, n, data, &fsmpb.Result{Version: p.Version})
}

// newSecret writes the first version of a secret.
func (a *applier) newSecret(t Token, p *fsmpb.PutSecret, now int64) *fsmpb.Result {
	if len(p.Name) == 0 {
		return refuse(fsmpb.Code_INVALID, "a new secret without a name")
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
	if a.size+n.size > a.settings.StateLimitBytes {
		return refuse(fsmpb.Code_STATE_FULL, "")
	}
	data := a.sums.data.plus(a.hash.version(t, put, value))
	return a.replaceSecret(nil, n, data, &fsmpb.Result{Version: p.Version})
}

// replaceSecret puts n in the place of old, which is nil for a new secret. The
// hash data already knows the versions of n.
func (a *applier) replaceSecret(old, n *secretRecord, data sum, r *fsmpb.Result) *fsmpb.Result {
	n.pb.Revision = a.revise()
	n.head = a.hash.secret(&n.pb)
	a.sums.data = data.plus(n.head)
	a.size += n.size
	if old != nil {
		a.sums.data = a.sums.data.minus(old.head)
		a.size -= old.size
	}
	a.secrets.set(n)
	a.dirty.secrets = true
	a.changes.secret(n.token, old, n)
	r.Code, r.Revision = fsmpb.Code_OK, n.pb.Revision
	return r
}

// purgeSecret removes a secret with all its versions.
func (a *applier) purgeSecret(p *fsmpb.PurgeSecret) *fsmpb.Result {
	old, ok := a.secrets.get(Token(p.Token))
	if !ok {
		return refuse(fsmpb.Code_NOT_FOUND, "")
	}
	if p.ExpectedRevision != old.pb.Revision {
		return refuse(fsmpb.Code_CONFLICT, "the secret changed")
	}
	a.sums.data = a.sums.data.minus(old.head)
	for i, v := range old.pb.Versions {
		a.sums.data = a.sums.data.minus(a.hash.version(old.token, v, old.values[i]))
	}
	a.revise()
	a.size -= old.size
	a.secrets.delete(old)
	a.dirty.secrets = true
	a.changes.secret(old.token, old, nil)
	return &fsmpb.Result{Code: fsmpb.Code_OK}
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
}

// deletion hides versions; deleting again renews the time. A destroyed version
// keeps its times.
func deletion(numbers []uint64) versionChange {
	return versionChange{
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

// changeVersions deletes, undeletes or destroys versions of a secret.
func (a *applier) changeVersions(token []byte, expected uint64, now int64, c versionChange) *fsmpb.Result {
	old, ok := a.secrets.get(Token(token))
	if !ok {
		return refuse(fsmpb.Code_NOT_FOUND, "")
	}
	if expected != old.pb.Revision {
		return refuse(fsmpb.Code_CONFLICT, "the secret changed")
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
	data := a.sums.data
	r := &fsmpb.Result{}
	for i, v := range old.pb.Versions {
		value := old.values[i]
		if _, meant := slices.BinarySearch(numbers, v.Version); meant {
			if changed := c.change(v, now); changed != nil {
				data = data.minus(a.hash.version(old.token, v, value))
				if changed.Destroyed {
					value = digest{}
				}
				data = data.plus(a.hash.version(old.token, changed, value))
				r.Versions = append(r.Versions, v.Version)
				v = changed
			}
		}
		n.addVersion(v, value)
	}
	switch {
	case len(r.Versions) > 0:
	case c.must:
		return refuse(fsmpb.Code_NOT_FOUND, "nothing to undelete")
	default: // nothing changed, and that is fine
		r.Code, r.Revision = fsmpb.Code_OK, old.pb.Revision
		return r
	}
	n.live()
	return a.replaceSecret(old, n, data, r)
}
