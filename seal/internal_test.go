package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"testing"
	"time"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

func drawPoints(shares []*locked.Buffer, order []int) []point {
	points := make([]point, len(order))
	for i, at := range order {
		points[i] = point{at + 1, shares[at].Bytes()}
	}
	return points
}

func TestAnyThresholdRecoversAndFewerDoNot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		k := rapid.IntRange(1, n).Draw(t, "t")
		root := newRoot()
		defer root.Destroy()
		set := newID()
		shares, err := split(root.Bytes(), set, n, k)
		if err != nil {
			t.Fatal(err)
		}
		defer destroy(shares)
		again, err := split(root.Bytes(), set, n, k)
		if err != nil {
			t.Fatal(err)
		}
		defer destroy(again)
		for i := range shares {
			if !bytes.Equal(shares[i].Bytes(), again[i].Bytes()) {
				t.Fatal("the same root key and set gave two different shares")
			}
		}
		order := rapid.Permutation(indexes(n)).Draw(t, "order")
		got, err := join(drawPoints(shares, order[:k]))
		if err != nil || !bytes.Equal(got.Bytes(), root.Bytes()) {
			t.Fatal("a threshold of shares did not recover the root key", err)
		}
		got.Destroy()
		if k > 1 {
			few, err := join(drawPoints(shares, order[:k-1]))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(few.Bytes(), root.Bytes()) {
				t.Fatal("fewer shares than the threshold recovered the root key")
			}
			few.Destroy()
		}
		// SPIKE's own arithmetic agrees: circl's threshold counts one lower.
		var theirs []secretsharing.Share
		for _, at := range order {
			value := group.P256.NewScalar()
			if err := value.UnmarshalBinary(shares[at].Bytes()); err != nil {
				t.Fatal(err)
			}
			theirs = append(theirs, secretsharing.Share{ID: group.P256.NewScalar().SetUint64(uint64(at + 1)), Value: value})
		}
		secret, err := secretsharing.Recover(uint(k-1), theirs)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := secret.MarshalBinary(); !bytes.Equal(b, root.Bytes()) {
			t.Fatal("circl recovers another root key")
		}
		// A fingerprint fits one share, at one index, of one set.
		f := ShareSet{ID: set, Shares: n, Threshold: k}
		for i, s := range shares {
			f.Fingerprints = append(f.Fingerprints, fingerprint(set, i+1, s.Bytes()))
		}
		at := order[0]
		bit := rapid.IntRange(0, 255).Draw(t, "bit")
		flipped := bytes.Clone(shares[at].Bytes())
		flipped[bit/8] ^= 1 << (bit % 8)
		other := f
		other.ID = newID()
		switch {
		case !f.fits(at+1, shares[at].Bytes()):
			t.Fatal("a share does not fit its fingerprint")
		case f.fits(at+1, flipped), other.fits(at+1, shares[at].Bytes()), f.fits(0, shares[at].Bytes()),
			f.fits(n+1, shares[at].Bytes()), f.fits(at+1, nil), n > 1 && k > 1 && f.fits(order[1]+1, shares[at].Bytes()):
			t.Fatal("a wrong share fits")
		case !f.madeFrom(root.Bytes()):
			t.Fatal("the set is not made from its root key")
		}
		f.Fingerprints[at][0] ^= 1
		if f.madeFrom(root.Bytes()) {
			t.Fatal("an altered set is made from the root key")
		}
	})
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestJoinRefusesWhatWouldPanic(t *testing.T) {
	t.Parallel()
	root := newRoot()
	shares, err := split(root.Bytes(), newID(), 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	s := shares[0].Bytes()
	tooBig := bytes.Repeat([]byte{0xff}, 32)
	for name, points := range map[string][]point{
		"twice":        {{1, s}, {1, s}},
		"index 0":      {{0, s}, {1, s}},
		"negative":     {{-1, s}, {1, s}},
		"index 256":    {{256, s}, {1, s}},
		"none":         {},
		"no scalar":    {{1, tooBig}, {2, s}},
		"short":        {{1, s[:31]}, {2, s}},
		"empty share":  {{1, nil}, {2, s}},
		"longer share": {{1, append(bytes.Clone(s), 0)}, {2, s}},
	} {
		if _, err := join(points); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func quietSeal(c Config) *Seal {
	c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	return New(c)
}

// unsealedFor installs fresh keys without Keepers.
func unsealedFor(t testing.TB, c Config) *Seal {
	t.Helper()
	s := quietSeal(c)
	root := newRoot()
	cluster, set := ClusterRef{ID: newID(), Incarnation: 1}, ShareSet{ID: newID(), Shares: 1, Threshold: 1}
	ring, err := sealKeyring(root.Bytes(), cluster, set.ID, newKeyring(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKeys(root, State{Cluster: cluster, Committed: &set, Keyring: ring}, s.cfg.encryptCap)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.install(k, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Lock)
	return s
}

func TestProcessIDIsReplacedBeforeItWearsOut(t *testing.T) {
	t.Parallel()
	s := unsealedFor(t, Config{encryptCap: 10})
	processes := make(map[string]int)
	var blobs [][]byte
	for range 35 {
		b, err := s.Encrypt(Data, AAD{}, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		processes[string(b[1+epochIDSize:recordHeader])]++
		blobs = append(blobs, b)
	}
	if len(processes) != 4 {
		t.Errorf("%d process ids for 35 encryptions of 10 each", len(processes))
	}
	for p, n := range processes {
		if n > 10 {
			t.Errorf("%x was used %d times", p, n)
		}
	}
	for _, b := range blobs {
		if _, err := s.Decrypt(Data, AAD{}, b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCipherCacheIsBoundedAndUnpolluted(t *testing.T) {
	t.Parallel()
	s := unsealedFor(t, Config{encryptCap: 1}) // each record is by a process of its own
	k := s.keys.Load()
	for range maxCiphers + 50 {
		b, err := s.Encrypt(Data, AAD{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Decrypt(Data, AAD{}, b); err != nil {
			t.Fatal(err)
		}
		b[10] ^= 1 // a process that never was
		if _, err := s.Decrypt(Data, AAD{}, b); err != ErrOpen {
			t.Fatal(err)
		}
	}
	if n := len(k.ciphers); n != maxCiphers {
		t.Errorf("%d cached ciphers", n)
	}
}

// Keys are wiped when the last user is done, not before.
func TestKeysAreWipedAfterTheLastUse(t *testing.T) {
	t.Parallel()
	s := unsealedFor(t, Config{})
	k, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	s.Lock()
	if bytes.Equal(k.root.Bytes(), make([]byte, keySize)) {
		t.Fatal("wiped under a user")
	}
	k.release()
	if k.root.Bytes() != nil || k.secret.Bytes() != nil || k.retain() {
		t.Fatal("key memory survived its last user")
	}
}

// After another peer has rotated the keyring, an unsealed process follows with the root key it has; what was
// sealed before still opens, and new records use the new epoch.
func TestFollowsARotatedKeyring(t *testing.T) {
	t.Parallel()
	s := quietSeal(Config{})
	defer s.Lock()
	root := newRoot()
	secret := bytes.Clone(root.Bytes())
	st := State{Cluster: ClusterRef{ID: newID(), Incarnation: 1}, Committed: &ShareSet{ID: newID(), Shares: 1, Threshold: 1,
		Fingerprints: make([][32]byte, 1), Keepers: []string{"none that could be asked"}}}
	ring := newKeyring(time.Now())
	wrap := func() []byte {
		sealed, err := sealKeyring(secret, st.Cluster, st.Committed.ID, ring)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	st.Keyring = wrap()
	k, err := newKeys(root, st, maxEncryptions)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.install(k, 0); err != nil {
		t.Fatal(err)
	}
	old, err := s.Encrypt(Data, AAD{}, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	token, oldKey, _ := s.Token("k", "n")

	next := newKeyring(time.Now())
	for i, r := range ring.Rings {
		r.Epochs = append(next.Rings[i].Epochs, r.Epochs...)
	}
	good := st
	good.Keyring = wrap()
	bad := good
	bad.Keyring = append(bytes.Clone(good.Keyring), 0)
	if err := s.Follow(bad); !errors.Is(err, ErrKeyring) || s.Sealed() {
		t.Fatalf("a bad keyring: %v, sealed %v", err, s.Sealed())
	}
	for range 2 {
		if err := s.Follow(good); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Unseal(t.Context(), good, nil); err != nil { // nobody is asked
		t.Fatal(err)
	}
	if got, err := s.Decrypt(Data, AAD{}, old); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
	fresh, err := s.Encrypt(Data, AAD{}, nil)
	if err != nil || bytes.Equal(RecordEpoch(fresh), RecordEpoch(old)) {
		t.Fatal("the new epoch is not used", err)
	}
	if id, err := s.Epoch(Data); err != nil || !bytes.Equal(id, RecordEpoch(fresh)) {
		t.Fatal(id, err)
	}
	newToken, newKey, _ := s.Token("k", "n")
	if newToken == token || bytes.Equal(newKey, oldKey) {
		t.Fatal("the new path key is not used")
	}
	if back, err := s.TokenUnder(oldKey, "k", "n"); err != nil || back != token {
		t.Fatal("the old path key is lost", err)
	}
}

func TestKeyringIsStrict(t *testing.T) {
	t.Parallel()
	ring := newKeyring(time.Now())
	good, err := encodeKeyring(ring)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeKeyring(good); err != nil {
		t.Fatal(err)
	}
	short := newKeyring(time.Now())
	short.Rings = short.Rings[1:]
	twice := newKeyring(time.Now())
	twice.Rings[1].Epochs[0].Id = twice.Rings[0].Epochs[0].Id
	weak := newKeyring(time.Now())
	weak.Rings[1].Epochs[0].Key = weak.Rings[1].Epochs[0].Key[:16]
	bare := newKeyring(time.Now())
	bare.Rings[1].Epochs = nil
	encode := func(ring *sealpb.Keyring) []byte {
		b, err := encodeKeyring(ring)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"a purpose is missing": encode(short),
		"an id twice":          encode(twice),
		"a short key":          encode(weak),
		"no epoch":             encode(bare),
		"an unknown field":     append(bytes.Clone(good), 0x78, 1),
		"rubbish":              []byte("rubbish"),
		"empty":                nil,
		"cut":                  good[:len(good)-1],
	} {
		if _, err := decodeKeyring(b); !errors.Is(err, ErrKeyring) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzKeyring(f *testing.F) {
	good, err := encodeKeyring(newKeyring(time.Unix(1, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ring, err := decodeKeyring(b)
		if err != nil {
			return
		}
		again, err := encodeKeyring(ring)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatal("what was accepted encodes differently", err)
		}
	})
}

func FuzzSealedKeyring(f *testing.F) {
	root := newRoot()
	c, set := ClusterRef{Incarnation: 1}, newID()
	good, err := sealKeyring(root.Bytes(), c, set, newKeyring(time.Unix(1, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := openKeyring(root.Bytes(), c, set, b); err == nil && !bytes.Equal(b, good) {
			t.Fatal("a forged keyring opened")
		}
	})
}

func FuzzRecord(f *testing.F) {
	s := unsealedFor(f, Config{})
	good, err := s.Encrypt(Data, AAD{Kind: "k"}, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	nonce, ct, err := s.EncryptWire([]byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, nonce[:])
	f.Add(ct, nonce[:])
	f.Fuzz(func(t *testing.T, b, n []byte) {
		if _, err := s.Decrypt(Data, AAD{Kind: "k"}, b); err == nil && !bytes.Equal(b, good) {
			t.Fatal("a forged record opened")
		}
		if _, err := s.DecryptWire(n, b); err == nil && !(bytes.Equal(b, ct) && bytes.Equal(n, nonce[:])) {
			t.Fatal("a forged wire ciphertext opened")
		}
		RecordEpoch(b)
	})
}

func FuzzJoin(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1}, 33*3))
	f.Fuzz(func(t *testing.T, b []byte) {
		var points []point
		for len(b) >= 33 && len(points) < 20 {
			points = append(points, point{int(b[0]), b[1:33]})
			b = b[33:]
		}
		if root, err := join(points); err == nil {
			if new(big.Int).SetBytes(root.Bytes()).BitLen() > 256 {
				t.Fatal("impossible root key")
			}
			root.Destroy()
		}
	})
}

// archivedKeyring is the plaintext of a keyring with an archived data key: its encoding is for ever.
func archivedKeyring() *sealpb.Keyring {
	ring := &sealpb.Keyring{}
	for i, p := range purposes {
		ring.Rings = append(ring.Rings, &sealpb.Ring{Purpose: string(p), Epochs: []*sealpb.Epoch{
			{Id: bytes.Repeat([]byte{byte(i + 1)}, epochIDSize), Key: bytes.Repeat([]byte{byte(0x10 + i)}, keySize), CreatedUnixNano: int64(1000 + i)}}})
	}
	ring.Archived = []*sealpb.Ring{{Purpose: string(Data), Epochs: []*sealpb.Epoch{
		{Id: bytes.Repeat([]byte{0xa1}, epochIDSize), Key: bytes.Repeat([]byte{0xa2}, keySize), CreatedUnixNano: 7}}}}
	return ring
}

const archivedKeyringSum = "ba234363be951204e6f1034f0cc1039678281aa961f4e863a7e904045f9537ed"

func TestKeyringWithArchivedKeys(t *testing.T) {
	t.Parallel()
	plain, err := encodeKeyring(archivedKeyring())
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum(plain)); got != archivedKeyringSum {
		t.Errorf("the encoding changed: %s", got)
	}
	if _, err := decodeKeyring(bytes.Clone(plain)); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*sealpb.Keyring){
		"an archived key twice":   func(r *sealpb.Keyring) { r.Archived[0].Epochs = append(r.Archived[0].Epochs, r.Archived[0].Epochs[0]) },
		"live and archived":       func(r *sealpb.Keyring) { r.Archived[0].Epochs[0].Id = r.Rings[3].Epochs[0].Id },
		"a purpose without keys":  func(r *sealpb.Keyring) { r.Archived[0].Epochs = nil },
		"a short archived key":    func(r *sealpb.Keyring) { r.Archived[0].Epochs[0].Key = []byte("short") },
		"archived purposes twice": func(r *sealpb.Keyring) { r.Archived = append(r.Archived, archivedKeyring().Archived...) },
	} {
		ring := archivedKeyring()
		edit(ring)
		plain, err := encodeKeyring(ring)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeKeyring(plain); !errors.Is(err, ErrKeyring) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The keys of before go when nobody can have a record in hand any more.
func TestKeysOfBeforeLinger(t *testing.T) {
	t.Parallel()
	s := quietSeal(Config{linger: time.Hour})
	defer s.Lock()
	st := State{Cluster: ClusterRef{ID: newID(), Incarnation: 1}, Committed: &ShareSet{ID: newID()}}
	make := func() *keys {
		root := newRoot()
		sealed, err := sealKeyring(root.Bytes(), st.Cluster, st.Committed.ID, newKeyring(time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		st.Keyring = sealed
		k, err := newKeys(root, st, maxEncryptions)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.install(k, 0); err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := make()
	old, err := s.Encrypt(Data, AAD{}, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	second := make()
	if _, err := s.Decrypt(Data, AAD{}, old); err != nil {
		t.Fatal(err)
	}
	second.forget()
	if _, err := s.Decrypt(Data, AAD{}, old); !errors.Is(err, ErrOpen) || first.root.Bytes() != nil {
		t.Fatal("the keys of before are still there: ", err)
	}
	third := make()
	s.Lock()
	if second.root.Bytes() != nil || third.root.Bytes() != nil {
		t.Fatal("keys of before outlive a lock")
	}
}
