package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
)

// Value is one version of a secret.
type Value struct {
	// JSON is the object of the secret's keys and values, as it was stored.
	JSON    json.RawMessage
	Version secret.Version
	Created time.Time
	Index   uint64 // of the view it was read from
}

// Metadata describes a secret and its versions, without values.
type Metadata struct {
	Current, Oldest  secret.Version
	Created, Updated time.Time
	MaxVersions      int
	Versions         []VersionInfo // ascending
	Index            uint64
}

// VersionInfo describes one version.
type VersionInfo struct {
	Version   secret.Version
	Created   time.Time
	Deleted   time.Time // zero: live
	Destroyed bool
}

// read is the common beginning of all reads: view, decision, audit. The caller
// reads from the publication that it returns and nothing else. look, which may
// be nil, tells whether what is asked for is there: a denial, and an answer that
// it is not, rest on a read-index round whatever the level.
func (s *Store) read(ctx context.Context, r Request, op, object string, on secret.Path, want secret.Permission, look func(*published) error) (*published, error) {
	p, fresh, err := s.view(ctx, r)
	for {
		if err != nil {
			return nil, s.refuse(r, op, object, err)
		}
		d := decision(p, r.Caller, want, on)
		if !fresh && (!d.Allowed || look != nil && secret.CodeOf(look(p)) == secret.CodeNotFound) {
			fresh = true
			p, err = s.fresh(ctx)
			continue
		}
		r.saw(p.view.Index())
		if !d.Allowed {
			return nil, s.deny(r, op, object, p)
		}
		return p, s.record(r, audit.Record{Op: op, Phase: audit.PhaseDecision, Path: object, Decision: audit.Allow, By: d.By, Index: p.view.Index()}, false)
	}
}

// GetSecret reads a version of a secret, 0 for the current one. CodeNotFound
// covers a missing path, a missing or deleted version, and no live version.
func (s *Store) GetSecret(ctx context.Context, r Request, path string, version secret.Version) (Value, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	find := func(p *published) (record *fsmpb.Secret, v *fsmpb.Version, err error) {
		if record, err = s.find(p, path); err == nil {
			v, err = live(record, version)
		}
		return record, v, err
	}
	p, err := s.read(ctx, r, "secret.get", path, decidable(path), secret.Read, func(p *published) error {
		_, _, err := find(p)
		return err
	})
	if err != nil {
		return Value{}, err
	}
	record, v, err := find(p)
	if err != nil {
		return Value{}, err
	}
	plain, err := s.cfg.Keys.Decrypt(KindValue, fsm.Token(record.Token), v.Version, v.Value)
	if err != nil {
		return Value{}, err
	}
	return Value{plain, secret.Version(v.Version), instant(v.Created), p.view.Index()}, nil
}

// GetMetadata reads the metadata of a secret. Unless all is set, a version that
// is missing or deleted, and a secret without a live version, are CodeNotFound,
// as on the SPIKE wire.
func (s *Store) GetMetadata(ctx context.Context, r Request, path string, version secret.Version, all bool) (Metadata, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	find := func(p *published) (*fsmpb.Secret, error) {
		record, err := s.find(p, path)
		if err == nil && !all {
			_, err = live(record, version)
		}
		return record, err
	}
	p, err := s.read(ctx, r, "secret.metadata", path, decidable(path), secret.Read, func(p *published) error {
		_, err := find(p)
		return err
	})
	if err != nil {
		return Metadata{}, err
	}
	record, err := find(p)
	if err != nil {
		return Metadata{}, err
	}
	m := Metadata{Current: secret.Version(record.Current), Oldest: secret.Version(record.Oldest), MaxVersions: int(record.MaxVersions),
		Created: instant(record.Created), Updated: instant(record.Updated), Index: p.view.Index()}
	for _, v := range record.Versions {
		m.Versions = append(m.Versions, VersionInfo{secret.Version(v.Version), instant(v.Created), instant(v.Deleted), v.Destroyed})
	}
	return m, nil
}

