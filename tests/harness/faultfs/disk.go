package faultfs

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// disk knows what a power loss leaves: of a file, the bytes of its last fsync; of
// a directory, the names of its own. As in every journalling file system of
// Linux, an fsync of a file makes its name durable as well, with the directories
// above; but not that of another file, nor a removal.
//
// What was not durable may have got to the disk all the same, page by page and
// in any order.
//
// The directory live is what processes see. It may be read freely, and changed by
// renaming and removing; all else goes through methods, from any goroutine.
type disk struct {
	dir, live string
	mu        sync.Mutex         // guards what follows
	objects   map[uint64]*object // by inode
	root      *object
	images    int
}

const page = 4096

// object is a file or a directory.
type object struct {
	names   map[string]*object // of a directory: the durable ones
	image   string             // of a file: where what is durable of it is
	dirty   map[int64]bool     // pages that differ from the image, or may
	floor   int64              // the file was as short as that since its last fsync
	changed bool               // since its last fsync
}

// newDisk takes what is there as durable.
func newDisk(dir string) (*disk, error) {
	d := &disk{dir: dir, live: filepath.Join(dir, "live")}
	if err := os.MkdirAll(d.live, 0o700); err != nil {
		return nil, err
	}
	return d, d.load()
}

func (d *disk) load() (err error) {
	if err := errors.Join(os.RemoveAll(d.durable()), os.Mkdir(d.durable(), 0o700)); err != nil {
		return err
	}
	d.objects = map[uint64]*object{}
	d.root, err = d.loaded(d.live)
	return err
}

func (d *disk) durable() string { return filepath.Join(d.dir, "durable") }

func (d *disk) loaded(path string) (*object, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	o := d.object(info, true)
	if !info.IsDir() {
		return o, copyFile(o.image, path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if o.names[e.Name()], err = d.loaded(filepath.Join(path, e.Name())); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// object is what is known of a file or directory; a fresh one has nothing durable.
func (d *disk) object(info os.FileInfo, fresh bool) *object {
	ino := info.Sys().(*syscall.Stat_t).Ino
	o := d.objects[ino]
	if o != nil && !fresh {
		return o
	}
	o = &object{}
	if info.IsDir() {
		o.names = map[string]*object{}
	} else {
		d.images++
		o.image, o.dirty = filepath.Join(d.durable(), fmt.Sprint(d.images)), map[int64]bool{}
	}
	d.objects[ino] = o
	return o
}

func (d *disk) of(f *os.File) (*object, os.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	return d.object(info, false), info, nil
}

// create opens a file for reading and writing, and makes it if need be.
func (d *disk) create(path string, flags int, mode os.FileMode) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if flags&os.O_EXCL == 0 {
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			if flags&os.O_TRUNC != 0 {
				err = d.cut(f, 0)
			}
			return f, err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d.object(info, true)
	return f, nil
}

func (d *disk) mkdir(path string, mode os.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err == nil {
		d.object(info, true)
	}
	return err
}

func (d *disk) write(f *os.File, data []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, info, err := d.of(f)
	if err != nil {
		return 0, err
	}
	o.touch(info.Size())
	n, err := f.WriteAt(data, off)
	for p := off / page; p*page < off+int64(n); p++ {
		o.dirty[p] = true
	}
	return n, err
}

// touch notes a change, which leaves at least the first bytes of the file where they were.
func (o *object) touch(bytes int64) {
	if !o.changed {
		o.changed, o.floor = true, bytes
	}
	o.floor = min(o.floor, bytes)
}

func (d *disk) truncate(f *os.File, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut(f, size)
}

func (d *disk) cut(f *os.File, size int64) error {
	o, info, err := d.of(f)
	if err != nil {
		return err
	}
	o.touch(min(info.Size(), size))
	return f.Truncate(size)
}

// sync makes a file durable, and its name.
func (d *disk) sync(f *os.File, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, info, err := d.of(f)
	if err != nil {
		return err
	}
	if err := o.flush(f, info.Size(), func(int64) bool { return true }); err != nil {
		return err
	}
	o.dirty, o.changed = map[int64]bool{}, false
	at, above := d.live, d.root
	for _, part := range strings.Split(name, "/") {
		at = filepath.Join(at, part)
		info, err := os.Lstat(at)
		if err != nil {
			return nil // it has no name any more
		}
		here := d.object(info, false)
		for other, there := range above.names {
			if there == here {
				delete(above.names, other) // it was renamed
			}
		}
		above.names[part], above = here, here
		if here == o {
			break
		}
	}
	return nil
}

// flush writes those dirty pages to the image that kept wants.
func (o *object) flush(f *os.File, size int64, kept func(int64) bool) error {
	image, err := os.OpenFile(o.image, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer image.Close()
	if o.changed {
		if info, err := image.Stat(); err != nil {
			return err
		} else if o.floor < info.Size() {
			if err := image.Truncate(o.floor); err != nil {
				return err
			}
		}
	}
	if err := image.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, page)
	for _, p := range slices.Sorted(maps.Keys(o.dirty)) { // in their order: what is drawn comes from the seed
		if !kept(p) || p*page >= size {
			continue
		}
		n, err := f.ReadAt(buf, p*page)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := image.WriteAt(buf[:n], p*page); err != nil {
			return err
		}
	}
	return nil
}

// giveUp has what is not durable of a file never get so, unless it is written again.
func (d *disk) giveUp(f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o, _, err := d.of(f); err == nil {
		o.dirty = map[int64]bool{}
	}
}

// syncDir makes the names in a directory durable.
func (d *disk) syncDir(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	o := d.object(info, false)
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	o.names = map[string]*object{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		o.names[e.Name()] = d.object(info, false)
	}
	return nil
}

// losePower leaves in live what is durable, and, with random, of some files some
// of what was not.
func (d *disk) losePower(random *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if random != nil {
		if err := d.writeBack(random); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(d.live), d.rebuild(d.root, d.live)); err != nil {
		return err
	}
	return d.load()
}

// writeBack draws, for half of the changed files, the pages that got to the disk.
func (d *disk) writeBack(random *rand.Rand) error {
	return filepath.WalkDir(d.live, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		o := d.object(info, false)
		if !o.changed || random.IntN(2) == 0 {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return o.flush(f, info.Size(), func(int64) bool { return random.IntN(2) == 0 })
	})
}

func (d *disk) rebuild(o *object, path string) error {
	if o.names == nil {
		return copyFile(path, o.image)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	for name, child := range o.names {
		if err := d.rebuild(child, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies one, which is empty when it is not there.
func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}
