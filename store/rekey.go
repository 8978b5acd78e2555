package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

const (
	// rekeyTimeout bounds a rekey, which waits for Keepers twice.
	rekeyTimeout = 25 * time.Second
	// Bounds of a request, before anything is done with it.
	maxKeepers    = 255
	maxKeeperName = 255
)

// Rekey gives the cluster a new root key, split anew among Keepers. No request
// waits for it.
func (s *Store) Rekey(ctx context.Context, r Request, k Rekeying) error {
	ctx, cancel := context.WithTimeout(ctx, rekeyTimeout)
	defer cancel()
	var invalid error
	size := 0
	for _, name := range k.Keepers {
		size += len(name)
		if name == "" || len(name) > maxKeeperName {
			invalid = secret.Invalid("keepers", "a name is empty or longer than a Keeper's can be")
		}
	}
	if len(k.Keepers) > maxKeepers {
		invalid = secret.Invalid("keepers", fmt.Sprintf("more than %d", maxKeepers))
	}
	detail := fmt.Sprintf("shares %d, threshold %d", k.Shares, k.Threshold)
	if k.Force {
		detail += ", force"
	}
	if k.AllowSingleShare {
		detail += ", a single share allowed"
	}
	if invalid == nil && size > 0 && size <= 1024 { // a record's size must not be the caller's choice
		detail += ", Keepers " + strings.Join(k.Keepers, " ")
	}
	return s.operateOn(ctx, r, "key.rekey", detail, func() error {
		if invalid != nil {
			return invalid
		}
		return s.cfg.Operator.Rekey(ctx, k)
	}, secret.RoleSuperuser)
}

// CancelRekey gives up a rekey that was begun and not committed, and returns the
// id of its share set; "" when there is none. It needs no keys.
func (s *Store) CancelRekey(ctx context.Context, r Request) (set string, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.operate(ctx, r, "key.rekey.cancel", func() error {
		set, err = s.cfg.Operator.CancelRekey(ctx)
		return err
	}, secret.RoleSuperuser)
	return set, err
}
