package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

const (
	processIDSize = 16
	// maxEncryptions per process id. NIST SP 800-38D allows 2^32 random nonces of 96 bits under one key; half
	// of that leaves room for whatever was not counted.
	maxEncryptions = 1 << 31
	// maxCiphers bounds the cache of derived keys for decryption; each entry costs about 1 KiB. There is one per
	// restart of a peer and epoch.
	maxCiphers = 2048
)

type (
	epochID   [epochIDSize]byte
	processID [processIDSize]byte
)

// epoch is one key of the keyring.
type epoch struct {
	id      epochID
	purpose Purpose
	key     []byte // in keys.secret
}

// keys is everything derived from one root key and one keyring. It is immutable but for its caches, counted by
// reference, and wiped when the last reference goes.
type keys struct {
	refs atomic.Int64

	cluster    ClusterRef
	set        ShareSet
	keyringSum [32]byte
	inherited  bool // the epochs in use were made under a root key of before

	root    *locked.Buffer
	secret  *locked.Buffer     // all epoch keys, then the MAC keys
	epochs  map[epochID]*epoch // every epoch
	current map[Purpose]*epoch // the newest of each purpose
	macs    map[macKey]*macs   // of every epoch of the MAC purposes
	limit   uint64             // encryptions per process id
	writer  atomic.Pointer[writer]
	renewal sync.Mutex // held while a new writer is made
	proofs  proofKeys

	// prior is what these keys took the place of, for operations that still have records in hand which are under a
	// key that is archived now; nil after a while.
	prior atomic.Pointer[keys]

	mu      sync.RWMutex              // guards ciphers
	ciphers map[cipherKey]cipher.AEAD // derived keys that have opened something
}

type cipherKey struct {
	epoch   epochID
	process processID
}

type macKey struct {
	epoch epochID
	use   string
}

// writer is what this process encrypts with: one process id, its subkeys, and the count of their use.
type writer struct {
	process processID
	used    atomic.Uint64
	ciphers map[Purpose]*writeCipher
}

type writeCipher struct {
	epoch epochID
	aead  cipher.AEAD
}

// macUses says which MACs are computed under which purpose.
var macUses = map[Purpose]string{Path: useToken, AuditPath: useAuditPath, TokenMAC: useFingerprint}

// newKeys opens the keyring of st under root, which it takes over. One reference belongs to the caller.
func newKeys(root *locked.Buffer, st State, limit uint64) (*keys, error) {
	ring, err := openKeyring(root.Bytes(), st.Cluster, st.Committed.ID, st.Keyring)
	if err != nil {
		root.Destroy()
		return nil, err
	}
	defer wipeKeyring(ring)
	k := &keys{
		cluster: st.Cluster, set: *st.Committed, keyringSum: [32]byte(sum(st.Keyring)), inherited: len(ring.GetInheritedFrom()) > 0,
		root: root, limit: limit,
		epochs: make(map[epochID]*epoch), current: make(map[Purpose]*epoch),
		macs: make(map[macKey]*macs), ciphers: make(map[cipherKey]cipher.AEAD),
	}
	k.refs.Store(1)
	erase.Do(func() { err = k.load(ring) })
	if err != nil {
		k.release()
		return nil, err
	}
	w, err := k.newWriter()
	if err != nil {
		k.release()
		return nil, err
	}
	k.writer.Store(w)
	return k, nil
}

// load moves the keyring into locked memory and derives the MAC keys.
func (k *keys) load(ring *sealpb.Keyring) error {
	size := 0
	for _, r := range ring.GetRings() {
		size += len(r.GetEpochs()) * keySize
		if macUses[Purpose(r.GetPurpose())] != "" {
			size += len(r.GetEpochs()) * keySize
		}
	}
	k.secret = locked.New(size)
	free := k.secret.Bytes()
	store := func(key []byte) []byte {
		at := free[:keySize:keySize]
		free = free[keySize:]
		copy(at, key)
		return at
	}
	for _, r := range ring.GetRings() {
		p := Purpose(r.GetPurpose())
		for i, e := range r.GetEpochs() {
			ep := &epoch{id: epochID(e.GetId()), purpose: p, key: store(e.GetKey())}
			k.epochs[ep.id] = ep
			if i == 0 {
				k.current[p] = ep
			}
			if use := macUses[p]; use != "" {
				derived, err := hkdf.Key(sha256.New, ep.key, nil, label("spike-ha/seal/1/mac-key", []byte(use), ep.id[:]), keySize)
				if err != nil {
					return fmt.Errorf("seal: deriving a MAC key: %w", err)
				}
				k.macs[macKey{ep.id, use}] = newMACs(store(derived))
				locked.Wipe(derived)
			}
		}
	}
	return nil
}

