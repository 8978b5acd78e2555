package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
)

// maxPurposes bounds the purposes named in one request; there are six.
const maxPurposes = 16

// RotateKeys gives each of the purposes a new key, used at once on all peers;
// none means all that can be rotated. Asked twice, it does so twice.
func (s *Store) RotateKeys(ctx context.Context, r Request, purposes []string) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var named []string
	if len(purposes) <= maxPurposes {
		for _, p := range purposes {
			if len(p) <= 16 { // a record's size must not be the caller's choice
				named = append(named, p)
			}
		}
	}
	return s.operateOn(ctx, r, "key.rotate", strings.Join(named, " "), func() error {
		if !slices.Equal(named, purposes) {
			return secret.Invalid("purposes", "there are no such purposes")
		}
		return s.cfg.Operator.RotateKeys(ctx, purposes)
	}, secret.RoleSuperuser)
}

// PruneKeys drops the archived keys that left the live peers before a time.
// What is under them, in archives and on disks of before, opens never again.
func (s *Store) PruneKeys(ctx context.Context, r Request, before time.Time) (pruned int, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.operateOn(ctx, r, "key.prune", "archived before "+before.UTC().Format(time.RFC3339), func() error {
		if before.After(s.cfg.Now()) {
			return secret.Invalid("before", "it lies in the future")
		}
		pruned, err = s.cfg.Operator.PruneKeys(ctx, before)
		return err
	}, secret.RoleSuperuser)
	return pruned, err
}

// Keys describes the keys of the cluster: for superusers, admins and operators.
func (s *Store) Keys(ctx context.Context, r Request) (KeyStatus, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.only(ctx, r, "key.status", false, secret.RoleSuperuser, secret.RoleAdmin, secret.RoleOperator); err != nil {
		return KeyStatus{}, err
	}
	return s.cfg.Operator.Keys(ctx)
}

// OfOwnAccord puts on record what this peer does because by, a setting or
// somebody's earlier request, has it do so.
func (s *Store) OfOwnAccord(r Request, op, by, detail string, act func() error) error {
	a := audit.Record{Op: op, Phase: audit.PhaseIntent, Decision: audit.Allow, By: by, Detail: detail, Index: s.Index()}
	if err := s.record(r, a, true); err != nil {
		return err
	}
	return s.outcome(r, a, act())
}
