package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/snapshot"
)

var update = flag.Bool("update", false, "write testdata/format-1 anew; archives lie in buckets for years, so what is there must be read for good")

// open is a Cipher that hides nothing: the context, and then what was written.
type open struct{}

type openWriter struct{ io.Writer }

func (openWriter) Close() error { return nil }

func (open) Seal(w io.Writer, context []byte) (io.WriteCloser, error) {
	_, err := w.Write(context)
	return openWriter{w}, err
}

func (open) Open(r io.Reader, context []byte) io.Reader {
	return &lateReader{open: func() ([]byte, error) {
		b, err := io.ReadAll(r)
		if err == nil && !bytes.HasPrefix(b, context) {
			err = snapshot.ErrDamaged
		}
		return bytes.TrimPrefix(b, context), err
	}}
}

// writeGolden writes one object of each kind, and of the snapshot one with all fields.
func writeGolden(t testing.TB, a *snapshot.Archive) {
	t.Helper()
	h := head(7, 0, 10)
	h.Data, h.All, h.Previous = [32]byte{1, 2, 3}, [32]byte{4, 5, 6}, [32]byte{7, 8, 9}
	_, _, err := a.PutSnapshot(ctx, h, open{}, func(w io.Writer) error {
		_, err := io.WriteString(w, "the state")
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	must[snapshot.Item](t)(a.PutSegment(ctx, head(7, 11, 20), open{}, entriesOf(11, 20), nil))
	must[snapshot.Item](t)(a.PutKeyring(ctx, head(7, 0, 12), []byte("sealed keyring")))
	if err := a.Claim(ctx, claimed(7, 1)); err != nil {
		t.Fatal(err)
	}
	must[snapshot.Item](t)(putAudit(a, open{}, 7, "nexus-1", 21, 30))
}

// The bytes of each kind of object, and their reading.
func TestGolden(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "format-1")
	m := newMemory()
	writeGolden(t, snapshot.New(m, "", t.TempDir()))
	files := func(name string) string { return filepath.Join(dir, strings.ReplaceAll(name, "/", "_")) }
	if *update {
		for name, b := range m.objects {
			if err := os.WriteFile(files(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	stored := newMemory()
	for name, b := range m.objects {
		stored.objects[name] = must[[]byte](t)(os.ReadFile(files(name)))
		if !bytes.Equal(b, stored.objects[name]) {
			t.Errorf("%s is written otherwise than it was released:\n%x\n%x", name, b, stored.objects[name])
		}
	}
	a := snapshot.New(stored, "", t.TempDir())
	for _, item := range must[[]snapshot.Item](t)(a.List(ctx, cluster)) {
		h := must[snapshot.Header](t)(a.Head(ctx, item))
		want := head(7, 0, item.Last)
		want.Kind = item.Kind
		got := ""
		switch item.Kind {
		case snapshot.Snapshot:
			want.Data, want.All, want.Previous = [32]byte{1, 2, 3}, [32]byte{4, 5, 6}, [32]byte{7, 8, 9}
			err := a.ReadSnapshot(ctx, item, open{}, func(_ snapshot.Header, r io.Reader) error {
				b, err := io.ReadAll(r)
				got = string(b)
				return err
			})
			if err != nil || got != "the state" {
				t.Errorf("%q, %v", got, err)
			}
		case snapshot.Segment:
			want.First = 11
			var list []snapshot.LogEntry
			_, err := a.ReadSegment(ctx, item, open{}, func(e snapshot.LogEntry) error {
				list = append(list, e)
				return nil
			})
			if err != nil || !slices.EqualFunc(list, entriesOf(11, 20), func(x, y snapshot.LogEntry) bool {
				return x.Index == y.Index && x.Term == y.Term && bytes.Equal(x.Data, y.Data)
			}) {
				t.Errorf("%v, %v", list, err)
			}
		case snapshot.Claim:
			want.Last, want.Term, want.Level = 0, 0, 0
			if c, err := a.ReadClaim(ctx, item); err != nil || !reflect.DeepEqual(c, claimed(7, 1)) {
				t.Errorf("%+v, %v", c, err)
			}
		case snapshot.Audit:
			want.First, want.Term, want.Level = 21, 0, 0
			if got, err := readAudit(a, item, open{}); err != nil || got != "records 21 to 30" {
				t.Errorf("%q, %v", got, err)
			}
		case snapshot.Keyring:
			if _, b, err := a.ReadKeyring(ctx, item); err != nil || string(b) != "sealed keyring" {
				t.Errorf("%q, %v", b, err)
			}
		}
		if h != want {
			t.Errorf("%+v\n%+v", h, want)
		}
	}
}

// single is a bucket that has one object, under any name.
type single struct {
	snapshot.Bucket
	b []byte
}

func (s single) Open(context.Context, string) (io.ReadCloser, snapshot.Object, error) {
	return io.NopCloser(bytes.NewReader(s.b)), snapshot.Object{}, nil
}

// Whatever lies where an object should be: it is read as what it is, or refused for what it is not.
func FuzzObject(f *testing.F) {
	m := newMemory()
	a := snapshot.New(m, "", f.TempDir())
	writeGolden(f, a)
	items := must[[]snapshot.Item](f)(a.List(ctx, cluster))
	for _, b := range m.objects {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := snapshot.New(single{newMemory(), b}, "", "")
		for _, item := range items {
			var err error
			switch item.Kind {
			case snapshot.Snapshot:
				err = a.ReadSnapshot(ctx, item, open{}, func(_ snapshot.Header, r io.Reader) error {
					_, err := io.Copy(io.Discard, r)
					return err
				})
			case snapshot.Segment:
				last := uint64(0)
				_, err = a.ReadSegment(ctx, item, open{}, func(e snapshot.LogEntry) error {
					if e.Index <= last || e.Index < item.First || e.Index > item.Last {
						t.Errorf("entry %d after %d", e.Index, last)
					}
					last = e.Index
					return nil
				})
			case snapshot.Claim:
				_, err = a.ReadClaim(ctx, item)
			case snapshot.Audit:
				_, err = readAudit(a, item, open{})
			case snapshot.Keyring:
				_, _, err = a.ReadKeyring(ctx, item)
			}
			if err != nil && !errors.Is(err, snapshot.ErrFormat) && !errors.Is(err, snapshot.ErrForeign) && !errors.Is(err, snapshot.ErrDamaged) {
				t.Errorf("%s: %v", item.Kind, err)
			}
		}
	})
}