// copyRoot is the root key in a buffer of its own.
func (k *keys) copyRoot() *locked.Buffer {
	root := locked.New(len(k.root.Bytes()))
	erase.Do(func() { copy(root.Bytes(), k.root.Bytes()) }) // through registers
	return root
}

// retain adds a reference unless the last one is gone.
func (k *keys) retain() bool {
	for {
		n := k.refs.Load()
		if n == 0 {
			return false
		}
		if k.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives a reference back; the last one wipes.
func (k *keys) release() {
	if k.refs.Add(-1) != 0 {
		return
	}
	k.forget()
	k.root.Destroy()
	k.secret.Destroy()
	k.proofs.keys.Destroy()
	k.writer.Store(nil)
	k.macs = nil
	k.mu.Lock()
	k.ciphers = nil
	k.mu.Unlock()
	erase.Soon() // ciphers and MACs are on the heap
}

// forget lets go of the keys of before.
func (k *keys) forget() {
	if p := k.prior.Swap(nil); p != nil {
		p.release()
	}
}

// derive makes the subkey of one process under one epoch.
func (e *epoch) derive(process processID) (aead cipher.AEAD, err error) {
	erase.Do(func() {
		var key []byte
		key, err = hkdf.Key(sha256.New, e.key, nil, label("spike-ha/seal/1/record-key", []byte(e.purpose), e.id[:], process[:]), keySize)
		if err != nil {
			err = fmt.Errorf("seal: deriving a record key: %w", err)
			return
		}
		aead, err = newGCM(key)
		locked.Wipe(key)
	})
	return aead, err
}

func (k *keys) newWriter() (*writer, error) {
	w := &writer{ciphers: make(map[Purpose]*writeCipher, len(k.current))}
	rand.Read(w.process[:])
	for p, e := range k.current {
		aead, err := e.derive(w.process)
		if err != nil {
			return nil, err
		}
		w.ciphers[p] = &writeCipher{epoch: e.id, aead: aead}
	}
	return w, nil
}

// writing counts one encryption and returns what to encrypt with. The count is of the process id as a whole,
// which is stricter than of each of its subkeys.
func (k *keys) writing() (*writer, error) {
	w := k.writer.Load()
	if w.used.Add(1) <= k.limit {
		return w, nil
	}
	k.renewal.Lock()
	defer k.renewal.Unlock()
	if w = k.writer.Load(); w.used.Add(1) <= k.limit {
		return w, nil // somebody else renewed it meanwhile
	}
	w, err := k.newWriter()
	if err != nil {
		return nil, err
	}
	w.used.Store(1)
	k.writer.Store(w)
	return w, nil
}

// open decrypts what process sealed under an epoch of purpose p. A derived key enters the cache only once it has
// opened something, so that made-up process ids cannot push the useful ones out.
func (k *keys) open(p Purpose, id epochID, process processID, sealed, aad []byte) ([]byte, error) {
	e := k.epochs[id]
	if e == nil {
		if prior := k.prior.Load(); prior != nil && prior.retain() {
			defer prior.release()
			return prior.open(p, id, process, sealed, aad)
		}
	}
	if e == nil || e.purpose != p {
		return nil, ErrOpen
	}
	at := cipherKey{id, process}
	k.mu.RLock()
	aead, cached := k.ciphers[at]
	k.mu.RUnlock()
	if !cached {
		var err error
		if aead, err = e.derive(process); err != nil {
			return nil, err
		}
	}
	if len(sealed) < nonceSize+tagSize {
		return nil, ErrOpen
	}
	plain := make([]byte, 0, len(sealed)-nonceSize-tagSize)
	var err error
	erase.Do(func() { plain, err = aead.Open(plain, nil, sealed, aad) }) // allocates nothing: there is room
	if err != nil {
		return nil, ErrOpen
	}
	if !cached {
		k.mu.Lock()
		if len(k.ciphers) >= maxCiphers {
			for old := range k.ciphers { // any one will do: what is in use comes back
				delete(k.ciphers, old)
				break
			}
		}
		k.ciphers[at] = aead
		k.mu.Unlock()
	}
	return plain, nil
}

// belongsTo says whether these are the keys of the state's committed set.
func (k *keys) belongsTo(st State) bool {
	return st.Committed != nil && k.cluster == st.Cluster && k.set.ID == st.Committed.ID
}

// holds says whether the current keys are those that epochs names.
func (k *keys) holds(epochs []Epoch) bool {
	for _, e := range epochs {
		if have := k.current[e.Purpose]; have == nil || !bytes.Equal(have.id[:], e.ID) {
			return false
		}
	}
	return len(epochs) > 0
}

// current with the state means that there is nothing to reload.
func (k *keys) upToDate(st State) bool {
	return k.belongsTo(st) && bytes.Equal(k.keyringSum[:], sum(st.Keyring))
}
