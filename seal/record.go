package seal

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
)

// A sealed record is
//
//	format(1) ‖ epoch id(8) ‖ process id(16) ‖ nonce(12) ‖ AES-256-GCM ciphertext ‖ tag(16)
//
// and its AAD is, each field behind its length in four bytes,
//
//	format(1) ‖ cluster id(16) ‖ kind ‖ token ‖ version(8) ‖ epoch id(8) ‖ process id(16)
//
// The incarnation is not in it, because records outlive a restore.

const (
	recordFormat = 1
	nonceSize    = 12
	tagSize      = 16
	recordHeader = 1 + epochIDSize + processIDSize

	// Overhead is how much longer a sealed record is than its plaintext.
	Overhead = recordHeader + nonceSize + tagSize
	// MaxPlaintext is the longest plaintext one call seals.
	MaxPlaintext = 64 << 20
	// maxName bounds kinds, tokens and names.
	maxName = 4096
)

// The cipher API's records have no place of their own; this kind keeps them apart from all others.
const wireKind = "cipher-api"

// Encrypt seals plaintext for the record that a names, under the newest key of the purpose.
// Errors: ErrSealed, ErrPurpose, ErrTooLarge.
func (s *Seal) Encrypt(p Purpose, a AAD, plaintext []byte) ([]byte, error) {
	if err := checkSizes(a, len(plaintext)); err != nil {
		return nil, err
	}
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	w, err := k.writing()
	if err != nil {
		return nil, err
	}
	c := w.ciphers[p]
	if c == nil {
		return nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	out := make([]byte, 0, len(plaintext)+Overhead)
	out = append(out, recordFormat)
	out = append(out, c.epoch[:]...)
	out = append(out, w.process[:]...)
	aad := additional(k.cluster.ID, a, c.epoch, w.process)
	erase.Do(func() { out = c.aead.Seal(out, nil, plaintext, aad) }) // allocates nothing: there is room
	return out, nil
}

// Decrypt opens what Encrypt sealed for the same purpose and AAD, by this process or any other of the cluster.
// Errors: ErrSealed, and for everything wrong with the bytes alike, ErrOpen.
func (s *Seal) Decrypt(p Purpose, a AAD, sealed []byte) ([]byte, error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	if len(sealed) < Overhead || len(sealed) > MaxPlaintext+Overhead || sealed[0] != recordFormat || checkSizes(a, 0) != nil {
		return nil, ErrOpen
	}
	id, process := epochID(sealed[1:1+epochIDSize]), processID(sealed[1+epochIDSize:recordHeader])
	return k.open(p, id, process, sealed[recordHeader:], additional(k.cluster.ID, a, id, process))
}

// RecordEpoch is the id of the epoch that a record was sealed under, without opening it; nil if it is no record. It
// is a part of the record: many are looked at.
func RecordEpoch(sealed []byte) []byte {
	if len(sealed) < Overhead || sealed[0] != recordFormat {
		return nil
	}
	return sealed[1 : 1+epochIDSize : 1+epochIDSize]
}

// Epoch is the id of the newest key of a purpose. Errors: ErrSealed, ErrPurpose.
func (s *Seal) Epoch(p Purpose) ([]byte, error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	e := k.current[p]
	if e == nil {
		return nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	return slices.Clone(e.id[:]), nil
}

// EncryptWire seals for the cipher API. On the wire the nonce is a field of its own; key id and process id are
// the first 24 bytes of the ciphertext. Errors: ErrSealed, ErrTooLarge.
func (s *Seal) EncryptWire(plaintext []byte) (nonce [nonceSize]byte, ciphertext []byte, err error) {
	sealed, err := s.Encrypt(Cipher, AAD{Kind: wireKind}, plaintext)
	if err != nil {
		return nonce, nil, err
	}
	// format ‖ ids ‖ nonce ‖ rest → ids ‖ rest, in place.
	copy(nonce[:], sealed[recordHeader:])
	copy(sealed[1+nonceSize:], sealed[1:recordHeader])
	return nonce, sealed[1+nonceSize:], nil
}

// WireOverhead is how much longer a ciphertext of EncryptWire is than its plaintext, the nonce not counted.
const WireOverhead = Overhead - 1 - nonceSize

// DecryptWire opens what EncryptWire sealed. Errors: ErrSealed, ErrOpen.
func (s *Seal) DecryptWire(nonce, ciphertext []byte) ([]byte, error) {
	if len(nonce) != nonceSize || len(ciphertext) < WireOverhead || len(ciphertext) > MaxPlaintext+WireOverhead {
		if s.Sealed() {
			return nil, ErrSealed
		}
		return nil, ErrOpen
	}
	sealed := make([]byte, 0, len(ciphertext)+1+nonceSize)
	sealed = append(sealed, recordFormat)
	sealed = append(sealed, ciphertext[:recordHeader-1]...)
	sealed = append(sealed, nonce...)
	sealed = append(sealed, ciphertext[recordHeader-1:]...)
	return s.Decrypt(Cipher, AAD{Kind: wireKind}, sealed)
}

// additional builds the AAD. Every field is there and behind its length: no two records share one.
func additional(cluster [16]byte, a AAD, id epochID, process processID) []byte {
	b := make([]byte, 0, 7*4+1+16+len(a.Kind)+len(a.Token)+8+epochIDSize+processIDSize)
	b = field(b, []byte{recordFormat})
	b = field(b, cluster[:])
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.Kind)))
	b = append(b, a.Kind...)
	b = field(b, a.Token)
	b = binary.BigEndian.AppendUint32(b, 8)
	b = binary.BigEndian.AppendUint64(b, a.Version)
	b = field(b, id[:])
	return field(b, process[:])
}

func field(b, f []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
	return append(b, f...)
}

func checkSizes(a AAD, plaintext int) error {
	if plaintext > MaxPlaintext {
		return fmt.Errorf("%w: %d bytes of plaintext; at most %d fit", ErrTooLarge, plaintext, MaxPlaintext)
	}
	if len(a.Kind) > maxName || len(a.Token) > maxName {
		return fmt.Errorf("%w: a kind or token of more than %d bytes", ErrTooLarge, maxName)
	}
	return nil
}

// newID draws a random id of 16 bytes, the form of cluster and share-set ids.
func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}
