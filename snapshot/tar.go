package snapshot

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
)

// A single-file archive is a tar file of a keyring object and a snapshot object, each under the name that it has in a
// bucket and byte for byte what would lie there.

// maxMembers bounds the objects of a single-file archive: more than any that Export writes, so that one may be put together by hand.
const maxMembers = 256

// maxInTar bounds an object: eleven octal digits.
const maxInTar = 1<<33 - 1

// Tarball is a single-file archive as a Bucket that can only be read. Safe for concurrent use.
type Tarball struct {
	file    io.ReaderAt
	name    string
	members []member // in the order of their names
}

type member struct {
	Object
	offset int64
}

// OpenTar opens a single-file archive, which stays open until Close. Errors: ErrFormat for what is none, those of os.Open.
func OpenTar(name string) (*Tarball, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	var t *Tarball
	if err == nil {
		t, err = ReadTar(file, info.Size(), name)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return t, nil
}

// ReadTar finds the objects of a single-file archive of size bytes. Whatever is in it that an archive does not hold is an ErrFormat: links,
// directories, other names, names twice, extended headers, objects that go beyond the end. Names are only compared, and nothing
// is unpacked, so that none leads anywhere.
func ReadTar(file io.ReaderAt, size int64, name string) (*Tarball, error) {
	t := &Tarball{file: file, name: name}
	bad := func(why string) error { return fmt.Errorf("%w: %s: %s", ErrFormat, name, why) }
	in := io.NewSectionReader(file, 0, size)
	r := tar.NewReader(in)
	end := int64(0)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, tar.ErrInsecurePath):
			return nil, bad("it is no tar file, or not a whole one")
		case err != nil:
			return nil, err
		}
		if len(t.members) == maxMembers {
			return nil, bad("it has too many objects")
		}
		offset, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		_, ours := ParseName(h.Name)
		switch {
		case !ours || h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 || h.Linkname != "":
			return nil, bad(fmt.Sprintf("%.100q is not an object of an archive", h.Name))
		case h.Size < 0 || h.Size > size-offset:
			return nil, bad("it was cut off")
		}
		t.members = append(t.members, member{Object{Name: h.Name, Size: h.Size, Modified: h.ModTime}, offset})
		end = offset + (h.Size+511)/512*512
	}
	if size < end+1024 {
		return nil, bad("its end is missing")
	}
	slices.SortFunc(t.members, func(x, y member) int { return cmp.Compare(x.Name, y.Name) })
	for i := 1; i < len(t.members); i++ {
		if t.members[i].Name == t.members[i-1].Name {
			return nil, bad("an object is in it twice")
		}
	}
	return t, nil
}

// Close closes the file.
func (t *Tarball) Close() error {
	if c, ok := t.file.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// String implements Bucket.
func (t *Tarball) String() string { return t.name }

var errReadOnly = fmt.Errorf("%w: a single-file archive is not changed", ErrForbidden)

// Create implements Bucket: ErrForbidden.
func (t *Tarball) Create(context.Context, string, int64, io.ReadSeeker) error { return errReadOnly }

// Delete implements Bucket: ErrForbidden.
func (t *Tarball) Delete(context.Context, string) error { return errReadOnly }

// Open implements Bucket.
func (t *Tarball) Open(ctx context.Context, name string) (io.ReadCloser, Object, error) {
	if err := CheckName(name); err != nil {
		return nil, Object{}, err
	}
	at, there := slices.BinarySearchFunc(t.members, name, func(m member, name string) int { return cmp.Compare(m.Name, name) })
	if !there {
		return nil, Object{}, ErrNotFound
	}
	m := t.members[at]
	return io.NopCloser(contextReader{ctx, io.NewSectionReader(t.file, m.offset, m.Size)}), m.Object, nil
}

// List implements Bucket.
func (t *Tarball) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for _, m := range t.members {
			if !strings.HasPrefix(m.Name, prefix) || m.Name <= after {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(Object{}, err)
				return
			}
			if !yield(m.Object, nil) {
				return
			}
		}
	}
}

// Export writes the present state of cfg.Source, and the keyring that opens it, as a single-file archive; cfg.Archive is not used. Begin is called once,
// when the size is known, and gives what the file is written to. The state is spooled in a file of the directory spool first, so that
// memory does not grow with it. After an error what was written is not a file that opens. Errors: those of Save, begin and the writer.
func Export(ctx context.Context, cfg ShipperConfig, spool string, begin func(size int64) (io.Writer, error)) (Item, error) {
	cfg.Archive = New(&tarring{begin: begin, now: cfg.Now}, "", spool)
	return NewShipper(cfg).Save(ctx)
}

// tarring is a Bucket that makes a tar file of keyrings and the first snapshot that are created in it.
type tarring struct {
	Bucket // none: it can only be written
	begin  func(size int64) (io.Writer, error)
	now    func() time.Time
	held   []part // keyrings, which are small, until the size of the file is known
}

type part struct {
	name string
	size int64
	body io.Reader
}

func (t *tarring) String() string { return "a single file" }

func (t *tarring) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	if item, _ := ParseName(name); item.Kind == Keyring {
		b, err := io.ReadAll(body)
		t.held = append(t.held, part{name, size, bytes.NewReader(b)})
		return err
	}
	if size > maxInTar {
		return fmt.Errorf("%w: %d bytes are more than a single file takes; use a directory or bucket", ErrFormat, size)
	}
	parts := append(t.held, part{name, size, body})
	total := int64(1024) // the end of a tar file
	for _, p := range parts {
		total += 512 + (p.size+511)/512*512
	}
	out, err := t.begin(total)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, p := range parts {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: p.name, Size: p.size, Mode: 0o600, ModTime: t.time(), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%w: %s does not fit into a tar file: %w", ErrFormat, p.name, err)
		}
		if _, err := io.Copy(w, contextReader{ctx, p.body}); err != nil {
			return err
		}
	}
	return w.Close()
}

func (t *tarring) time() time.Time {
	if t.now == nil {
		return time.Now().Truncate(time.Second)
	}
	return t.now().Truncate(time.Second)
}
