package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// The marker says which cluster the data directory belongs to and how far
// forming has come. Its file:
//
//	8 bytes   magic "SPIKEHA" 0x00
//	uint32    format, big endian: 1, or 2 for the attempt of a cold start, which version 1 would take for forming
//	uint32    length of the body
//	body      peerpb.Marker, deterministic protobuf
//	32 bytes  SHA-256 of everything before
const (
	markerFile   = "marker"
	markerMagic  = "SPIKEHA\x00"
	markerFormat = 2
	markerLimit  = 1 << 20
)

func encodeMarker(m *peerpb.Marker) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	b := append([]byte(markerMagic), make([]byte, 8)...)
	format := uint32(1)
	if attempting(m) {
		format = 2
	}
	binary.BigEndian.PutUint32(b[8:], format)
	binary.BigEndian.PutUint32(b[12:], uint32(len(body)))
	b = append(b, body...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func decodeMarker(b []byte) (*peerpb.Marker, error) {
	if len(b) < 16 || string(b[:8]) != markerMagic {
		return nil, fmt.Errorf("%w: not a marker", ErrCorruptMarker)
	}
	// The format comes first: the rest of a newer one may look different.
	if f := binary.BigEndian.Uint32(b[8:]); f > markerFormat {
		return nil, fmt.Errorf("%w (marker format %d, this version knows %d)", ErrNewerFormat, f, markerFormat)
	} else if f == 0 {
		return nil, fmt.Errorf("%w: format 0", ErrCorruptMarker)
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n > markerLimit || len(b) != 16+int(n)+sha256.Size {
		return nil, fmt.Errorf("%w: wrong length", ErrCorruptMarker)
	}
	body, sum := b[:16+n], b[16+n:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], sum) {
		return nil, fmt.Errorf("%w: checksum does not match", ErrCorruptMarker)
	}
	m := new(peerpb.Marker)
	if err := proto.Unmarshal(body[16:], m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCorruptMarker, err)
	}
	if len(m.GetClusterId()) != 16 || m.GetIncarnation() == 0 || m.GetSelf() == "" || len(m.GetPeers()) == 0 ||
		m.GetPhase() < peerpb.Phase_PHASE_PREPARED || m.GetPhase() > peerpb.Phase_PHASE_SUPERSEDED {
		return nil, fmt.Errorf("%w: incomplete", ErrCorruptMarker)
	}
	return m, nil
}

// readMarker returns nil when there is none.
func readMarker(dir string) (*peerpb.Marker, error) {
	path := filepath.Join(dir, markerFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := decodeMarker(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func writeMarker(dir string, m *peerpb.Marker) error {
	b, err := encodeMarker(m)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, markerFile), b)
}
