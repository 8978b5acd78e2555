package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
)

// Changed is what a change of a secret or policy came to.
type Changed struct {
	Version  secret.Version   // written by a put
	Versions []secret.Version // changed by delete, undelete and destroy
	Index    uint64           // Raft index at which it took effect
}

// PutSecret writes the next version of a secret. With expect not nil the
// current version must be *expect (0: no live version), else CodeConflict.
func (s *Store) PutSecret(ctx context.Context, r Request, path string, values map[string]string, expect *secret.Version) (Changed, error) {
	plain, err := encodeValues(values)
	if err != nil {
		return Changed{}, err
	}
	defer clear(plain)
	fingerprint := [][]byte{plain, nil}
	if expect != nil {
		fingerprint[1] = binary.BigEndian.AppendUint64(nil, uint64(*expect))
	}
	return s.changeSecret(ctx, r, "secret.put", path, fingerprint, func() error { return secret.ParseValues(values) },
		func(t target) (*fsmpb.Command, error) {
			if err := t.expect(expect); err != nil {
				return nil, err
			}
			put, err := s.sealPut(t, path, plain)
			if err != nil {
				return nil, err
			}
			return &fsmpb.Command{Op: &fsmpb.Command_PutSecret{PutSecret: put}}, nil
		})
}

// sealPut makes the command that writes the next version of t.
func (s *Store) sealPut(t target, path string, plain []byte) (*fsmpb.PutSecret, error) {
	sealed, err := s.cfg.Keys.Encrypt(KindValue, t.token, t.next, plain)
	if err != nil {
		return nil, err
	}
	put := &fsmpb.PutSecret{Token: t.token[:], ExpectedRevision: t.revision, Version: t.next, Value: sealed}
	if t.revision == 0 {
		put.PathKeyId = t.keyID
		if put.Name, err = s.cfg.Keys.Encrypt(KindName, t.token, 0, []byte(path)); err != nil {
			return nil, err
		}
	}
	return put, nil
}

// writable checks a path that a change names.
func writable(path string) error {
	parsed, err := secret.ParsePath(path)
	if err != nil {
		return err
	}
	if parsed.Reserved() {
		return secret.Invalid("path", "paths below spike/system/ are reserved")
	}
	return nil
}

// DeleteVersions soft-deletes versions; none or 0 means the current one,
// missing ones are ignored.
func (s *Store) DeleteVersions(ctx context.Context, r Request, path string, versions []secret.Version) (Changed, error) {
	return s.changeExisting(ctx, r, "secret.delete", path, versions, func(t target, v []uint64) *fsmpb.Command {
		return &fsmpb.Command{Op: &fsmpb.Command_DeleteVersions{DeleteVersions: &fsmpb.DeleteVersions{Token: t.token[:], ExpectedRevision: t.revision, Versions: v}}}
	})
}

// UndeleteVersions makes deleted versions readable again; none means the
// highest deleted one of a secret without a live version.
func (s *Store) UndeleteVersions(ctx context.Context, r Request, path string, versions []secret.Version) (Changed, error) {
	return s.changeExisting(ctx, r, "secret.undelete", path, versions, func(t target, v []uint64) *fsmpb.Command {
		return &fsmpb.Command{Op: &fsmpb.Command_UndeleteVersions{UndeleteVersions: &fsmpb.UndeleteVersions{Token: t.token[:], ExpectedRevision: t.revision, Versions: v}}}
	})
}

// DestroyVersions removes the contents of versions for good; at least one must
// be named.
func (s *Store) DestroyVersions(ctx context.Context, r Request, path string, versions []secret.Version) (Changed, error) {
	return s.changeExisting(ctx, r, "secret.destroy", path, versions, func(t target, v []uint64) *fsmpb.Command {
		return &fsmpb.Command{Op: &fsmpb.Command_DestroyVersions{DestroyVersions: &fsmpb.DestroyVersions{Token: t.token[:], ExpectedRevision: t.revision, Versions: v}}}
	})
}

