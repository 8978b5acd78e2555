package seal_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
)

const (
	streamHead  = 57
	streamChunk = seal.StreamChunk + 16
)

func sealStream(t testing.TB, s *seal.Seal, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := s.EncryptStream(&out)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func openStream(s *seal.Seal, sealed []byte) ([]byte, error) {
	r, err := s.DecryptStream(bytes.NewReader(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// Streams of every interesting length come back, have the length that the format says, and never the same bytes twice.
func TestStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	for _, n := range []int{0, 1, 100, seal.StreamChunk - 1, seal.StreamChunk, seal.StreamChunk + 1, 3 * seal.StreamChunk, 3*seal.StreamChunk + 7} {
		plain := random(n)
		sealed := sealStream(t, w.first, plain)
		if want := streamHead + n + 16*max(1, (n+seal.StreamChunk-1)/seal.StreamChunk); len(sealed) != want {
			t.Errorf("%d bytes became %d, want %d", n, len(sealed), want)
		}
		if got, err := openStream(w.first, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if bytes.Equal(sealed[streamHead:], sealStream(t, w.first, plain)[streamHead:]) {
			t.Errorf("%d bytes: the same ciphertext twice", n)
		}
	}
}

// However a stream is written and read in pieces, the bytes are the same.
func TestStreamsInAnyPieces(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	plain := random(3*seal.StreamChunk + 100)
	rapid.Check(t, func(t *rapid.T) {
		end := rapid.OneOf(rapid.IntRange(0, len(plain)), rapid.SampledFrom([]int{0, seal.StreamChunk, 2 * seal.StreamChunk})).Draw(t, "length")
		piece := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, 3*seal.StreamChunk))
		var out bytes.Buffer
		e, err := w.first.EncryptStream(&out)
		for left := plain[:end]; len(left) > 0 && err == nil; {
			n := min(len(left), 500+piece.Draw(t, "written"))
			_, err = e.Write(left[:n])
			left = left[n:]
		}
		if err == nil {
			err = e.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := w.first.DecryptStream(iotest.HalfReader(&out))
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for err == nil {
			b := make([]byte, 500+piece.Draw(t, "read"))
			var n int
			n, err = r.Read(b)
			got = append(got, b[:n]...)
		}
		if err != io.EOF || !bytes.Equal(got, plain[:end]) {
			t.Fatalf("%d bytes became %d, %v", end, len(got), err)
		}
	})
}

// Whatever is done to the bytes, the end is ErrOpen, and what was given out before is the beginning of what was written.
func TestStreamsRefuse(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, 1, 1), newWorld(t, 1, 1)
	plain := random(2*seal.StreamChunk + 5)
	whole := sealStream(t, w.first, plain)
	even := sealStream(t, w.first, plain[:2*seal.StreamChunk])
	empty := sealStream(t, w.first, nil)
	another := sealStream(t, w.first, plain)
	chunk := func(b []byte, i int) []byte {
		return b[streamHead+i*streamChunk : min(len(b), streamHead+(i+1)*streamChunk)]
	}
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	head := whole[:streamHead]
	cases := map[string][]byte{
		"nothing":                          nil,
		"half a header":                    head[:30],
		"a header alone":                   head,
		"an unknown format":                append([]byte{1}, whole[1:]...),
		"an unknown epoch":                 flip(3),
		"another process":                  flip(12),
		"another salt":                     flip(40),
		"an altered byte":                  flip(streamHead + 5),
		"an altered tag":                   flip(streamHead + streamChunk - 1),
		"an altered byte of the last":      flip(len(whole) - 20),
		"cut within the last chunk":        whole[:len(whole)-1],
		"cut within the last tag":          whole[:streamHead+2*streamChunk+7],
		"without the last chunk":           whole[:streamHead+2*streamChunk],
		"without the last of even ones":    even[:streamHead+streamChunk],
		"cut within a chunk":               whole[:streamHead+streamChunk+1000],
		"without the first chunk":          slices.Concat(head, whole[streamHead+streamChunk:]),
		"two chunks in each other's place": slices.Concat(head, chunk(whole, 1), chunk(whole, 0), chunk(whole, 2)),
		"a chunk twice":                    slices.Concat(head, chunk(whole, 0), chunk(whole, 0), chunk(whole, 1), chunk(whole, 2)),
		"the last chunk twice":             slices.Concat(whole, chunk(whole, 2)),
		"a byte more":                      append(bytes.Clone(whole), 0),
		"a stream more":                    slices.Concat(whole, whole),
		"an empty chunk more":              slices.Concat(even, empty[streamHead:]),
		"a tag of zeros more":              slices.Concat(even, make([]byte, 16)),
		"a chunk of another stream":        slices.Concat(head, chunk(another, 0), chunk(whole, 1), chunk(whole, 2)),
		"the last chunk of another stream": slices.Concat(head, chunk(whole, 0), chunk(whole, 1), chunk(another, 2)),
		"another cluster's":                sealStream(t, other.first, plain),
	}
	for about, sealed := range cases {
		got, err := openStream(w.first, sealed)
		if !errors.Is(err, seal.ErrOpen) || !bytes.HasPrefix(plain, got) || len(got)%seal.StreamChunk != 0 {
			t.Errorf("%s: %d bytes, %v", about, len(got), err)
		}
	}
	record, err := w.first.Encrypt(seal.Cipher, seal.AAD{}, plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openStream(w.first, record); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("a record: %v", err)
	}
}

func TestStreamsOpenAfterARotationAndOnOtherPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	plain := random(2 * seal.StreamChunk)
	old := sealStream(t, w.first, plain)
	var out bytes.Buffer
	across, err := w.first.EncryptStream(&out) // begun under the old key, ended under the new one
	if err == nil {
		_, err = across.Write(plain)
	}
	if err == nil {
		err = rotate(w.first, w.ledger)
	}
	if err == nil {
		_, err = across.Write([]byte("more"))
	}
	if err == nil {
		err = across.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	peer := seal.New(seal.Config{Logger: quiet})
	if _, err := peer.Unseal(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err)
	}
	defer peer.Lock()
	fresh := sealStream(t, w.first, plain)
	if bytes.Equal(fresh[1:9], old[1:9]) {
		t.Error("a new stream is under the old key")
	}
	for _, s := range []*seal.Seal{w.first, peer} {
		for about, c := range map[string]struct{ sealed, want []byte }{"old": {old, plain}, "new": {fresh, plain}, "across": {out.Bytes(), append(bytes.Clone(plain), "more"...)}} {
			if got, err := openStream(s, c.sealed); err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%s: %d bytes, %v", about, len(got), err)
			}
		}
	}
}

