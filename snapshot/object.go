package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/snapshot/internal/archivepb"
)

// An object is
//
//	magic(16) ‖ length of the header(4) ‖ archivepb.Header ‖ body
//
// The body of a keyring is an archivepb.Keyring, that of a claim an archivepb.Claim; that of the others a stream of the Cipher, with the SHA-256 of all before it
// as context.
const (
	magic     = "spike-ha arc\x00\x01\r\n"
	maxHeader = 4 << 10
)

var (
	// ErrFormat: the bytes are no archive object that this release knows, or not a whole one.
	ErrFormat = errors.New("snapshot: this is no archive of SPIKE HA, or not a whole one")
	// ErrForeign: the object is of another cluster, incarnation, kind or range than where it was found.
	ErrForeign = errors.New("snapshot: the object is not what its place says")
	// ErrDamaged: the object does not open: altered, damaged, or under another key.
	ErrDamaged = errors.New("snapshot: the object does not open: it was altered or damaged, or is of another cluster's keys")
)

// Kind is what an object holds.
type Kind string

// The kinds.
const (
	Snapshot Kind = "snapshot"
	Segment  Kind = "log"
	Keyring  Kind = "keyring"
	Claim    Kind = "claim"
	Audit    Kind = "audit"
)

var kinds = map[Kind]archivepb.Kind{Snapshot: archivepb.Kind_SNAPSHOT, Segment: archivepb.Kind_SEGMENT, Keyring: archivepb.Kind_KEYRING, Claim: archivepb.Kind_CLAIM,
	Audit: archivepb.Kind_AUDIT}

// Header says what an object holds. Nothing in it is secret.
type Header struct {
	Kind        Kind
	Cluster     [16]byte
	Incarnation uint64
	First, Last uint64 // First: of segments; audit: numbers of records
	Term        uint64 // of the last command
	Level       uint32 // format level of the state
	Data, All   [32]byte
	Peer        string // that made it; audit: whose log it is
	Created     time.Time
	Previous    [32]byte // snapshot: SHA-256 of the object of the one before; zero: none is known
}

func (h Header) encode() ([]byte, error) {
	pb := &archivepb.Header{Kind: kinds[h.Kind], ClusterId: h.Cluster[:], Incarnation: h.Incarnation, First: h.First, Last: h.Last, Term: h.Term,
		Level: h.Level, Peer: h.Peer, Created: h.Created.UnixNano()}
	if h.Kind == Snapshot {
		pb.DataHash, pb.AllHash = h.Data[:], h.All[:]
		if h.Previous != [32]byte{} {
			pb.Previous = h.Previous[:]
		}
	}
	if err := checkHeader(pb); err != nil {
		return nil, err
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(pb)
	if err != nil || len(body) > maxHeader {
		return nil, fmt.Errorf("%w: a header of %d bytes", ErrFormat, len(body))
	}
	b := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(len(body)))
	return append(b, body...), nil
}

func checkHeader(h *archivepb.Header) error {
	hashes := func(want int, list ...[]byte) bool {
		for _, b := range list {
			if len(b) != want {
				return false
			}
		}
		return true
	}
	ok := len(h.ClusterId) == 16 && !bytes.Equal(h.ClusterId, make([]byte, 16)) && h.Incarnation > 0 && len(h.Peer) <= 64 && len(h.ProtoReflect().GetUnknown()) == 0
	switch h.Kind {
	case archivepb.Kind_SNAPSHOT:
		ok = ok && h.First == 0 && h.Level > 0 && hashes(32, h.DataHash, h.AllHash) && (len(h.Previous) == 0 || len(h.Previous) == 32)
	case archivepb.Kind_SEGMENT:
		ok = ok && h.First > 0 && h.First <= h.Last && hashes(0, h.DataHash, h.AllHash, h.Previous)
	case archivepb.Kind_KEYRING:
		ok = ok && h.First == 0 && hashes(0, h.DataHash, h.AllHash, h.Previous)
	case archivepb.Kind_CLAIM:
		ok = ok && h.First == 0 && h.Last == 0 && hashes(0, h.DataHash, h.AllHash, h.Previous)
	case archivepb.Kind_AUDIT:
		ok = ok && h.First > 0 && h.First <= h.Last && h.Term == 0 && h.Level == 0 && peerForm.MatchString(h.Peer) && hashes(0, h.DataHash, h.AllHash, h.Previous)
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("%w: its header says nothing that can be", ErrFormat)
	}
	return nil
}

