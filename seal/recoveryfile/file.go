// Package recoveryfile is the file in which a person keeps one recovery share for the day when all Keepers are lost:
// a header for people, and the share encrypted to that person by age.
//
//	SPIKE HA recovery share, format 1
//	cluster: <id, 32 hexadecimal digits>
//	incarnation: 1
//	share-set: <id, 32 hexadecimal digits>
//	share: 2 of 5, 3 needed
//	fingerprint: <SHA-256 of share-set id, number and share>
//	created: 2026-11-22T18:00:00Z
//	for: <recipient>
//
//	-----BEGIN AGE ENCRYPTED FILE-----
//
// The header repeats inside the encryption, where the share follows it, so a header that somebody edited is noticed, and so
// is a share that does not fit its fingerprint; without asking any cluster. Encryption and its formats are age's
// (https://age-encryption.org/v1): X25519, the hybrid of ML-KEM-768 and X25519, or a passphrase.
//
// It assumes nothing of what it reads. It guarantees that its errors repeat nothing of it, and that a file has one form:
// what it parses is what it would write.
package recoveryfile

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/spike-ha/spike-ha/seal"
)

// MaxSize is the longest file that is read, in bytes. One for a hybrid recipient has some 3,000.
const MaxSize = 16 << 10

const (
	title     = "SPIKE HA recovery share, format 1"
	shareSize = 32
)

// What can be wrong, to be tested with errors.Is.
var (
	// ErrFormat: the bytes are no recovery file, or not a whole one.
	ErrFormat = errors.New("this is not a whole recovery file of SPIKE HA")
	// ErrIdentity: none of the identities, or not this passphrase, opens it.
	ErrIdentity = errors.New("the recovery file is not for this identity or passphrase")
	// ErrDamaged: it opens, and what is inside contradicts the header or itself, or the encrypted part was altered.
	ErrDamaged = errors.New("the recovery file was altered or damaged")
)

// Header says what share a file holds. Nothing in it is secret.
type Header struct {
	Cluster     seal.ClusterRef
	Set         [16]byte // of shares; a rekey makes another
	Index       int      // of the share, from 1
	Shares      int      // how many there are
	Threshold   int      // how many of them are needed
	Fingerprint [32]byte
	Created     time.Time // to the second
	For         string    // whom it is encrypted to, for people
}

// String is the header as the file shows it.
func (h Header) String() string {
	return fmt.Sprintf("%s\ncluster: %x\nincarnation: %d\nshare-set: %x\nshare: %d of %d, %d needed\nfingerprint: %x\ncreated: %s\nfor: %s\n",
		title, h.Cluster.ID, h.Cluster.Incarnation, h.Set, h.Index, h.Shares, h.Threshold, h.Fingerprint, h.Created.UTC().Format(time.RFC3339), h.For)
}

// Name is the file's usual name.
func (h Header) Name() string {
	return fmt.Sprintf("spike-ha-recovery-%x-share-%d-of-%d.age", h.Set[:4], h.Index, h.Shares)
}

var headerForm = regexp.MustCompile(`^` + title + `
cluster: ([0-9a-f]{32})
incarnation: ([1-9][0-9]{0,19})
share-set: ([0-9a-f]{32})
share: ([1-9][0-9]{0,2}) of ([1-9][0-9]{0,2}), ([1-9][0-9]{0,2}) needed
fingerprint: ([0-9a-f]{64})
created: ([0-9TZ:-]{20})
for: ([!-~][ -~]{0,127})
`)

