package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// What the library keeps of term and vote, by the names that it uses.
var (
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
	keyVote     = []byte("LastVoteCand")
	stableKeys  = [][]byte{keyTerm, keyVoteTerm, keyVote}
)

// checkedStable adds a checksum to term and vote, in which the library would not
// notice a flipped bit: a peer that goes back to a lower term, or forgets whom it
// voted for, helps to elect two leaders of one term. That a name or a length is
// another one is for checkPages to see. Behind each value are
//
//	1 byte    format: 1
//	32 bytes  SHA-256 of sumStable, the length of the name, the name, and the value
//
// An earlier version reads numbers as it always did, and takes the candidate for
// one that nobody is: it votes for nobody else in that term. What it has written itself
// has no checksum, and gets one when the file is opened. Of one goroutine at a time.
//
// A vote for nobody, which the library gives to who does not say his name, is kept like
// any other: to refuse it would let a message stop this peer, and the library, which
// takes an empty name that it reads for no vote, would give another in that term.
type checkedStable struct {
	bolt *raftboltdb.BoltStore
	path string
}

const (
	sumStable  = "spike-ha raft term and vote 1\x00"
	stableTail = 1 + sha256.Size
)

func stableSum(key, value []byte) []byte {
	h := sha256.New()
	h.Write([]byte(sumStable))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(key))))
	h.Write(key)
	h.Write(value)
	return h.Sum([]byte{sumFormat})
}

// openStable checks what is there, and adds the checksums that are missing.
func openStable(bolt *raftboltdb.BoltStore, path string) (*checkedStable, error) {
	s := &checkedStable{bolt, path}
	for _, key := range stableKeys {
		value, summed, err := s.read(key)
		if err == nil && !summed {
			err = s.Set(key, value)
		}
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return nil, err
		}
	}
	return s, nil
}

func (s *checkedStable) read(key []byte) (value []byte, summed bool, err error) {
	b, err := s.bolt.Get(key)
	if err != nil {
		return nil, false, err
	}
	corrupt := func(detail string) error {
		return &ErrCorruptLog{File: s.path, Detail: fmt.Sprintf("%s: %s", key, detail)}
	}
	number, end := !bytes.Equal(key, keyVote), len(b)-stableTail
	name := utf8.Valid(b) && !bytes.ContainsFunc(b, unicode.IsControl) // which no checksum is
	switch {
	case number && len(b) == 8, !number && name:
		return b, false, nil
	case number && end != 8, end < 0:
		return nil, false, corrupt(fmt.Sprintf("%d bytes", len(b)))
	case b[end] > sumFormat:
		return nil, false, fmt.Errorf("%s: %s: %w (format %d)", s.path, key, ErrNewerFormat, b[end])
	case !bytes.Equal(b[end:], stableSum(key, b[:end])):
		return nil, false, corrupt("checksum does not match")
	}
	return b[:end], true, nil // not nil, also where it is empty
}

func (s *checkedStable) Get(key []byte) ([]byte, error) {
	value, _, err := s.read(key)
	return value, err
}

func (s *checkedStable) GetUint64(key []byte) (uint64, error) {
	value, _, err := s.read(key)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(value), nil
}

func (s *checkedStable) Set(key, value []byte) error {
	return s.bolt.Set(key, append(bytes.Clone(value), stableSum(key, value)...))
}

func (s *checkedStable) SetUint64(key []byte, u uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, u))
}
