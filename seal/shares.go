package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/math/polynomial"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Shares are points of a polynomial over the scalar field of P-256, the field SPIKE uses, so that its recovery
// arithmetic and ours agree. The root key is the polynomial at 0, share i its value at i.
//
// circl's arithmetic goes through math/big, which is not constant-time and leaves intermediate values on the Go heap:
// it runs within erase.Do. The timing matters only to somebody who is inside this process already.

const (
	shareSize = 32
	// coefficientBytes is how much key stream is reduced to a scalar: 128 bits more than the field, so that the
	// bias of the reduction is 2^-128.
	coefficientBytes = 48
)

// newRoot draws a root key. Zero is not one, since SPIKE's shares take an all-zero value for "none".
func newRoot() (root *locked.Buffer) {
	erase.Do(func() {
		b, err := group.P256.RandomNonZeroScalar(rand.Reader).MarshalBinary()
		if err != nil {
			panic("seal: a P-256 scalar always has a binary form: " + err.Error())
		}
		root = locked.Take(b)
	})
	return root
}

// split computes share 1 … n. It is a function of its arguments, which is what lets any unsealed peer give a
// Keeper the same share again.
func split(root []byte, set [16]byte, n, t int) (shares []*locked.Buffer, err error) {
	erase.Do(func() { shares, err = splitWithin(root, set, n, t) })
	return shares, err
}

func splitWithin(root []byte, set [16]byte, n, t int) ([]*locked.Buffer, error) {
	coefficients := make([]group.Scalar, t)
	coefficients[0] = group.P256.NewScalar()
	if err := coefficients[0].UnmarshalBinary(root); err != nil {
		return nil, fmt.Errorf("seal: the root key is not a P-256 scalar")
	}
	for i := 1; i < t; i++ {
		stream, err := hkdf.Key(sha256.New, root, nil,
			label("spike-ha/seal/1/share-coefficient", set[:], []byte{byte(t), byte(i)}), coefficientBytes)
		if err != nil {
			return nil, fmt.Errorf("seal: deriving a share: %w", err)
		}
		coefficients[i] = group.P256.NewScalar().SetBigInt(new(big.Int).SetBytes(stream))
		locked.Wipe(stream)
	}
	p := polynomial.New(coefficients)
	shares := make([]*locked.Buffer, n)
	for i := range shares {
		b, err := p.Evaluate(group.P256.NewScalar().SetUint64(uint64(i + 1))).MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("seal: deriving a share: %w", err)
		}
		shares[i] = locked.Take(b)
	}
	return shares, nil
}

// point is a share with its index.
type point struct {
	index int
	share []byte
}

// join recovers the root key from exactly t points of different index. circl counts its threshold one lower, and
// panics on equal indexes.
func join(points []point) (root *locked.Buffer, err error) {
	erase.Do(func() { root, err = joinWithin(points) })
	return root, err
}

func joinWithin(points []point) (*locked.Buffer, error) {
	seen := make(map[int]bool, len(points))
	shares := make([]secretsharing.Share, 0, len(points))
	for _, p := range points {
		if p.index < 1 || p.index > MaxShares || seen[p.index] {
			return nil, fmt.Errorf("%w: index %d", ErrShareIndex, p.index)
		}
		seen[p.index] = true
		value := group.P256.NewScalar()
		if err := value.UnmarshalBinary(p.share); err != nil {
			return nil, fmt.Errorf("%w: share %d is not a P-256 scalar", ErrWrongShare, p.index)
		}
		shares = append(shares, secretsharing.Share{ID: group.P256.NewScalar().SetUint64(uint64(p.index)), Value: value})
	}
	if len(shares) == 0 {
		return nil, fmt.Errorf("%w: no shares", ErrShareSet)
	}
	secret, err := secretsharing.Recover(uint(len(shares)-1), shares)
	if err != nil {
		return nil, fmt.Errorf("seal: recovering the root key: %w", err)
	}
	b, err := secret.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("seal: recovering the root key: %w", err)
	}
	return locked.Take(b), nil
}

// fingerprint identifies a share without giving anything of it away: a share is a uniformly random scalar.
func fingerprint(set [16]byte, index int, share []byte) (f [32]byte) {
	erase.Do(func() { // a hash keeps the end of what it was given
		h := sha256.New()
		h.Write([]byte("spike-ha/seal/1/share-fingerprint\x00"))
		h.Write(set[:])
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(index)))
		h.Write(share)
		h.Sum(f[:0])
	})
	return f
}

// fits says, in constant time, whether share is the one of that index in set.
func (s *ShareSet) fits(index int, share []byte) bool {
	if index < 1 || index > len(s.Fingerprints) || len(share) != shareSize {
		return false
	}
	f := fingerprint(s.ID, index, share)
	return subtle.ConstantTimeCompare(f[:], s.Fingerprints[index-1][:]) == 1
}

// madeFrom says whether the set's shares are those of root: if not, somebody wrote fingerprints of their own.
func (s *ShareSet) madeFrom(root []byte) bool {
	shares, err := split(root, s.ID, s.Shares, s.Threshold)
	if err != nil {
		return false
	}
	defer destroy(shares)
	for i, share := range shares {
		if !s.fits(i+1, share.Bytes()) {
			return false
		}
	}
	return true
}

func destroy(buffers []*locked.Buffer) {
	for _, b := range buffers {
		b.Destroy()
	}
}

// label makes the info of a key derivation: a fixed name and parts, each behind its length, so that no two
// different lists of parts give the same bytes.
func label(name string, parts ...[]byte) string {
	b := append([]byte(name), 0)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return string(b)
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}
