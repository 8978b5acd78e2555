package store

import (
	"context"
	"encoding/json"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/policy"
	"github.com/spike-ha/spike-ha/secret"
)

// PutPolicy creates or replaces a policy. Its creation time is kept.
func (s *Store) PutPolicy(ctx context.Context, r Request, p secret.Policy) (Changed, error) {
	request, err := json.Marshal(p)
	if err != nil {
		return Changed{}, err
	}
	var token fsm.Token
	result, err := s.change(ctx, r, change{
		op: "policy.put", acts: []act{{op: "policy.put", object: p.Name, on: secret.SystemPolicies, want: secret.Write}}, fingerprint: [][]byte{[]byte(p.Name), request},
		validate: func() error {
			if _, err := policy.Compile(p); err != nil {
				return err
			}
			token, _, err = s.cfg.Keys.Token(KindPolicy, p.Name)
			return err
		},
		build: func(at *published, now *fsmpb.Current) (*fsmpb.Command, error) {
			body := policyBody{Name: p.Name, SPIFFEID: p.SPIFFEID, Path: p.Path, Permissions: uint8(p.Permissions), Updated: s.cfg.Now().UTC()}
			body.Created = body.Updated
			if had, ok := at.policies.Get(p.Name); ok {
				body.Created = had.CreatedAt
			}
			plain, err := json.Marshal(body)
			if err != nil {
				return nil, err
			}
			sealed, err := s.cfg.Keys.Encrypt(KindPolicy, token, 0, plain)
			if err != nil {
				return nil, err
			}
			return &fsmpb.Command{Op: &fsmpb.Command_PutPolicy{PutPolicy: &fsmpb.PutPolicy{
				Token: token[:], ExpectedRevision: policyRevision(at, now, token), Body: sealed}}}, nil
		},
	})
	if err != nil {
		return Changed{}, err
	}
	return Changed{Index: result.Index}, nil
}

// DeletePolicy removes a policy; CodeNotFound when there is none of the name.
func (s *Store) DeletePolicy(ctx context.Context, r Request, name string) (Changed, error) {
	var token fsm.Token
	result, err := s.change(ctx, r, change{
		op: "policy.delete", acts: []act{{op: "policy.delete", object: name, on: secret.SystemPolicies, want: secret.Write}}, fingerprint: [][]byte{[]byte(name)},
		validate: func() error {
			_, err := secret.ParseName("policy name", name)
			if err == nil {
				token, _, err = s.cfg.Keys.Token(KindPolicy, name)
			}
			return err
		},
		build: func(at *published, now *fsmpb.Current) (*fsmpb.Command, error) {
			revision := policyRevision(at, now, token)
			if revision == 0 {
				return nil, errNoPolicy()
			}
			return &fsmpb.Command{Op: &fsmpb.Command_DeletePolicy{DeletePolicy: &fsmpb.DeletePolicy{Token: token[:], ExpectedRevision: revision}}}, nil
		},
	})
	if err != nil {
		return Changed{}, err
	}
	return Changed{Index: result.Index}, nil
}

// GetPolicy reads a policy by name.
func (s *Store) GetPolicy(ctx context.Context, r Request, name string) (secret.Policy, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	p, err := s.read(ctx, r, "policy.get", name, secret.SystemPolicies, secret.Read, func(p *published) error {
		if _, ok := p.policies.Get(name); !ok {
			return errNoPolicy()
		}
		return nil
	})
	if err != nil {
		return secret.Policy{}, err
	}
	if _, err := secret.ParseName("policy name", name); err != nil {
		return secret.Policy{}, err
	}
	if found, ok := p.policies.Get(name); ok {
		return found, nil
	}
	return secret.Policy{}, errNoPolicy()
}

// ListPolicies reads all policies, sorted by name.
func (s *Store) ListPolicies(ctx context.Context, r Request) ([]secret.Policy, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	p, err := s.read(ctx, r, "policy.list", "", secret.SystemPolicies, secret.List, nil)
	if err != nil {
		return nil, err
	}
	return p.policies.List(), nil
}

func policyRevision(at *published, now *fsmpb.Current, token fsm.Token) uint64 {
	if now != nil {
		return now.PolicyBodyRevision
	}
	if record, ok := at.view.Policy(token); ok {
		return record.Revision
	}
	return 0
}

func errNoPolicy() error {
	return secret.Errorf(secret.CodeNotFound, "there is no policy of this name")
}