// PurgeSecret removes a secret with all its versions and metadata.
func (s *Store) PurgeSecret(ctx context.Context, r Request, path string) (Changed, error) {
	return s.changeExisting(ctx, r, "secret.purge", path, nil, func(t target, _ []uint64) *fsmpb.Command {
		return &fsmpb.Command{Op: &fsmpb.Command_PurgeSecret{PurgeSecret: &fsmpb.PurgeSecret{Token: t.token[:], ExpectedRevision: t.revision}}}
	})
}

// target is a secret as a change sees it: from the view, or from a rejection.
type target struct {
	token                   fsm.Token
	keyID                   []byte
	revision, current, next uint64 // revision 0: there is none
}

// targetAt is a secret as p has it.
func targetAt(p *published, token fsm.Token, keyID []byte) target {
	t := target{token: token, keyID: keyID, next: 1}
	if record, ok := p.view.Secret(token); ok {
		t.revision, t.current, t.next = record.Revision, record.Current, fsm.NextVersion(record)
	}
	return t
}

// expect refuses a target whose current version is not the one expected.
func (t target) expect(version *secret.Version) error {
	if version == nil || *version == secret.Version(t.current) {
		return nil
	}
	e := secret.Errorf(secret.CodeConflict, "the secret's current version is %d, not %d; read it and decide again", t.current, *version)
	e.Current = secret.Version(t.current)
	return e
}

// maxVersionsNamed bounds the versions named in one request.
const maxVersionsNamed = 1000

func (s *Store) changeExisting(ctx context.Context, r Request, op, path string, versions []secret.Version, build func(target, []uint64) *fsmpb.Command) (Changed, error) {
	validate := func() error {
		switch {
		case len(versions) > maxVersionsNamed:
			return secret.Invalid("versions", "more than 1000 versions are named")
		case len(versions) == 0 && op == "secret.destroy":
			return secret.Invalid("versions", "name the versions to destroy")
		}
		return nil
	}
	numbers := make([]uint64, len(versions))
	var fingerprint []byte
	for i, v := range versions {
		numbers[i] = uint64(v)
		fingerprint = binary.BigEndian.AppendUint64(fingerprint, uint64(v))
	}
	return s.changeSecret(ctx, r, op, path, [][]byte{fingerprint}, validate, func(t target) (*fsmpb.Command, error) {
		if t.revision == 0 {
			return nil, errNoSecret()
		}
		return build(t, numbers), nil
	})
}

func (s *Store) changeSecret(ctx context.Context, r Request, op, path string, fingerprint [][]byte, validate func() error, build func(target) (*fsmpb.Command, error)) (Changed, error) {
	var token fsm.Token
	var keyID []byte
	result, err := s.change(ctx, r, change{
		op: op, acts: []act{{op: op, object: path, on: decidable(path), want: secret.Write}}, fingerprint: append([][]byte{[]byte(path)}, fingerprint...),
		validate: func() error {
			if err := writable(path); err != nil {
				return err
			}
			if validate != nil {
				if err := validate(); err != nil {
					return err
				}
			}
			var err error
			token, keyID, err = s.cfg.Keys.Token(KindValue, path)
			return err
		},
		build: func(p *published, now *fsmpb.Current) (*fsmpb.Command, error) {
			if now != nil {
				return build(target{token, keyID, now.SecretRevision, now.CurrentVersion, now.NextVersion})
			}
			return build(targetAt(p, token, keyID))
		},
	})
	if err != nil {
		return Changed{}, err
	}
	return Changed{secret.Version(result.Version), numbered(result.Versions), result.Index}, nil
}

func numbered(numbers []uint64) (versions []secret.Version) {
	for _, v := range numbers {
		versions = append(versions, secret.Version(v))
	}
	return versions
}

// encodeValues writes values as the JSON object that readers get back.
func encodeValues(values map[string]string) ([]byte, error) {
	if values == nil {
		values = map[string]string{}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(values); err != nil {
		return nil, secret.Invalid("values", "they cannot be encoded")
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
