package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
)

// MaxCipherBytes bounds the plaintext of EncryptWire (SPIKE's default).
const MaxCipherBytes = 65536

// EncryptWire encrypts the caller's data, at most MaxCipherBytes, under the
// cluster's cipher key; it is not stored. The right is "execute" on SystemCipher.
func (s *Store) EncryptWire(ctx context.Context, r Request, plaintext []byte) (nonce, ciphertext []byte, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.read(ctx, r, "cipher.encrypt", "", secret.SystemCipher, secret.Execute, nil); err != nil {
		return nil, nil, err
	}
	if len(plaintext) > MaxCipherBytes {
		return nil, nil, &secret.Error{Code: secret.CodeTooLarge, Subject: "plaintext", Message: "more than 65536 bytes are not encrypted in one piece"}
	}
	return s.cfg.Keys.EncryptWire(plaintext)
}

// DecryptWire reverses EncryptWire, on any peer.
func (s *Store) DecryptWire(ctx context.Context, r Request, nonce, ciphertext []byte) ([]byte, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.read(ctx, r, "cipher.decrypt", "", secret.SystemCipher, secret.Execute, nil); err != nil {
		return nil, err
	}
	return s.cfg.Keys.DecryptWire(nonce, ciphertext)
}

// Verify opens a ciphertext for the bootstrap job, which compares the hash of
// what it contains: proof that this cluster has its keys.
func (s *Store) Verify(ctx context.Context, r Request, nonce, ciphertext []byte) ([]byte, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.only(ctx, r, "bootstrap.verify", false, secret.RoleBootstrap); err != nil {
		return nil, err
	}
	if _, err := s.fresh(ctx); err != nil {
		return nil, err
	}
	return s.cfg.Keys.DecryptWire(nonce, ciphertext)
}

// Initialise gives a new cluster its keys.
func (s *Store) Initialise(ctx context.Context, r Request, shares, threshold int, allowSingleShare bool) error {
	detail := fmt.Sprintf("shares %d, threshold %d", shares, threshold)
	if allowSingleShare {
		detail += ", a single share allowed"
	}
	return s.operateOn(ctx, r, "cluster.initialise", detail, func() error {
		return s.cfg.Operator.Initialise(ctx, shares, threshold, allowSingleShare)
	}, secret.RoleBootstrap, secret.RoleSuperuser)
}

// Recover exports all shares of the root key.
func (s *Store) Recover(ctx context.Context, r Request) (shares []RecoveryShare, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.operate(ctx, r, "operator.recover", func() error {
		shares, err = s.cfg.Operator.RecoveryShares(ctx)
		return err
	}, secret.RoleRecover)
	if err != nil { // also when they are there, but not on record
		clear(shares)
		return nil, err
	}
	return shares, nil
}

// maxRecipients bounds the recipients named in one request; there are as many shares at most.
const maxRecipients = 255

// RecoverFiles exports all shares of the root key, each encrypted to one of the
// recipients. Who they are is on record, as a hash.
func (s *Store) RecoverFiles(ctx context.Context, r Request, recipients []string, oneHolder bool) (files []RecoveryFile, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	h := sha256.New()
	for _, to := range recipients {
		fmt.Fprintln(h, to)
	}
	detail := fmt.Sprintf("recipients %d, SHA-256 of their lines %x", len(recipients), h.Sum(nil))
	if oneHolder {
		detail += ", one holder allowed"
	}
	err = s.operateOn(ctx, r, "operator.recover", detail, func() error {
		if len(recipients) == 0 || len(recipients) > maxRecipients {
			return secret.Invalid("recipients", "name one for each share, or fewer that get several")
		}
		files, err = s.cfg.Operator.RecoveryFiles(ctx, recipients, oneHolder)
		return err
	}, secret.RoleRecover)
	if err != nil { // also when they are there, but not on record
		return nil, err
	}
	return files, nil
}

// restoreTimeout bounds a restore, which refills the Keepers at its end. SPIKE's
// SDK waits 10 s for an answer to begin.
const restoreTimeout = 8 * time.Second

// Restore takes one recovery share.
func (s *Store) Restore(ctx context.Context, r Request, share RecoveryShare) (progress RestoreProgress, err error) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	err = s.operate(ctx, r, "operator.restore", func() error {
		progress, err = s.cfg.Operator.Restore(ctx, share)
		return err
	}, secret.RoleRestore)
	return progress, err
}

// SetSealed seals the cluster, or one peer when peer is not empty, or ends that.
// After a seal of the cluster no peer answers from keys any more, wherever it is;
// after one of a peer that peer does not. It needs no keys.
func (s *Store) SetSealed(ctx context.Context, r Request, sealed bool, peer string) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	op, detail := "operator.unseal", ""
	if sealed {
		op = "operator.seal"
	}
	if peer != "" && len(peer) <= maxMemberID { // a record's size must not be the caller's choice
		detail = "peer " + peer
	}
	return s.operateOn(ctx, r, op, detail, func() error {
		if len(peer) > maxMemberID {
			return secret.Invalid("peer", "longer than a peer's id can be")
		}
		return s.cfg.Operator.SetSealed(ctx, sealed, peer)
	}, secret.RoleSuperuser)
}

