package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// Needles gives every key that hangs on the shares to add, by name: the shares and the root key, the key of the keyring,
// and of each epoch the key and all that is derived from it for the processes named and the streams of these headers.
func Needles(t testing.TB, st State, shares map[int][]byte, processes [][processIDSize]byte, streams [][]byte, add func(name string, key []byte)) {
	t.Helper()
	var points []point
	for i, share := range shares {
		add(fmt.Sprintf("share %d", i), share)
		if len(points) < st.Committed.Threshold {
			points = append(points, point{i, share})
		}
	}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	salted := func(name string, key, salt []byte, info string, size int) {
		b, err := hkdf.Key(sha256.New, key, salt, info, size)
		must(err)
		add(name, b)
	}
	derived := func(name string, key []byte, info string, size int) { salted(name, key, nil, info, size) }
	for i, share := range shares {
		derived(fmt.Sprintf("proof key %d", i), share, label(useProof), keySize)
	}
	root, err := join(points)
	must(err)
	defer root.Destroy()
	add("root key", root.Bytes())
	for i := 1; i < st.Committed.Threshold; i++ {
		derived(fmt.Sprintf("coefficient %d", i), root.Bytes(), label("spike-ha/seal/1/share-coefficient", st.Committed.ID[:], []byte{byte(st.Committed.Threshold), byte(i)}), coefficientBytes)
	}
	derived("keyring key", root.Bytes(), label("spike-ha/seal/1/keyring-key", keyringContext(st.Cluster, st.Committed.ID)...), keySize)
	ring, err := openKeyring(root.Bytes(), st.Cluster, st.Committed.ID, st.Keyring)
	must(err)
	for _, rings := range [][]*sealpb.Ring{ring.GetRings(), ring.GetArchived()} {
		for _, r := range rings {
			for i, e := range r.GetEpochs() {
				name := fmt.Sprintf("%s epoch %d", r.GetPurpose(), i)
				add(name, e.GetKey())
				if use := macUses[Purpose(r.GetPurpose())]; use != "" {
					derived(name+" MAC key", e.GetKey(), label("spike-ha/seal/1/mac-key", []byte(use), e.GetId()), keySize)
				}
				for j, h := range streams {
					if bytes.Equal(h[1:1+epochIDSize], e.GetId()) {
						salted(fmt.Sprintf("key of stream %d", j), e.GetKey(), h[streamHeader-saltSize:streamHeader], label("spike-ha/seal/1/stream-key", st.Cluster.ID[:], h[1:1+epochIDSize], h[1+epochIDSize:streamHeader-saltSize]), keySize)
					}
				}
				for j, process := range processes {
					derived(fmt.Sprintf("%s record key of process %d", name, j), e.GetKey(), label("spike-ha/seal/1/record-key", []byte(r.GetPurpose()), e.GetId(), process[:]), keySize)
				}
			}
		}
	}
}

// Process is the id of the process that sealed a record.
func Process(record []byte) [processIDSize]byte {
	return [processIDSize]byte(record[1+epochIDSize:])
}

// Leak keeps the keys in use from being wiped, for good.
func (s *Seal) Leak() { s.keys.Load().retain() }
