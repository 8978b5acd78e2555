package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
)

// What the MAC keys are used for; part of their derivation.
const (
	useToken       = "token"
	useAuditPath   = "audit-path"
	useFingerprint = "fingerprint"
)

// Token is the name under which the state machine keeps a record without knowing what it is called: a MAC of kind
// and name under the newest path key. keyID says which key that was. Tokens of different kinds never
// meet. Errors: ErrSealed, ErrTooLarge.
func (s *Seal) Token(kind, name string) (token [32]byte, keyID []byte, err error) {
	return s.mac(Path, nil, []byte(kind), []byte(name))
}

// TokenUnder is Token under an older path key. Errors: as Token, and ErrPurpose when the keyring has no such key.
func (s *Seal) TokenUnder(keyID []byte, kind, name string) (token [32]byte, err error) {
	if len(keyID) != epochIDSize {
		return token, fmt.Errorf("%w: no path key has an id of %d bytes", ErrPurpose, len(keyID))
	}
	token, _, err = s.mac(Path, keyID, []byte(kind), []byte(name))
	return token, err
}

// HashPath is what an audit record says in place of a path: "<key id>.<MAC>", both in hex. Equal paths have equal
// hashes for as long as the audit-path key lives. Errors: ErrSealed, ErrTooLarge.
func (s *Seal) HashPath(path string) (string, error) {
	h, id, err := s.mac(AuditPath, nil, []byte(path))
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(id) + "." + hex.EncodeToString(h[:16]), nil
}

// Fingerprint is a MAC over a list of byte strings, equal only for equal lists, the same on every peer for as long
// as the token-mac key lives. Errors: ErrSealed, ErrTooLarge.
func (s *Seal) Fingerprint(parts ...[]byte) ([32]byte, error) {
	f, _, err := s.mac(TokenMAC, nil, parts...)
	return f, err
}

// mac computes HMAC-SHA-256 over the parts, each behind its length, under an epoch of p (nil: the newest).
func (s *Seal) mac(p Purpose, id []byte, parts ...[]byte) (out [32]byte, keyID []byte, err error) {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	if size > MaxPlaintext || (p != TokenMAC && size > 2*maxName) {
		return out, nil, fmt.Errorf("%w: a name of %d bytes", ErrTooLarge, size)
	}
	k, err := s.acquire()
	if err != nil {
		return out, nil, err
	}
	defer k.release()
	at := k.current[p].id // every keyring has the known purposes: checkKeyring
	if id != nil {
		at = epochID(id)
	}
	macs := k.macs[macKey{at, macUses[p]}]
	if macs == nil {
		return out, nil, fmt.Errorf("%w: the keyring holds no %s key %x", ErrPurpose, p, at)
	}
	h := macs.idle.Get().(hash.Hash)
	var length [4]byte
	erase.Do(func() {
		for _, part := range parts {
			binary.BigEndian.PutUint32(length[:], uint32(len(part)))
			h.Write(length[:])
			h.Write(part)
		}
		h.Sum(out[:0])
		h.Reset() // of the name, too
	})
	macs.idle.Put(h)
	return out, slices.Clone(at[:]), nil
}

// macs are MACs under one key. They are made within erase.Do, and used again and again: a new one holds its key
// twice, under masks.
type macs struct{ idle sync.Pool }

// newMACs leaves key where it is, in locked memory, for as long as the keys that it belongs to are in use.
func newMACs(key []byte) *macs {
	m := &macs{}
	m.idle.New = func() (h any) {
		erase.Do(func() {
			mac := hmac.New(sha256.New, key)
			mac.Reset() // has it remember the states behind the masks instead
			h = mac
		})
		return h
	}
	return m
}
