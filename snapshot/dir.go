package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Directory is a Bucket in a directory of this machine or of a mounted file system that has hard links. Objects are files, mode
// 0600, that appear whole: written and fsynced beside their place, then linked into it.
type Directory struct{ root string }

// NewDirectory makes a Bucket of a directory, which is created when it is not there.
func NewDirectory(root string) (*Directory, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("snapshot: the directory of archives: %w", err)
	}
	return &Directory{root}, nil
}

// String implements Bucket.
func (d *Directory) String() string { return "file://" + d.root }

// file is where an object lies. Names that begin with a dot are not objects: unfinished ones lie under such.
func (d *Directory) file(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(d.root, filepath.FromSlash(name)), nil
}

// Create implements Bucket.
func (d *Directory) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	place, err := d.file(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(place); err == nil {
		return ErrExists
	}
	dir := filepath.Dir(place)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return unavailable(err)
	}
	temp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return unavailable(err)
	}
	defer os.Remove(temp.Name())
	n, err := io.Copy(temp, contextReader{ctx, body})
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes instead of %d", n, size)
	}
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return unavailable(err)
	}
	if err := os.Link(temp.Name(), place); errors.Is(err, fs.ErrExist) {
		return ErrExists
	} else if err != nil {
		return unavailable(err)
	}
	for ; ; dir = filepath.Dir(dir) { // each may be new
		if err := syncDir(dir); err != nil {
			return unavailable(err)
		}
		if dir == d.root || !strings.HasPrefix(dir, d.root) {
			return nil
		}
	}
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func unavailable(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Open implements Bucket.
func (d *Directory) Open(_ context.Context, name string) (io.ReadCloser, Object, error) {
	place, err := d.file(name)
	if err != nil {
		return nil, Object{}, err
	}
	file, err := os.Open(place)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Object{}, ErrNotFound
	}
	if err != nil {
		return nil, Object{}, unavailable(err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotFound
	}
	if err != nil {
		file.Close()
		return nil, Object{}, err
	}
	return file, Object{name, info.Size(), info.ModTime()}, nil
}

// List implements Bucket.
func (d *Directory) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		var names []string
		from := path.Dir(prefix + "x") // the directory that all names with the prefix are in or below
		err := filepath.WalkDir(filepath.Join(d.root, filepath.FromSlash(from)), func(place string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // removed meanwhile, or never there
				return nil
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), "."):
				return nil
			}
			rel, err := filepath.Rel(d.root, place)
			if name := filepath.ToSlash(rel); err == nil && strings.HasPrefix(name, prefix) && name > after {
				names = append(names, name)
			}
			return err
		})
		if err != nil {
			yield(Object{}, unavailable(err))
			return
		}
		slices.Sort(names)
		for _, name := range names {
			info, err := os.Lstat(filepath.Join(d.root, filepath.FromSlash(name)))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				yield(Object{}, unavailable(err))
				return
			}
			if !yield(Object{name, info.Size(), info.ModTime()}, nil) {
				return
			}
		}
	}
}

// Delete implements Bucket.
func (d *Directory) Delete(_ context.Context, name string) error {
	place, err := d.file(name)
	if err != nil {
		return err
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unavailable(err)
	}
	return nil
}