// readHeader reads the beginning of an object; raw is all of it, the context of what follows.
func readHeader(r io.Reader) (h Header, raw []byte, err error) {
	raw = make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, raw); err != nil || string(raw[:len(magic)]) != magic {
		return h, nil, formatOr(err)
	}
	n := binary.BigEndian.Uint32(raw[len(magic):])
	if n > maxHeader {
		return h, nil, ErrFormat
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, nil, formatOr(err)
	}
	pb := new(archivepb.Header)
	if proto.Unmarshal(body, pb) != nil {
		return h, nil, ErrFormat
	}
	if err := checkHeader(pb); err != nil {
		return h, nil, err
	}
	h = Header{Incarnation: pb.Incarnation, First: pb.First, Last: pb.Last, Term: pb.Term, Level: pb.Level, Peer: pb.Peer, Created: time.Unix(0, pb.Created).UTC()}
	for kind, number := range kinds {
		if number == pb.Kind {
			h.Kind = kind
		}
	}
	copy(h.Cluster[:], pb.ClusterId)
	copy(h.Data[:], pb.DataHash)
	copy(h.All[:], pb.AllHash)
	copy(h.Previous[:], pb.Previous)
	return h, append(raw, body...), nil
}

// formatOr is ErrFormat for bytes that end too early, and what reading said otherwise.
func formatOr(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrFormat
	}
	return err
}

func context256(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return sum[:]
}

// Item is one object of a bucket by its name, which only the object itself can prove.
type Item struct {
	Object
	Kind        Kind
	Cluster     [16]byte
	Incarnation uint64
	First, Last uint64
	Term        uint64 // snapshot
	Sum         string // keyring: first 8 digits of its hash
	Peer        string // audit: whose log it is
}

// peerForm is what a peer can be called that has objects of its own: what peers can be called, but for a dot at the beginning, which no object's name can have.
var peerForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

var nameForm = regexp.MustCompile(`^v1/([0-9a-f]{32})/([0-9]{20})/(?:(snapshot)/([0-9]{20})-([0-9]{20})|(log)/([0-9]{20})-([0-9]{20})|(keyring)/([0-9]{20})-([0-9a-f]{8})|(claim)|(audit)/([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})/([0-9]{20})-([0-9]{20}))$`)

// ParseName reads the name of an object, without the bucket's prefix; false for one that is none of ours.
func ParseName(name string) (e Item, ok bool) {
	m := nameForm.FindStringSubmatch(name)
	if m == nil {
		return e, false
	}
	ok = true
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		ok = ok && err == nil
		return n
	}
	e.Name = name
	for i := range e.Cluster {
		b, err := strconv.ParseUint(m[1][2*i:2*i+2], 16, 8)
		ok = ok && err == nil
		e.Cluster[i] = byte(b)
	}
	e.Incarnation = number(m[2])
	switch {
	case m[3] != "":
		e.Kind, e.Last, e.Term = Snapshot, number(m[4]), number(m[5])
	case m[6] != "":
		e.Kind, e.First, e.Last = Segment, number(m[7]), number(m[8])
		ok = ok && e.First > 0 && e.First <= e.Last
	case m[12] != "":
		e.Kind = Claim
	case m[13] != "":
		e.Kind, e.Peer, e.First, e.Last = Audit, m[14], number(m[15]), number(m[16])
		ok = ok && e.First > 0 && e.First <= e.Last
	default:
		e.Kind, e.Last, e.Sum = Keyring, number(m[10]), m[11]
	}
	return e, ok && e.Incarnation > 0
}

// prefixOf is where the objects of a cluster, or of one incarnation when that is not 0, lie.
func prefixOf(cluster [16]byte, incarnation uint64) string {
	if incarnation == 0 {
		return fmt.Sprintf("v1/%x/", cluster)
	}
	return fmt.Sprintf("v1/%x/%020d/", cluster, incarnation)
}

// name is where an object with the header lies.
func (h Header) name(body []byte) string {
	place := prefixOf(h.Cluster, h.Incarnation) + string(h.Kind)
	if h.Kind == Claim {
		return place
	}
	place += "/"
	switch h.Kind {
	case Snapshot:
		return fmt.Sprintf("%s%020d-%020d", place, h.Last, h.Term)
	case Segment:
		return fmt.Sprintf("%s%020d-%020d", place, h.First, h.Last)
	case Audit:
		return fmt.Sprintf("%s%s/%020d-%020d", place, h.Peer, h.First, h.Last)
	}
	return fmt.Sprintf("%s%020d-%x", place, h.Last, sha256Of(body)[:4])
}

func sha256Of(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// fits says whether an object with the header belongs where e says that it is.
func (h Header) fits(e Item) bool {
	switch h.Kind {
	case Snapshot:
		if h.Term != e.Term {
			return false
		}
	case Segment:
		if h.First != e.First {
			return false
		}
	case Audit:
		if h.First != e.First || h.Peer != e.Peer {
			return false
		}
	}
	return h.Kind == e.Kind && h.Cluster == e.Cluster && h.Incarnation == e.Incarnation && h.Last == e.Last
}