// ListAll lists every path, wholly deleted secrets included, to callers with
// the right "list" on SystemSecrets (SPIKE's list).
func (s *Store) ListAll(ctx context.Context, r Request) ([]string, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	p, err := s.read(ctx, r, "secret.list", "", secret.SystemSecrets, secret.List, nil)
	if err != nil {
		return nil, err
	}
	return collect(p, "", nil), nil
}

// ListPrefix lists the paths that begin with prefix and that the caller may
// list: all of them with the right on SystemSecrets, else those that a policy
// grants "list" on. Who has neither anywhere is denied.
func (s *Store) ListPrefix(ctx context.Context, r Request, prefix string) ([]string, uint64, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	p, fresh, err := s.view(ctx, r)
	if err == nil && !fresh && !p.policies.Decide(r.Caller, secret.List, secret.SystemSecrets).Allowed && !p.policies.Reaches(r.Caller, secret.List) {
		p, err = s.fresh(ctx)
	}
	if err != nil {
		return nil, 0, s.refuse(r, "secret.list", prefix, err)
	}
	r.saw(p.view.Index())
	var may func(secret.Path) bool
	d := p.policies.Decide(r.Caller, secret.List, secret.SystemSecrets)
	switch {
	case d.Allowed:
	case p.policies.Reaches(r.Caller, secret.List):
		d.By = "policies"
		may = func(path secret.Path) bool { return p.policies.Decide(r.Caller, secret.List, path).Allowed }
	default:
		return nil, 0, s.deny(r, "secret.list", prefix, p)
	}
	if _, err := secret.ParsePrefix(prefix); err != nil {
		return nil, 0, s.refuse(r, "secret.list", prefix, err)
	}
	err = s.record(r, audit.Record{Op: "secret.list", Phase: audit.PhaseDecision, Path: prefix, Decision: audit.Allow, By: d.By, Index: p.view.Index()}, false)
	if err != nil {
		return nil, 0, err
	}
	return collect(p, prefix, may), p.view.Index(), nil
}

func collect(p *published, prefix string, may func(secret.Path) bool) []string {
	keys := []string{}
	p.paths.Ascend(named{path: secret.Path(prefix)}, func(n named) bool {
		if !strings.HasPrefix(string(n.path), prefix) {
			return false
		}
		if may == nil || may(n.path) {
			keys = append(keys, string(n.path))
		}
		return true
	})
	return keys
}

// find validates path and looks it up. It comes after authorisation, so that a
// stranger learns nothing from how a path is refused.
func (s *Store) find(p *published, path string) (*fsmpb.Secret, error) {
	if _, err := secret.ParsePath(path); err != nil {
		return nil, err
	}
	token, _, err := s.cfg.Keys.Token(KindValue, path)
	if err != nil {
		return nil, err
	}
	if record, ok := p.view.Secret(token); ok {
		return record, nil
	}
	return nil, errNoSecret()
}

func errNoSecret() error {
	return secret.Errorf(secret.CodeNotFound, "there is no secret at this path")
}

// live finds a version that can be read; 0 means the current one.
func live(record *fsmpb.Secret, version secret.Version) (*fsmpb.Version, error) {
	n := uint64(version)
	if n == 0 {
		n = record.Current
	}
	for _, v := range record.Versions {
		if v.Version == n && v.Deleted == 0 && !v.Destroyed {
			return v, nil
		}
	}
	if n == 0 {
		return nil, secret.Errorf(secret.CodeNotFound, "all versions of the secret are deleted; undelete one first")
	}
	return nil, secret.Errorf(secret.CodeNotFound, "the secret has no live version %d", n)
}

// decidable is what a path that has not been validated yet is judged as: itself,
// or, when it is too long to match patterns on, a name that no policy matches.
func decidable(path string) secret.Path {
	if len(path) > secret.MaxPathBytes {
		return ""
	}
	return secret.Path(path)
}

func instant(unixNano int64) time.Time {
	if unixNano == 0 {
		return time.Time{}
	}
	return time.Unix(0, unixNano).UTC()
}
