package seal

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// A Keeper proves that it holds its share by the plainest challenge and response there is: a MAC over a fresh nonce,
// under a key derived from the share. Who computes the same MAC needs the share, so a proof tells nothing to
// anybody but an unsealed process, which can compute every share; and nobody else can check one.
//
// The nonce makes it fresh; cluster, incarnation, set, index and the Keeper's name make it the answer of this Keeper
// to this question and to no other.
const useProof = "spike-ha/seal/1/share-proof"

// Proof answers a challenge: HMAC-SHA-256 under HKDF-SHA-256(share) over nonce, slot and the Keeper's name.
func Proof(share []byte, slot Slot, keeper string, nonce [32]byte) (proof [32]byte) {
	erase.Do(func() {
		key := proofKey(share)
		defer locked.Wipe(key)
		proof = respond(key, slot, keeper, nonce)
	})
	return proof
}

func proofKey(share []byte) []byte {
	key, err := hkdf.Key(sha256.New, share, nil, label(useProof), keySize)
	if err != nil {
		panic("seal: a share always has a proof key: " + err.Error())
	}
	return key
}

func respond(key []byte, slot Slot, keeper string, nonce [32]byte) (proof [32]byte) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label(useProof, nonce[:], slot.Cluster.ID[:], binary.BigEndian.AppendUint64(nil, slot.Cluster.Incarnation),
		slot.Set[:], binary.BigEndian.AppendUint32(nil, uint32(slot.Index)), []byte(keeper))))
	h.Sum(proof[:0])
	return proof
}

// proofKeys are those of all shares of a set, computed when first needed: a look at the Keepers, every few seconds,
// then computes no share.
type proofKeys struct {
	mu   sync.Mutex     // guards keys
	keys *locked.Buffer // of share 1 … n, one after the other; nil: not computed yet
}

// proving returns the proof keys of k's share set; they are good for as long as the caller holds its reference to k.
func (k *keys) proving() ([]byte, error) {
	k.proofs.mu.Lock()
	defer k.proofs.mu.Unlock()
	if k.proofs.keys == nil {
		shares, err := k.shares()
		if err != nil {
			return nil, err
		}
		defer destroy(shares)
		k.proofs.keys = locked.New(len(shares) * keySize)
		erase.Do(func() {
			for i, share := range shares {
				key := proofKey(share.Bytes())
				copy(k.proofs.keys.Bytes()[i*keySize:], key)
				locked.Wipe(key)
			}
		})
	}
	return k.proofs.keys.Bytes(), nil
}

// shares computes all shares of the set whose root key k has.
func (k *keys) shares() ([]*locked.Buffer, error) {
	shares, err := split(k.root.Bytes(), k.set.ID, k.set.Shares, k.set.Threshold)
	if err != nil {
		return nil, err
	}
	for i, share := range shares {
		if !k.set.fits(i+1, share.Bytes()) {
			destroy(shares)
			return nil, ErrRoot
		}
	}
	return shares, nil
}

// verifying returns the keys in use, with a reference that the caller releases, when they can tell the right shares of
// the state's committed set. Errors: ErrSealed, ErrStaleState, ErrRoot.
func (s *Seal) verifying(st State) (*keys, error) {
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	switch {
	case !k.belongsTo(st):
		err = ErrStaleState
	case !slices.Equal(k.set.Fingerprints, st.Committed.Fingerprints):
		err = ErrRoot // somebody wrote a set of their own under this id
	default:
		return k, nil
	}
	k.release()
	return nil, err
}

// shares computes all shares of the committed set, which must be the one whose root key is in use. Errors: as verifying.
func (s *Seal) shares(st State) ([]*locked.Buffer, error) {
	k, err := s.verifying(st)
	if err != nil {
		return nil, err
	}
	defer k.release()
	return k.shares()
}

// challenge has one Keeper prove its share.
func challenge(ctx context.Context, st State, a asked, proofs []byte) KeeperReport {
	if a.keeper == nil {
		return withoutAddress(a)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	slot := Slot{st.Cluster, st.Committed.ID, a.index}
	proof, err := a.keeper.Prove(ctx, slot, nonce)
	switch {
	case errors.Is(err, ErrOldKeeper):
		// What releases before could do, and do: the share itself comes. Nothing is gained by claiming to be such a
		// Keeper, which only gives its own share away.
		share, report := fetch(ctx, st, a)
		locked.Wipe(share)
		report.Fetched = true
		return report
	case err != nil:
		return failure(a.name, a.index, err)
	}
	var want [32]byte
	erase.Do(func() { want = respond(proofs[(a.index-1)*keySize:a.index*keySize], slot, a.name, nonce) })
	if subtle.ConstantTimeCompare(proof[:], want[:]) != 1 {
		return KeeperReport{Name: a.name, Index: a.index, Health: Wrong, Detail: "what it gave as proof is not of its share"}
	}
	return KeeperReport{Name: a.name, Index: a.index, Health: Good}
}

// claim asks one Keeper what it says it holds: all that a sealed process can learn without having the share sent.
func claim(ctx context.Context, st State, a asked) KeeperReport {
	if a.keeper == nil {
		return withoutAddress(a)
	}
	slots, err := a.keeper.Holds(ctx)
	if err != nil {
		return failure(a.name, a.index, err)
	}
	r := KeeperReport{Name: a.name, Index: a.index, Health: Held, Detail: "it says that it holds its share; an unsealed peer can have it proven"}
	switch {
	case slices.Contains(slots, Slot{st.Cluster, st.Committed.ID, a.index}):
	case len(slots) == 0:
		r.Health, r.Detail = Empty, ErrNoShare.Error()
	case slices.ContainsFunc(slots, func(s Slot) bool { return s.Cluster.ID != st.Cluster.ID }):
		r.Health, r.Detail = Foreign, ErrForeignSet.Error()
	default:
		r.Health, r.Detail = Stale, ErrOtherSet.Error()
	}
	return r
}

func withoutAddress(a asked) KeeperReport {
	return KeeperReport{Name: a.name, Index: a.index, Health: Unreachable, Detail: "this process has no address for it"}
}
