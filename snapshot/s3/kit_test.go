package s3_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
)

var cluster = [16]byte{0xc1, 0x05}

// box is a snapshot.Cipher that encrypts a stream in one piece.
type box struct{}

func (box) aead() cipher.AEAD {
	block, err := aes.NewCipher(make([]byte, 32))
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
	out io.Writer
	aad []byte
}

func (w *boxWriter) Close() error {
	_, err := w.out.Write(box{}.aead().Seal(nil, nil, w.Bytes(), w.aad))
	return err
}

func (box) Seal(w io.Writer, context []byte) (io.WriteCloser, error) {
	return &boxWriter{out: w, aad: context}, nil
}

type boxReader struct {
	in, plain io.Reader
	aad       []byte
}

func (r *boxReader) Read(p []byte) (int, error) {
	if r.plain == nil {
		b, err := io.ReadAll(r.in)
		if err != nil {
			return 0, err
		}
		plain, err := box{}.aead().Open(nil, nil, b, r.aad)
		if err != nil {
			return 0, snapshot.ErrDamaged
		}
		r.plain = bytes.NewReader(plain)
	}
	return r.plain.Read(p)
}

func (box) Open(r io.Reader, context []byte) io.Reader { return &boxReader{in: r, aad: context} }

// source is a snapshot.Source with a log that grows.
type source struct {
	mu   sync.Mutex
	last uint64
}

func (s *source) grow(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last += n
}

func (s *source) at() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *source) Entries(after uint64, _ int) (list []snapshot.LogEntry, through uint64, err error) {
	through = max(after, min(s.at(), after+7))
	for i := after + 1; i <= through; i++ {
		list = append(list, snapshot.LogEntry{Index: i, Term: 3, Data: fmt.Append(nil, i)})
	}
	return list, through, nil
}

func state(last uint64) (b []byte) {
	for i := uint64(1); i <= last; i++ {
		b = fmt.Append(b, i, ";")
	}
	return b
}

func (s *source) State() (snapshot.Header, func(io.Writer) error) {
	last := s.at()
	return snapshot.Header{Last: last, Term: 3, Level: 2}, func(w io.Writer) error {
		_, err := w.Write(state(last))
		return err
	}
}

func (s *source) Keyring() ([]byte, uint64) { return []byte("keyring"), s.at() }

// machine is a snapshot.Machine that notes what it is fed.
type machine struct{ state []byte }

func (m *machine) Restore(_ snapshot.Header, r io.Reader) (err error) {
	m.state, err = io.ReadAll(r)
	return err
}

func (m *machine) Apply(e snapshot.LogEntry) error {
	m.state = append(append(m.state, e.Data...), ';')
	return nil
}

func shipper(a *snapshot.Archive, s *source, cluster [16]byte) *snapshot.Shipper {
	return snapshot.NewShipper(snapshot.ShipperConfig{Archive: a, Source: s, Commits: snapshot.NewCommits(s.at, time.Now), Cipher: box{}, Cluster: cluster, Incarnation: 1, Peer: "nexus-1",
		Every: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, SnapshotEvery: 100 * time.Millisecond})
}

// eventually waits for what must come.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to this: %s", what)
		}
	}
}

// replayed is the state to which an archive leads.
func replayed(t testing.TB, a *snapshot.Archive, cluster [16]byte) ([]byte, uint64) {
	t.Helper()
	list, err := a.List(t.Context(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := snapshot.MakePlan(list, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var m machine
	if _, _, err := a.Replay(t.Context(), plan, box{}, &m, nil); err != nil {
		t.Fatal(err)
	}
	return m.state, plan.Last
}
