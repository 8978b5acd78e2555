package seal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// maxReplicated bounds what a rotation puts into the ledger: some 15,000 keys.
const maxReplicated = 1 << 20

// Rotatable lists the purposes whose keys Rotate replaces. A new path key would change every token, and tokens are
// what the state machine keeps records by; a new token-mac key would make the retry of a write look like another
// request, and index tokens foreign. Both live as long as the cluster.
var Rotatable = []Purpose{Archive, AuditPath, Cipher, Data}

// Rotate gives each of the purposes a new key, in one entry of the ledger. From there on it is the one that
// encrypts; those of before open what they sealed. The new keyring is taken into use by Follow, here as everywhere.
// Errors: ErrSealed, ErrOperatorSealed, ErrNotInitialised, ErrPending, ErrSuperseded (another rotation came first),
// ErrStaleState, ErrPurpose, ErrTooLarge; any other leaves the outcome unknown.
func (s *Seal) Rotate(ctx context.Context, ledger Ledger, purposes []Purpose) error {
	for _, p := range purposes {
		if !slices.Contains(Rotatable, p) {
			return fmt.Errorf("%w that can be rotated: %q", ErrPurpose, p)
		}
	}
	return s.change(ctx, ledger, func(ring *sealpb.Keyring) error {
		for _, r := range ring.GetRings() {
			if slices.Contains(purposes, Purpose(r.GetPurpose())) {
				r.Epochs = slices.Insert(r.Epochs, 0, newEpoch(s.cfg.now()))
			}
		}
		if !slices.ContainsFunc(Rotatable, func(p Purpose) bool { return !slices.Contains(purposes, p) }) {
			ring.InheritedFrom = nil // none is in use any more that was made under another root key
		}
		return nil
	})
}

// Archive moves retired keys of a purpose to the archived part of the keyring: nothing live is sealed under them any
// more. Keys that are archived already are left out. Errors: as Rotate, and ErrPurpose for a current or unknown key.
func (s *Seal) Archive(ctx context.Context, ledger Ledger, p Purpose, ids [][]byte) error {
	if len(ids) == 0 {
		return nil
	}
	return s.change(ctx, ledger, func(ring *sealpb.Keyring) error {
		live, archived := ringOf(&ring.Rings, p), ringOf(&ring.Archived, p)
		for _, id := range ids {
			is := func(e *sealpb.Epoch) bool { return bytes.Equal(e.GetId(), id) }
			at := slices.IndexFunc(live.Epochs, is)
			switch {
			case at > 0:
				live.Epochs[at].ArchivedUnixNano = s.cfg.now().UnixNano()
				archived.Epochs = append(archived.Epochs, live.Epochs[at])
				live.Epochs = slices.Delete(live.Epochs, at, at+1)
			case !slices.ContainsFunc(archived.Epochs, is):
				return fmt.Errorf("%w: %x is no retired %s key", ErrPurpose, id, p)
			}
		}
		slices.SortStableFunc(archived.Epochs, func(a, b *sealpb.Epoch) int { return cmp.Compare(b.CreatedUnixNano, a.CreatedUnixNano) })
		return nil
	})
}

// errNothing ends a change of the keyring that would change nothing.
var errNothing = errors.New("seal: there is nothing to change")

// Prune drops the archived keys that left the live peers before a time: for who knows that no archive, disk or backup of
// before then is kept or will be wanted. What is under them opens never again. It returns how many there were.
// Errors: as Rotate.
func (s *Seal) Prune(ctx context.Context, ledger Ledger, before time.Time) (pruned int, err error) {
	err = s.change(ctx, ledger, func(ring *sealpb.Keyring) error {
		pruned = 0
		var kept []*sealpb.Ring
		for _, r := range ring.GetArchived() {
			r.Epochs = slices.DeleteFunc(r.Epochs, func(e *sealpb.Epoch) bool {
				if e.GetArchivedUnixNano() >= before.UnixNano() {
					return false
				}
				locked.Wipe(e.GetKey())
				pruned++
				return true
			})
			if len(r.Epochs) > 0 {
				kept = append(kept, r)
			}
		}
		if pruned == 0 {
			return errNothing
		}
		ring.Archived = kept
		return nil
	})
	if errors.Is(err, errNothing) {
		return 0, nil
	}
	return pruned, err
}

