package store

import (
	"strings"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
)

// record writes one audit record. Names in it (the path, the policy that
// decided) become keyed hashes unless the operator chose clear ones; while
// sealed there is no key to hash with, and they are left out.
func (s *Store) record(r Request, a audit.Record, durable bool) error {
	a.Request, a.Caller = r.ID, r.Caller.ID
	a.Path = s.hidden(a.Path)
	if name, ok := strings.CutPrefix(a.By, "policy "); ok {
		a.By = "policy " + s.hidden(name)
	}
	if err := s.cfg.Recorder.Append(a, durable); err != nil {
		s.cfg.Logger.Error("an answer was withheld because its audit record could not be written", "error", err)
		return &secret.Error{Code: secret.CodeUnavailable, Message: "the audit log of this peer cannot be written; nothing is answered without it", Cause: err}
	}
	return nil
}

func (s *Store) hidden(name string) string {
	// What is too long to be a name is written as its hash in any case: a record's
	// size must not be the caller's choice.
	if name == "" || s.cfg.ClearPaths && len(name) <= secret.MaxPathBytes && !s.cfg.Keys.Sealed() {
		return name
	}
	hashed, err := s.cfg.Keys.HashPath(name)
	if err != nil {
		return ""
	}
	return hashed
}

// deny records a refusal for lack of rights and returns it. The text is the
// same whether the thing exists or not.
func (s *Store) deny(r Request, op, object string, p *published) error {
	a := audit.Record{Op: op, Phase: audit.PhaseDecision, Path: object, Decision: audit.Deny}
	if p != nil {
		a.Index = p.view.Index()
	}
	if err := s.record(r, a, false); err != nil {
		return err
	}
	return denied()
}

func denied() error {
	return secret.Errorf(secret.CodeDenied, "this identity may not do that; an administrator can grant it by a policy")
}

// refuse records that an operation could not be decided or makes no sense, and
// returns why.
func (s *Store) refuse(r Request, op, object string, why error) error {
	a := audit.Record{Op: op, Phase: audit.PhaseDecision, Path: object, Decision: audit.Refuse, Result: string(secret.CodeOf(why))}
	if err := s.record(r, a, false); err != nil {
		return err
	}
	return why
}
