package snapshot_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
)

func exported(t testing.TB) []byte {
	t.Helper()
	l := &log{last: 40, keyring: "sealed keyring"}
	var b bytes.Buffer
	said := int64(-1)
	item, err := snapshot.Export(t.Context(), snapshot.ShipperConfig{Source: l, Cipher: box(1), Cluster: [16]byte{1}, Incarnation: 7, Peer: "nexus-1", Now: func() time.Time { return time.Unix(1e9, 5) }},
		t.TempDir(), func(size int64) (io.Writer, error) {
			said = size
			return &b, nil
		})
	if err != nil || item.Last != 40 || said != int64(b.Len()) {
		t.Fatalf("%+v, %v; %d bytes were announced, %d written", item, err, said, b.Len())
	}
	return b.Bytes()
}

// A single-file archive is an archive: what was exported is read back, and verified like any other.
func TestSingleFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, exported(t), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := snapshot.OpenTar(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a := snapshot.New(file, "", "")
	list, err := a.List(t.Context(), [16]byte{})
	if err != nil || len(list) != 2 || list[0].Kind != snapshot.Keyring || list[1].Kind != snapshot.Snapshot || !list[1].Modified.Equal(time.Unix(1e9, 0)) {
		t.Fatalf("%+v, %v", list, err)
	}
	var state []byte
	if err := a.ReadSnapshot(t.Context(), list[1], box(1), func(_ snapshot.Header, r io.Reader) (err error) {
		state, err = io.ReadAll(r)
		return err
	}); err != nil || string(state) != wantState("empty", 1, 40) {
		t.Fatalf("%q, %v", state, err)
	}
	if _, b, err := a.ReadKeyring(t.Context(), list[0]); err != nil || string(b) != "sealed keyring" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := file.Delete(t.Context(), list[0].Name); !errors.Is(err, snapshot.ErrForbidden) {
		t.Error(err)
	}
	if err := file.Create(t.Context(), "v1/x", 0, nil); !errors.Is(err, snapshot.ErrForbidden) {
		t.Error(err)
	}
	if _, _, err := file.Open(t.Context(), "v1/x"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
	if _, _, err := file.Open(t.Context(), "../x"); !errors.Is(err, snapshot.ErrName) {
		t.Error(err)
	}
}

// An export whose reader goes away says so, and leaves nothing behind in the spool.
func TestExportFails(t *testing.T) {
	t.Parallel()
	spool, gone := t.TempDir(), errors.New("gone")
	cfg := snapshot.ShipperConfig{Source: &log{last: 4, keyring: "k"}, Cipher: box(1), Cluster: [16]byte{1}, Incarnation: 7, Peer: "nexus-1"}
	for _, begin := range []func(int64) (io.Writer, error){
		func(int64) (io.Writer, error) { return nil, gone },
		func(int64) (io.Writer, error) { return failing{gone}, nil },
	} {
		if _, err := snapshot.Export(t.Context(), cfg, spool, begin); !errors.Is(err, gone) {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// made is a tar file of what is given.
func made(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	aSnapshot = "v1/01000000000000000000000000000000/00000000000000000007/snapshot/00000000000000000040-00000000000000000003"
	aSegment  = "v1/01000000000000000000000000000000/00000000000000000007/log/00000000000000000041-00000000000000000045"
)

// checksum makes that of the first header right again.
func checksum(b []byte) {
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func badTars(t testing.TB) map[string][]byte {
	good := exported(t)
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 5, Mode: 0o600}
	}
	with := func(change func(*tar.Header)) []byte {
		h := file(aSnapshot)
		change(&h)
		return made(t, h)
	}
	many := []tar.Header{}
	for i := range 300 {
		many = append(many, file(fmt.Sprintf("v1/01000000000000000000000000000000/00000000000000000007/log/%020d-%020d", i+1, i+1)))
	}
	lies := made(t, file(aSnapshot)) // of a terabyte, and with a checksum that is right
	copy(lies[124:], "17777777777\x00")
	checksum(lies)
	endless := bytes.Clone(lies) // in base 256, as large as a number can be
	copy(endless[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
	checksum(endless)
	return map[string][]byte{
		"an endless size": endless,
		"nothing":         nil, "no tar": []byte(strings.Repeat("spike", 500)), "cut in a header": good[:100], "cut in the keyring": good[:600],
		"cut in the snapshot": good[:len(good)-1024-20], "without its end": good[:len(good)-1024], "with half its end": good[:len(good)-512],
		"another name":    made(t, file("etc/passwd")),
		"a way up":        made(t, file("v1/../../etc/passwd")),
		"an absolute one": made(t, file("/"+aSnapshot)),
		"a link":          with(func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0 }),
		"a hard link":     with(func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeLink, aSegment, 0 }),
		"a directory":     with(func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeDir, 0 }),
		"a device":        with(func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeChar, 0 }),
		"records of PAX":  with(func(h *tar.Header) { h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"SPIKE.x": "y"} }),
		"twice":           made(t, file(aSnapshot), file(aSegment), file(aSnapshot)),
		"too many":        made(t, many...),
		"a false size":    lies,
	}
}

// What is no single-file archive, or not all of one, is found when it is opened, whatever it says of itself.
func TestBadTars(t *testing.T) {
	t.Parallel()
	for name, b := range badTars(t) {
		if _, err := snapshot.ReadTar(bytes.NewReader(b), int64(len(b)), "x.tar"); !errors.Is(err, snapshot.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range exported(t) { // at every length
		if n%97 == 0 {
			if _, err := snapshot.ReadTar(bytes.NewReader(exported(t)[:n]), int64(n), "x.tar"); !errors.Is(err, snapshot.ErrFormat) {
				t.Errorf("cut at %d: %v", n, err)
			}
		}
	}
	if _, err := snapshot.OpenTar(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
	if _, err := snapshot.ReadTar(bytes.NewReader(made(t)), int64(len(made(t))), "x.tar"); err != nil {
		t.Error("an empty one is nothing to begin with, and no more:", err)
	}
}

// FuzzTar gives any bytes to the reader of single-file archives: no panic, a typed error, and what it lists is there, within the file.
func FuzzTar(f *testing.F) {
	f.Add(exported(f))
	for _, b := range badTars(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := snapshot.ReadTar(bytes.NewReader(b), int64(len(b)), "x.tar")
		if err != nil {
			if !errors.Is(err, snapshot.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		total := int64(0)
		for o, err := range file.List(t.Context(), "v1/", "") {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := snapshot.ParseName(o.Name); !ok {
				t.Fatal("listed:", o.Name)
			}
			r, again, err := file.Open(t.Context(), o.Name)
			if err != nil || again != o {
				t.Fatal(again, o, err)
			}
			n, err := io.Copy(io.Discard, r)
			if err != nil || n != o.Size {
				t.Fatal(n, o, err)
			}
			total += n
		}
		if total > int64(len(b)) {
			t.Fatalf("%d bytes of %d", total, len(b))
		}
	})
}
