package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
)

// The format of streams is pinned by testdata/stream-2.golden, as the others are by testdata/format-1.golden, with the
// keyring of that file. With a salt that is given, the bytes are too.
const goldenStreams = "testdata/stream-2.golden"

func streamKeys(t *testing.T) *Seal {
	t.Helper()
	for _, v := range readVectors(t, golden) {
		if v["vector"] == "record" && v["expect"] == "ok" {
			s, err := v.unsealed(t)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	t.Fatal("no vector has a keyring")
	return nil
}

// sealStreamWith is EncryptStream without chance.
func sealStreamWith(t *testing.T, s *Seal, fill byte, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := s.EncryptStream(&out)
	if err != nil {
		t.Fatal(err)
	}
	header := &w.(*streamWriter).header
	for i := 1 + epochIDSize; i < streamHeader; i++ {
		header[i] = fill
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// pattern is a long plaintext.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i)
	}
	return b
}

func TestStreamVectors(t *testing.T) {
	s := streamKeys(t)
	if *update {
		writeStreamVectors(t, s)
	}
	list := readVectors(t, goldenStreams)
	if len(list) < 8 {
		t.Fatalf("only %d vectors", len(list))
	}
	for _, v := range list {
		t.Run(v["about"], func(t *testing.T) {
			if v["vector"] == "long stream" {
				plain := pattern(int(v.num(t, "length")))
				sealed := sealStreamWith(t, s, unhex(t, v["fill"])[0], plain)
				if sum := sha256.Sum256(sealed); hex.EncodeToString(sum[:]) != v["sha-256"] {
					t.Errorf("its bytes are others: %x", sum)
				}
				return
			}
			r, err := s.DecryptStream(bytes.NewReader(unhex(t, v["sealed"])))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if !errors.Is(err, failures[v["expect"]]) || string(got) != v["plain"] {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func writeStreamVectors(t *testing.T, s *Seal) {
	var out bytes.Buffer
	fmt.Fprint(&out, "# Format 2: streams. Bytes are in hex. Of a long stream, byte i of the plaintext is (i>>8)^i, and process id and salt are\n# filled with one byte.\n")
	emit := func(about, expect, plain string, sealed []byte) {
		fmt.Fprintf(&out, "\nvector: stream\nabout: %s\nexpect: %s\nsealed: %x\n", about, expect, sealed)
		if plain != "" {
			fmt.Fprintf(&out, "plain: %s\n", plain)
		}
	}
	alter := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	short := sealStreamWith(t, s, 0x77, []byte("attack at dawn"))
	emit("opens", "ok", "attack at dawn", short)
	emit("empty", "ok", "", sealStreamWith(t, s, 0x77, nil))
	emit("an unknown format", "ErrOpen", "", alter(short, 0))
	emit("an unknown epoch", "ErrOpen", "", alter(short, 4))
	emit("another process", "ErrOpen", "", alter(short, 20))
	emit("another salt", "ErrOpen", "", alter(short, streamHeader-1))
	emit("an altered byte", "ErrOpen", "", alter(short, streamHeader))
	emit("cut", "ErrOpen", "", short[:len(short)-1])
	emit("a header alone", "ErrOpen", "", short[:streamHeader])
	emit("a byte more", "ErrOpen", "", append(bytes.Clone(short), 0))
	for _, n := range []int{StreamChunk, StreamChunk + 1, 2*StreamChunk + 5} {
		sum := sha256.Sum256(sealStreamWith(t, s, 0x78, pattern(n)))
		fmt.Fprintf(&out, "\nvector: long stream\nabout: %d bytes\nexpect: ok\nlength: %d\nfill: 78\nsha-256: %x\n", n, n, sum)
	}
	if err := os.WriteFile(goldenStreams, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A number of a chunk is never used twice: the last one that there is ends the stream.
func TestStreamsEndBeforeTheirNumbersDo(t *testing.T) {
	s := streamKeys(t)
	var out bytes.Buffer
	w, err := s.EncryptStream(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.(*streamWriter).next = maxChunks - 1
	if _, err := w.Write(make([]byte, StreamChunk+1)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	r, err := s.DecryptStream(bytes.NewReader(sealStreamWith(t, s, 1, []byte("x"))))
	if err != nil {
		t.Fatal(err)
	}
	r.(*streamReader).next = maxChunks
	if _, err := io.ReadAll(r); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// One plaintext has one form: whoever has the key and writes an empty last chunk behind others is refused, too.
func TestStreamsHaveOneForm(t *testing.T) {
	s := streamKeys(t)
	var out bytes.Buffer
	w, err := s.EncryptStream(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, StreamChunk)); err != nil {
		t.Fatal(err)
	}
	w.(*streamWriter).flush(false)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := s.DecryptStream(&out)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); len(got) != StreamChunk || !errors.Is(err, ErrOpen) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
