package seal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// Rekeying is what a rekey is asked to do.
type Rekeying struct {
	// ID names the request. Repeated with the same id, a rekey that was committed is only brought to its end.
	ID [16]byte
	Split
	// Incarnation is the cluster's as its peers have it. When it is higher than that of the state, which is so
	// after a recovery from a lost majority, the new keys are for it, and Keepers refuse the peers of before.
	Incarnation uint64
}

// Rekey gives the cluster another root key, split anew, in the steps of Initialise. The keyring stays as it is but
// for the root key that it is sealed under, so that every process goes on with the keys it has: Unseal fetches the
// new root key in its own time. Until the commit the old shares open the state, from it on the new ones do; which of
// the two, the log decides. A rekey that failed takes its pending set back; one that crashed leaves it, and the next
// one, or Cancel, makes an end of it.
//
// Errors: ErrNotInitialised, ErrOperatorSealed (also when an operator sealed meanwhile), ErrSealed and ErrStaleState
// (this process has not the keys of the committed set), ErrShareSet, *PlacementError, ErrSuperseded (of two rekeys at
// once one wins), ErrGivenUp. Any other leaves the outcome unknown: repeat it with the same id.
func (s *Seal) Rekey(ctx context.Context, ledger Ledger, r Rekeying) error {
	ticket := s.ticket()
	st, err := ledger.State(ctx)
	if err != nil {
		return fmt.Errorf("seal: reading the state before a rekey: %w", err)
	}
	if err := unsealable(st); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	if isAttempt(st.Committed.ID, r.ID) {
		return s.finish(ctx, st, r)
	}
	old, err := s.acquire()
	if err != nil {
		return err
	}
	defer old.release()
	if !old.belongsTo(st) {
		return ErrStaleState
	}
	cluster := ClusterRef{st.Cluster.ID, max(st.Cluster.Incarnation, r.Incarnation)}
	p, err := newProposal(attemptID(r.ID), cluster, r.Split)
	if err != nil {
		return err
	}
	defer destroy(p.parts)
	p.incarnation, p.supersedes, p.generation = cluster.Incarnation, st.Committed.ID, st.Generation
	k, err := s.publish(ctx, ledger, p, func(ctx context.Context) (*sealpb.Keyring, error) {
		// Read now that no rotation can change it before the commit.
		now, err := ledger.State(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("seal: reading the keyring for a rekey: %w", err)
		case now.Committed == nil || now.Committed.ID != p.supersedes || now.Pending == nil || now.Pending.ID != p.set.ID:
			return nil, ErrSuperseded
		}
		ring, err := openKeyring(old.root.Bytes(), st.Cluster, p.supersedes, now.Keyring)
		if err == nil && len(ring.GetInheritedFrom()) == 0 {
			ring.InheritedFrom = p.supersedes[:]
		}
		return ring, err
	})
	if err != nil {
		return s.takeBack(ctx, ledger, p, r, err)
	}
	s.settleNew(ctx, ledger, p)
	s.log.Info("rekeyed: a new root key is split among the Keepers", "cluster", cluster.String(), "shares", r.Shares, "threshold", r.Threshold)
	if err := s.install(k, ticket); err != nil {
		s.log.Info("sealed while rekeying; the new root key comes from the Keepers", "error", err)
	}
	return nil
}

// finish is a rekey that was committed when it was asked for before.
func (s *Seal) finish(ctx context.Context, st State, r Rekeying) error {
	set := st.Committed
	same := set.Shares == r.Shares && set.Threshold == r.Threshold
	for i, k := range r.Keepers {
		same = same && i < len(set.Keepers) && set.Keepers[i] == k.Name()
	}
	if !same {
		return fmt.Errorf("%w: the id of this rekey is that of another one", ErrShareSet)
	}
	s.settle(ctx, st, r.Keepers)
	return nil
}

// takeBack abandons the pending set of a rekey that failed with cause, so that it blocks no rotation, and so that the
// outcome is known: what is abandoned can never be committed.
func (s *Seal) takeBack(ctx context.Context, ledger Ledger, p *proposal, r Rekeying, cause error) error {
	// The cause may well be that ctx has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.KeeperTimeout)
	defer cancel()
	failpoint.Hit(failpoint.SealAbandon)
	err := ledger.Abandon(ctx, p.set.ID)
	if err != nil {
		now, readErr := ledger.State(ctx)
		switch {
		case readErr == nil && now.Committed != nil && isAttempt(now.Committed.ID, r.ID):
			return s.finish(ctx, now, r) // the commit came to the log after all, or that of another attempt did
		case readErr == nil && errors.Is(err, ErrSuperseded): // it cannot be committed any more
		default:
			s.log.Warn("the share set of a failed rekey may still be pending: run the rekey again, or cancel it", "error", err)
			return cause
		}
	}
	var placement *PlacementError
	for _, definite := range []error{ErrSuperseded, ErrOperatorSealed, ErrKeyring, ErrTooLarge} {
		if errors.Is(cause, definite) {
			return cause
		}
	}
	if errors.As(cause, &placement) {
		return cause
	}
	return fmt.Errorf("%w (%v)", ErrGivenUp, cause) // the cause speaks of an unknown outcome, which is known now
}

// Cancel gives up the share set that is pending, if one is, and returns its id. It needs no key.
// Errors: ErrSuperseded when what was pending was committed, or replaced, meanwhile; any other leaves the outcome unknown.
func Cancel(ctx context.Context, ledger Ledger) (set [16]byte, err error) {
	st, err := ledger.State(ctx)
	if err != nil || st.Pending == nil {
		return set, err
	}
	return st.Pending.ID, ledger.Abandon(ctx, st.Pending.ID)
}

// A set's id is for its root key alone: were it used by two attempts of one request, the commit of the first could be
// taken for one of the second's set. So the id begins with what names the request, and ends with what names the attempt.

func attemptID(request [16]byte) [16]byte {
	id := newID()
	copy(id[:], requestMark(request))
	return id
}

// Rekeyed says whether the rekey of that id was committed, and is the last one that was.
func Rekeyed(st State, request [16]byte) bool {
	return st.Committed != nil && isAttempt(st.Committed.ID, request)
}

func isAttempt(set, request [16]byte) bool { return slices.Equal(set[:8], requestMark(request)) }

func requestMark(request [16]byte) []byte {
	h := sha256.Sum256([]byte(label("spike-ha/seal/1/rekey-request", request[:])))
	return h[:8]
}

// Inherited says whether the keys in use were made under a root key of before the one that is in use. Somebody with
// shares of that one and a disk of that time has them, and a Rotate of all that is Rotatable replaces them.
func (s *Seal) Inherited() bool {
	k, err := s.acquire()
	if err != nil {
		return false
	}
	defer k.release()
	return k.inherited
}

// ShareSetInUse is the id of the set whose root key is in use; false while sealed.
func (s *Seal) ShareSetInUse() (set [16]byte, ok bool) {
	k, err := s.acquire()
	if err != nil {
		return set, false
	}
	defer k.release()
	return k.set.ID, true
}