func parseHeader(text string) (h Header, rest string, err error) {
	m := headerForm.FindStringSubmatch(text)
	if m == nil {
		return h, "", ErrFormat
	}
	var bad error
	number := func(s string, most uint64) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n > most {
			bad = ErrFormat
		}
		return n
	}
	hex.Decode(h.Cluster.ID[:], []byte(m[1])) // the expression lets only digits through
	h.Cluster.Incarnation = number(m[2], 1<<64-1)
	hex.Decode(h.Set[:], []byte(m[3]))
	h.Index, h.Shares, h.Threshold = int(number(m[4], seal.MaxShares)), int(number(m[5], seal.MaxShares)), int(number(m[6], seal.MaxShares))
	hex.Decode(h.Fingerprint[:], []byte(m[7]))
	h.For = m[9]
	if h.Created, err = time.Parse(time.RFC3339, m[8]); err != nil || bad != nil || h.Index > h.Shares || h.Threshold > h.Shares {
		return h, "", ErrFormat
	}
	if h.String() != m[0] {
		return h, "", ErrFormat
	}
	return h, text[len(m[0]):], nil
}

// Write makes the file of a share, which must be the one that the header describes: its Fingerprint and For are set here.
func Write(h Header, share []byte, to Recipient) ([]byte, error) {
	h.Fingerprint = seal.ShareFingerprint(h.Set, h.Index, share)
	h.Created, h.For = h.Created.UTC().Truncate(time.Second), to.label
	if _, _, err := parseHeader(h.String()); err != nil || len(share) != shareSize {
		return nil, fmt.Errorf("seal: there is no recovery file for share %d of %d: %w", h.Index, h.Shares, ErrFormat)
	}
	var out bytes.Buffer
	out.WriteString(h.String() + "\n")
	coat := armor.NewWriter(&out)
	w, err := age.Encrypt(coat, to.recipient)
	if err != nil {
		return nil, fmt.Errorf("seal: encrypting a recovery share: %w", err)
	}
	inside := fmt.Appendf(nil, "%ssecret: %x\n", h, share)
	defer clear(inside)
	if _, err := w.Write(inside); err != nil {
		return nil, fmt.Errorf("seal: encrypting a recovery share: %w", err)
	}
	if err := errors.Join(w.Close(), coat.Close()); err != nil {
		return nil, fmt.Errorf("seal: encrypting a recovery share: %w", err)
	}
	return out.Bytes(), nil
}

// File is a recovery file whose header was read.
type File struct {
	Header
	armored string
}

// Parse reads the header. Errors: ErrFormat.
func Parse(b []byte) (*File, error) {
	if len(b) > MaxSize {
		return nil, ErrFormat
	}
	// Mail and editors change the ends of lines, and nothing else that is harmless.
	text := strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n")) + "\n"
	h, rest, err := parseHeader(text)
	if err != nil || !strings.HasPrefix(rest, "\n"+armor.Header+"\n") || !strings.HasSuffix(rest, "\n"+armor.Footer+"\n") {
		return nil, ErrFormat
	}
	return &File{h, rest[1:]}, nil
}

// Open decrypts the share. The caller wipes it. Errors: ErrIdentity, ErrDamaged.
func (f *File) Open(identities ...age.Identity) ([]byte, error) {
	plain, err := age.Decrypt(armor.NewReader(strings.NewReader(f.armored)), identities...)
	if none := new(age.NoIdentityMatchError); errors.As(err, &none) {
		return nil, ErrIdentity
	}
	if err != nil {
		return nil, ErrDamaged
	}
	outer := f.Header.String()
	inside := make([]byte, len(outer)+len("secret: \n")+2*shareSize+1)
	defer clear(inside)
	n, err := io.ReadFull(plain, inside)
	if !errors.Is(err, io.ErrUnexpectedEOF) || n != len(inside)-1 { // exactly that many bytes, and authenticated to the end
		return nil, ErrDamaged
	}
	digits, ok := bytes.CutPrefix(inside[:n-1], []byte(outer+"secret: "))
	share := make([]byte, shareSize)
	if _, err := hex.Decode(share, digits); !ok || inside[n-1] != '\n' || err != nil || seal.ShareFingerprint(f.Set, f.Index, share) != f.Fingerprint {
		clear(share)
		return nil, ErrDamaged
	}
	return share, nil
}
