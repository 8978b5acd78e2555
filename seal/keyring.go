package seal

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// A sealed keyring is
//
//	format(1) ‖ nonce(12) ‖ AES-256-GCM(sealpb.Keyring) ‖ tag(16)
//
// under HKDF-SHA-256(root key; cluster id, incarnation, share set), the same three being the AAD as well.

const (
	keyringFormat = 1
	epochIDSize   = 8
	keySize       = 32
	// maxKeyring bounds what is opened: 6 purposes with thousands of epochs each.
	maxKeyring   = 4 << 20
	maxEpochs    = 1 << 15
	keyringExtra = 1 + nonceSize + tagSize
)

// newKeyring draws one epoch per purpose.
func newKeyring(now time.Time) *sealpb.Keyring {
	ring := &sealpb.Keyring{}
	for _, p := range purposes {
		ring.Rings = append(ring.Rings, &sealpb.Ring{Purpose: string(p), Epochs: []*sealpb.Epoch{newEpoch(now)}})
	}
	return ring
}

func newEpoch(now time.Time) (e *sealpb.Epoch) {
	erase.Do(func() {
		e = &sealpb.Epoch{Id: make([]byte, epochIDSize), Key: make([]byte, keySize), CreatedUnixNano: now.UnixNano()}
		rand.Read(e.Id) // never fails: the runtime stops the process instead
		rand.Read(e.Key)
	})
	return e
}

func wipeKeyring(ring *sealpb.Keyring) {
	for _, r := range slices.Concat(ring.GetRings(), ring.GetArchived()) {
		for _, e := range r.GetEpochs() {
			locked.Wipe(e.GetKey())
		}
	}
}

func currentEpochs(ring *sealpb.Keyring) []Epoch {
	var out []Epoch
	for _, r := range ring.GetRings() {
		out = append(out, Epoch{Purpose: Purpose(r.GetPurpose()), ID: slices.Clone(r.GetEpochs()[0].GetId())})
	}
	return out
}

func keyringContext(c ClusterRef, set [16]byte) [][]byte {
	return [][]byte{c.ID[:], binary.BigEndian.AppendUint64(nil, c.Incarnation), set[:]}
}

func keyringCipher(root []byte, c ClusterRef, set [16]byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, root, nil, label("spike-ha/seal/1/keyring-key", keyringContext(c, set)...), keySize)
	if err != nil {
		return nil, fmt.Errorf("seal: deriving the keyring key: %w", err)
	}
	defer locked.Wipe(key)
	return newGCM(key)
}

// sealKeyring makes the bytes that go into the ledger.
func sealKeyring(root []byte, c ClusterRef, set [16]byte, ring *sealpb.Keyring) (sealed []byte, err error) {
	erase.Do(func() { sealed, err = sealKeyringWithin(root, c, set, ring) })
	return slices.Clone(sealed), err
}

func sealKeyringWithin(root []byte, c ClusterRef, set [16]byte, ring *sealpb.Keyring) ([]byte, error) {
	aead, err := keyringCipher(root, c, set)
	if err != nil {
		return nil, err
	}
	plain, err := encodeKeyring(ring)
	if err != nil {
		return nil, err
	}
	defer locked.Wipe(plain)
	aad := label("spike-ha/seal/1/keyring", keyringContext(c, set)...)
	return aead.Seal([]byte{keyringFormat}, nil, plain, []byte(aad)), nil
}

// openKeyring undoes sealKeyring; every failure wraps ErrKeyring.
func openKeyring(root []byte, c ClusterRef, set [16]byte, sealed []byte) (ring *sealpb.Keyring, err error) {
	erase.Do(func() { ring, err = openKeyringWithin(root, c, set, sealed) })
	return ring, err
}

func openKeyringWithin(root []byte, c ClusterRef, set [16]byte, sealed []byte) (*sealpb.Keyring, error) {
	switch {
	case len(sealed) < keyringExtra || len(sealed) > maxKeyring:
		return nil, fmt.Errorf("%w: it has %d bytes", ErrKeyring, len(sealed))
	case sealed[0] != keyringFormat:
		return nil, fmt.Errorf("%w: format %d is unknown to this version", ErrKeyring, sealed[0])
	}
	aead, err := keyringCipher(root, c, set)
	if err != nil {
		return nil, err
	}
	aad := label("spike-ha/seal/1/keyring", keyringContext(c, set)...)
	plain, err := aead.Open(nil, nil, sealed[1:], []byte(aad))
	if err != nil {
		return nil, ErrKeyring
	}
	defer locked.Wipe(plain)
	return decodeKeyring(plain)
}

func encodeKeyring(ring *sealpb.Keyring) ([]byte, error) {
	for _, rings := range [][]*sealpb.Ring{ring.Rings, ring.Archived} {
		slices.SortFunc(rings, func(a, b *sealpb.Ring) int { return cmp.Compare(a.Purpose, b.Purpose) })
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(ring)
	if err != nil {
		return nil, fmt.Errorf("seal: encoding the keyring: %w", err)
	}
	return b, nil
}

// decodeKeyring is strict: what it accepts encodes to the same bytes, so nothing rides along unseen.
func decodeKeyring(plain []byte) (*sealpb.Keyring, error) {
	ring := &sealpb.Keyring{}
	// Discarded here, unknown fields are missed by the comparison with the encoding in checkKeyring.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(plain, ring); err != nil {
		return nil, fmt.Errorf("%w: it is not a keyring", ErrKeyring) // the cause could quote key bytes
	}
	if err := checkKeyring(ring, plain); err != nil {
		wipeKeyring(ring)
		return nil, err
	}
	return ring, nil
}

func checkKeyring(ring *sealpb.Keyring, plain []byte) error {
	ids := make(map[string]bool)
	have := make(map[Purpose]bool)
	for _, rings := range [][]*sealpb.Ring{ring.GetRings(), ring.GetArchived()} {
		last := ""
		for _, r := range rings {
			if r.GetPurpose() <= last || len(r.GetPurpose()) > 64 || len(r.GetEpochs()) == 0 {
				return fmt.Errorf("%w: its purposes are not in order", ErrKeyring)
			}
			last = r.GetPurpose()
			for _, e := range r.GetEpochs() {
				if len(e.GetId()) != epochIDSize || len(e.GetKey()) != keySize || ids[string(e.GetId())] {
					return fmt.Errorf("%w: it has an impossible epoch", ErrKeyring)
				}
				ids[string(e.GetId())] = true
			}
		}
	}
	for _, r := range ring.GetRings() {
		have[Purpose(r.GetPurpose())] = true
	}
	for _, p := range purposes {
		if !have[p] {
			return fmt.Errorf("%w: it has no key for %s", ErrKeyring, p)
		}
	}
	if n := len(ring.GetInheritedFrom()); n != 0 && n != 16 {
		return fmt.Errorf("%w: the share set that its keys were made under has no id", ErrKeyring)
	}
	if len(ids) > maxEpochs {
		return fmt.Errorf("%w: it has %d epochs", ErrKeyring, len(ids))
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(ring)
	defer locked.Wipe(again)
	if err != nil || !bytes.Equal(again, plain) {
		return fmt.Errorf("%w: it is not in canonical form", ErrKeyring)
	}
	return nil
}

// newGCM is AES-256-GCM that draws a fresh random nonce for each Seal and puts it in front of the ciphertext.
func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead, nil
}
