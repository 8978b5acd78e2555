package snapshot_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"testing"

	"github.com/spike-ha/spike-ha/snapshot"
)

// memory is a bucket in memory.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func newMemory() *memory { return &memory{objects: map[string][]byte{}} }

func (m *memory) String() string { return "memory:" }

func (m *memory) Create(_ context.Context, name string, size int64, body io.ReadSeeker) error {
	b, err := io.ReadAll(body)
	if err != nil || int64(len(b)) != size {
		return fmt.Errorf("%d bytes of %d: %w", len(b), size, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.objects[name]; there {
		return snapshot.ErrExists
	}
	m.objects[name] = b
	return nil
}

func (m *memory) Open(_ context.Context, name string) (io.ReadCloser, snapshot.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, there := m.objects[name]
	if !there {
		return nil, snapshot.Object{}, snapshot.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), snapshot.Object{Name: name, Size: int64(len(b))}, nil
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[snapshot.Object, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.objects {
		if name > after && len(name) >= len(prefix) && name[:len(prefix)] == prefix {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return func(yield func(snapshot.Object, error) bool) {
		for _, name := range names {
			if !yield(snapshot.Object{Name: name}, nil) {
				return
			}
		}
	}
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// box is a Cipher that encrypts a stream in one piece: enough to find every change.
type box byte

func (k box) aead() cipher.AEAD {
	block, err := aes.NewCipher(bytes.Repeat([]byte{byte(k)}, 32))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

type boxWriter struct {
	bytes.Buffer
	out  io.Writer
	aead cipher.AEAD
	aad  []byte
}

func (w *boxWriter) Close() error {
	_, err := w.out.Write(w.aead.Seal(nil, nil, w.Bytes(), w.aad))
	return err
}

func (k box) Seal(w io.Writer, context []byte) (io.WriteCloser, error) {
	return &boxWriter{out: w, aead: k.aead(), aad: context}, nil
}

type lateReader struct {
	open func() ([]byte, error)
	r    io.Reader
}

func (l *lateReader) Read(p []byte) (int, error) {
	if l.r == nil {
		b, err := l.open()
		if err != nil {
			return 0, err
		}
		l.r = bytes.NewReader(b)
	}
	return l.r.Read(p)
}

func (k box) Open(r io.Reader, context []byte) io.Reader {
	return &lateReader{open: func() ([]byte, error) {
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		plain, err := k.aead().Open(nil, nil, b, context)
		if err != nil {
			return nil, snapshot.ErrDamaged
		}
		return plain, nil
	}}
}

// sum is a state machine: it notes what it is fed.
type sum struct{ state string }

func (s *sum) Restore(_ snapshot.Header, r io.Reader) error {
	b, err := io.ReadAll(r)
	s.state = string(b)
	return err
}

func (s *sum) Apply(e snapshot.LogEntry) error {
	s.state += fmt.Sprintf(" %d:%s", e.Index, e.Data)
	return nil
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
