package seal

import (
	"cmp"
	"io"
	"log/slog"
	"slices"

	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// ArchiveStream is EncryptStream under the newest archive key, for what goes into archives. The context is not in the
// stream, and whoever opens it has to name the same.
func (s *Seal) ArchiveStream(dst io.Writer, context []byte) (io.WriteCloser, error) {
	return s.encryptStream(archiveStream, dst, context)
}

// OpenArchive is DecryptStream for what was written to an ArchiveStream with the same context, by any process of the
// cluster under any archive key that the keyring still has.
func (s *Seal) OpenArchive(src io.Reader, context []byte) (io.Reader, error) {
	return s.decryptStream(archiveStream, src, context)
}

// Reinstate makes a keyring for a cluster that begins again from an archive: that of st, with the archived keys among those
// that decrypt, because the records of an older state may be under them. What is under a retired key is re-encrypted once the cluster serves, and the key archived
// again. The keys in use must be of st's share set. The new keyring is not in use here until Follow gets a state that has it.
// Errors: ErrNotInitialised, ErrSealed, ErrStaleState, ErrKeyring, ErrTooLarge.
func (s *Seal) Reinstate(st State) (keyring []byte, epochs []Epoch, err error) {
	if st.Committed == nil {
		return nil, nil, ErrNotInitialised
	}
	k, err := s.acquire()
	if err != nil {
		return nil, nil, err
	}
	defer k.release()
	if !k.belongsTo(st) {
		return nil, nil, ErrStaleState
	}
	ring, err := openKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, st.Keyring)
	if err != nil {
		return nil, nil, err
	}
	defer wipeKeyring(ring)
	for _, r := range ring.GetArchived() {
		live := ringOf(&ring.Rings, Purpose(r.GetPurpose()))
		retired := slices.Concat(live.Epochs[1:], r.GetEpochs())
		slices.SortStableFunc(retired, func(a, b *sealpb.Epoch) int { return cmp.Compare(b.CreatedUnixNano, a.CreatedUnixNano) })
		live.Epochs = append(live.Epochs[:1:1], retired...)
	}
	ring.Archived = nil
	epochs = currentEpochs(ring)
	if keyring, err = sealKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, ring); err != nil {
		return nil, nil, err
	}
	if len(keyring) > maxReplicated {
		return nil, nil, ErrTooLarge
	}
	opened, err := openKeyring(k.root.Bytes(), st.Cluster, st.Committed.ID, keyring)
	if err != nil {
		return nil, nil, err
	}
	wipeKeyring(opened)
	return keyring, epochs, nil
}

// Reinstated makes a Seal of its own that uses what Reinstate makes of st, for whoever reads an archive in a process that
// serves: its keys reach further than those in use here. It is locked with this one, or by the caller when he is done. The
// state is st with that keyring. Errors: as Reinstate.
func (s *Seal) Reinstated(st State) (*Seal, State, error) {
	ticket := s.ticket()
	keyring, epochs, err := s.Reinstate(st)
	if err != nil {
		return nil, st, err
	}
	k, err := s.acquire()
	if err != nil {
		return nil, st, err
	}
	defer k.release()
	if !k.belongsTo(st) {
		return nil, st, ErrStaleState
	}
	st.Keyring, st.Epochs = keyring, epochs
	fresh, err := newKeys(k.copyRoot(), st, s.cfg.encryptCap)
	if err != nil {
		return nil, st, err
	}
	r := &Seal{cfg: s.cfg, log: slog.New(slog.DiscardHandler), from: s}
	r.keys.Store(fresh)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks != ticket {
		fresh.release()
		return nil, st, ErrSealed
	}
	if s.lent == nil {
		s.lent = make(map[*Seal]struct{})
	}
	s.lent[r] = struct{}{}
	return r, st, nil
}