// Lock ends streams at their next chunk, even if the keys are back by then.
func TestLockEndsStreams(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("unsealed again %v", back), func(t *testing.T) {
			w := newWorld(t, 1, 1)
			sealed := sealStream(t, w.first, random(3*seal.StreamChunk))
			r, err := w.first.DecryptStream(bytes.NewReader(sealed))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, seal.StreamChunk)); err != nil {
				t.Fatal(err)
			}
			e, err := w.first.EncryptStream(io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Write(random(seal.StreamChunk + 1)); err != nil {
				t.Fatal(err)
			}
			w.first.Lock()
			if back {
				if _, err := w.first.Unseal(t.Context(), w.now(), w.all()); err != nil {
					t.Fatal(err)
				}
			} else {
				if _, err := w.first.EncryptStream(io.Discard); !errors.Is(err, seal.ErrSealed) {
					t.Errorf("a stream begun afterwards: %v", err)
				}
				if _, err := w.first.DecryptStream(bytes.NewReader(sealed)); !errors.Is(err, seal.ErrSealed) {
					t.Errorf("a stream opened afterwards: %v", err)
				}
			}
			if n, err := r.Read(make([]byte, 10)); n > 0 || !errors.Is(err, seal.ErrSealed) {
				t.Errorf("reading on: %d bytes, %v", n, err)
			}
			if err := e.Close(); !errors.Is(err, seal.ErrSealed) {
				t.Errorf("ending: %v", err)
			}
		})
	}
}

// Errors of the other side are passed on, and last.
func TestStreamsPassErrorsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	broken := errors.New("broken pipe")
	sealed := sealStream(t, w.first, random(3*seal.StreamChunk))
	for _, at := range []int{0, 10, streamHead, streamHead + 100, streamHead + streamChunk, len(sealed)} {
		r, err := w.first.DecryptStream(io.MultiReader(bytes.NewReader(sealed[:at]), iotest.ErrReader(broken)))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := io.ReadAll(r); !errors.Is(err, broken) {
				t.Errorf("reading fails after %d bytes: %v", at, err)
			}
		}
	}
	in, out := io.Pipe()
	in.CloseWithError(broken)
	e, err := w.first.EncryptStream(out)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := e.Write(random(seal.StreamChunk + 1)); !errors.Is(err, broken) {
			t.Errorf("writing: %v", err)
		}
	}
	if err := e.Close(); !errors.Is(err, broken) {
		t.Errorf("ending: %v", err)
	}
}

func FuzzStream(f *testing.F) {
	w := newWorld(f, 1, 1)
	plain := random(seal.StreamChunk + 3)
	whole := sealStream(f, w.first, plain)
	f.Add(whole)
	f.Add(sealStream(f, w.first, nil))
	f.Add(sealStream(f, w.first, plain[:5]))
	f.Add(whole[:streamHead+streamChunk])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := openStream(w.first, b)
		if err == nil && !bytes.HasPrefix(plain, got) {
			t.Fatalf("%d bytes that nobody sealed opened", len(b))
		}
		if err != nil && !errors.Is(err, seal.ErrOpen) {
			t.Fatal(err)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	w := newWorld(b, 1, 1)
	plain := random(1 << 20)
	sealed := sealStream(b, w.first, plain)
	b.Run("encrypt", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for b.Loop() {
			e, _ := w.first.EncryptStream(io.Discard)
			e.Write(plain)
			e.Close()
		}
	})
	b.Run("decrypt", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for b.Loop() {
			r, _ := w.first.DecryptStream(bytes.NewReader(sealed))
			io.Copy(io.Discard, r)
		}
	})
}
