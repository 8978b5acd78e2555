package client

import (
	"encoding/base64"
	"encoding/binary"
	"sync"
)

// session is what a Client holds of its answers: a token for reads of level
// index, which must be as new as all of them. Its methods may be called from any
// goroutine.
//
// An answer may come without a token, from a peer that lost its keys before it
// could make one. Then nothing that is held covers it, and no token of an
// attempt that began before it need do; the reads until another comes are
// linearizable.
type session struct {
	mu     sync.Mutex // guards what follows
	text   string     // of the highest index; "": none
	index  uint64
	losses int // answers without a token so far
}

// token is what to read at, "" for nothing, with what answered wants to know of
// the moment at which the attempt began.
func (s *session) token() (text string, since int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text, s.losses
}

// answered takes the token of an answer.
func (s *session) answered(text string, since int) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 33 {
		s.lose()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if index := binary.BigEndian.Uint64(b[25:]); since == s.losses && (s.text == "" || index > s.index) {
		s.text, s.index = text, index
	}
}

// lose forgets what is held.
func (s *session) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.losses = "", s.losses+1
}