// ChangeMembers changes who belongs to the cluster. It needs no keys.
func (s *Store) ChangeMembers(ctx context.Context, r Request, change MemberChange) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	detail := ""
	if change.ID != "" && len(change.ID) <= maxMemberID { // a record's size must not be the caller's choice
		detail = "member " + change.ID
	}
	return s.operateOn(ctx, r, "cluster.members."+string(change.Kind), detail, func() error {
		switch {
		case change.ID == "" && change.Kind != TransferLeadership:
			return secret.Invalid("id", "name the peer")
		case len(change.ID) > maxMemberID:
			return secret.Invalid("id", "longer than a peer's id can be")
		case change.Address == "" && change.Kind == AddMember:
			return secret.Invalid("address", "give the host:port of the peer link")
		}
		return s.cfg.Operator.ChangeMembers(ctx, change)
	}, secret.RoleSuperuser)
}

// RemoveDead removes a member that was silent for so long, of this peer's own
// accord: a setting of the peer stands for whoever may do that. It needs no keys.
func (s *Store) RemoveDead(ctx context.Context, r Request, id string, silent time.Duration) error {
	return s.OfOwnAccord(r, "cluster.members."+string(RemoveMember), "setting dead-peer-after", "member "+id+", silent for "+silent.Round(time.Second).String(),
		func() error { return s.cfg.Operator.ChangeMembers(ctx, MemberChange{Kind: RemoveMember, ID: id}) })
}

const maxMemberID = 64

// Inspect authorises and audits looking at the state of the cluster. Needed
// most when things are broken, it asks no other peer and no keys.
func (s *Store) Inspect(ctx context.Context, r Request) error {
	return s.only(ctx, r, "cluster.status", false, secret.RoleSuperuser, secret.RoleAdmin, secret.RoleOperator, secret.RoleRecover, secret.RoleRestore, secret.RoleBootstrap)
}

// Sealed tells whether this process is without keys, or not yet following the state.
func (s *Store) Sealed() bool { return s.public.Load() == nil }

// RefuseSealed records and returns the refusal of a request that is not even
// looked at, because there are no keys.
func (s *Store) RefuseSealed(r Request) error {
	_, err := s.current()
	if err == nil { // unsealed meanwhile: asking again will do
		err = secret.Errorf(secret.CodeUnavailable, "this peer was sealed until this moment; ask again")
	}
	return s.refuse(r, "sealed", "", err)
}

// RefusePolicy answers a request for a policy that cannot be: invalid to those
// who may write policies, a denial to the others.
func (s *Store) RefusePolicy(ctx context.Context, r Request, name string, invalid error) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.read(ctx, r, "policy.put", name, secret.SystemPolicies, secret.Write, nil); err != nil {
		return err
	}
	return invalid
}

// only lets the roles pass; no policy can grant what it guards (SPIKE ADR-0029).
func (s *Store) only(ctx context.Context, r Request, op string, change bool, roles ...secret.Role) error {
	return s.onlyOn(ctx, r, op, "", change, roles...)
}

// onlyOn is only, with a word on what it is about in the record.
func (s *Store) onlyOn(_ context.Context, r Request, op, detail string, change bool, roles ...secret.Role) error {
	for _, role := range roles {
		if r.Caller.Role == role {
			phase := audit.PhaseDecision
			if change {
				phase = audit.PhaseIntent
			}
			return s.record(r, audit.Record{Op: op, Phase: phase, Decision: audit.Allow, By: "role " + string(role), Detail: detail, Index: s.Index()}, change)
		}
	}
	return s.deny(r, op, "", nil)
}

// operate runs an operator's change between intent and outcome.
func (s *Store) operate(ctx context.Context, r Request, op string, act func() error, roles ...secret.Role) error {
	return s.operateOn(ctx, r, op, "", act, roles...)
}

func (s *Store) operateOn(ctx context.Context, r Request, op, detail string, act func() error, roles ...secret.Role) error {
	if err := s.onlyOn(ctx, r, op, detail, true, roles...); err != nil {
		return err
	}
	return s.outcome(r, audit.Record{Op: op, Decision: audit.Allow, Detail: detail}, act())
}

// outcome records what became of a change that was recorded as intended.
func (s *Store) outcome(r Request, outcome audit.Record, err error) error {
	outcome.Phase, outcome.Result, outcome.By, outcome.Index = audit.PhaseOutcome, "ok", "", s.Index()
	if err != nil {
		outcome.Decision, outcome.Result = audit.Refuse, string(secret.CodeOf(err))
	}
	if auditErr := s.record(r, outcome, true); auditErr != nil {
		if err == nil { // done: nothing may say that it is not
			return unknownOutcome(auditErr)
		}
		return auditErr
	}
	return err
}
