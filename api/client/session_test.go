package client

import (
	"encoding/base64"
	"encoding/binary"
	"testing"
)

// What is held covers all that was answered: nothing is when an answer came without a token, whatever attempts from before it bring.
func TestSession(t *testing.T) {
	t.Parallel()
	token := func(index uint64) string {
		return base64.RawURLEncoding.EncodeToString(append(binary.BigEndian.AppendUint64(make([]byte, 25), index), make([]byte, 16)...))
	}
	var s session
	holds := func(want string) (since int) {
		t.Helper()
		text, since := s.token()
		if text != want {
			t.Errorf("held: %q, want %q", text, want)
		}
		return since
	}
	early := holds("")
	s.answered(token(7), early)
	s.answered(token(5), early)
	holds(token(7))
	s.answered("", early) // a change that is at index 8, say
	late := holds("")
	s.answered(token(7), early)
	holds("")
	s.answered(token(9), late)
	holds(token(9))
	s.answered("no token", late)
	holds("")
	s.lose()
	if holds("") == late {
		t.Error("an attempt from before the loss counts")
	}
}