// ringOf is the ring of a purpose, added when there is none.
func ringOf(rings *[]*sealpb.Ring, p Purpose) *sealpb.Ring {
	for _, r := range *rings {
		if Purpose(r.GetPurpose()) == p {
			return r
		}
	}
	r := &sealpb.Ring{Purpose: string(p)}
	*rings = append(*rings, r)
	return r
}

// change edits the keyring and puts it into the ledger.
func (s *Seal) change(ctx context.Context, ledger Ledger, edit func(*sealpb.Keyring) error) error {
	st, err := ledger.State(ctx)
	if err != nil {
		return fmt.Errorf("seal: reading the state before a change of the keyring: %w", err)
	}
	if err := unsealable(st); err != nil {
		return err
	}
	if st.Pending != nil {
		return ErrPending
	}
	k, err := s.acquire()
	if err != nil {
		return err
	}
	defer k.release()
	if !k.belongsTo(st) {
		return ErrStaleState
	}
	ring, err := openKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, st.Keyring)
	if err != nil {
		return err
	}
	defer wipeKeyring(ring)
	if err := edit(ring); err != nil {
		return err
	}
	sealed, err := sealKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, ring)
	if err != nil {
		return err
	}
	if len(sealed) > maxReplicated {
		return fmt.Errorf("%w: the keyring holds too many keys", ErrTooLarge)
	}
	// Nobody could undo the entry of a keyring that does not open.
	opened, err := openKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, sealed)
	if err != nil {
		return err
	}
	wipeKeyring(opened)
	failpoint.Hit(failpoint.SealReplaceBefore)
	if err = ledger.Replace(ctx, st.Committed.ID, st.Keyring, sealed, currentEpochs(ring), st.Generation); err == nil {
		failpoint.Hit(failpoint.SealReplaceAfter)
		return nil
	}
	// It may have reached the log all the same; only the state can tell.
	now, readErr := ledger.State(ctx)
	switch {
	case readErr == nil && bytes.Equal(now.Keyring, sealed):
		return nil
	case errors.Is(err, ErrSuperseded), errors.Is(err, ErrPending), errors.Is(err, ErrOperatorSealed):
		return err
	}
	return fmt.Errorf("seal: replacing the keyring: %w", errors.Join(err, readErr))
}

// Epochs lists the keys of the state's keyring by purpose, newest first, archived ones last.
// Errors: ErrSealed, ErrStaleState, ErrKeyring.
func (s *Seal) Epochs(st State) ([]EpochInfo, error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	if !k.belongsTo(st) {
		return nil, ErrStaleState
	}
	ring, err := openKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, st.Keyring)
	if err != nil {
		return nil, err
	}
	defer wipeKeyring(ring)
	var list []EpochInfo
	add := func(r *sealpb.Ring, status EpochStatus) {
		for i, e := range r.GetEpochs() {
			if i == 1 && status == Current {
				status = Retired
			}
			list = append(list, EpochInfo{Purpose(r.GetPurpose()), slices.Clone(e.GetId()), time.Unix(0, e.GetCreatedUnixNano()).UTC(), status})
		}
	}
	for _, r := range ring.GetRings() {
		add(r, Current)
		for _, a := range ring.GetArchived() {
			if a.GetPurpose() == r.GetPurpose() {
				add(a, Archived)
			}
		}
	}
	return list, nil
}

// RetiredEpochs are the ids of the keys of a purpose that open and no longer seal. Error: ErrSealed.
func (s *Seal) RetiredEpochs(p Purpose) (ids [][]byte, err error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	for id, e := range k.epochs {
		if e.purpose == p && k.current[p] != e {
			ids = append(ids, bytes.Clone(id[:]))
		}
	}
	slices.SortFunc(ids, bytes.Compare)
	return ids, nil
}
