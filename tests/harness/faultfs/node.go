package faultfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or a directory: it asks whether an operation fails, tells the
// disk what it would have to remember, and leaves the rest to the loopback.
type node struct {
	*fs.LoopbackNode
	fs *FS
}

var _ = fs.NodeWrapChilder((*node)(nil))

func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{ops.(*fs.LoopbackNode), n.fs}
}

func (n *node) name() string { return n.Path(n.Root()) }

func (n *node) child(name string) string { return filepath.Join(n.name(), name) }

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := n.child(name)
	if errno := n.fs.enter(allocates, path); errno != 0 {
		return nil, nil, 0, errno
	}
	open, err := n.fs.disk.create(n.fs.at(path), int(flags)&(syscall.O_EXCL|syscall.O_TRUNC), os.FileMode(mode))
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	inode, errno := n.Lookup(ctx, name, out)
	if errno != 0 {
		open.Close()
		return nil, nil, 0, errno
	}
	return inode, &file{open, n.fs, inode}, 0, 0
}

func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	what, how := reads, os.O_RDONLY
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		what, how = changes, os.O_RDWR // what is written is read when it is synced
	}
	name := n.name()
	if errno := n.fs.enter(what, name); errno != 0 {
		return nil, 0, errno
	}
	open, err := os.OpenFile(n.fs.at(name), how, 0)
	if err == nil && flags&syscall.O_TRUNC != 0 {
		if err = n.fs.disk.truncate(open, 0); err != nil {
			open.Close()
		}
	}
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &file{open, n.fs, n.EmbeddedInode()}, 0, 0
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	name := n.name()
	if errno := n.fs.enter(changes, name); errno != 0 {
		return errno
	}
	if size, ok := in.GetSize(); ok {
		open, _ := f.(*file)
		if open == nil {
			there, err := os.OpenFile(n.fs.at(name), os.O_RDWR, 0)
			if err != nil {
				return fs.ToErrno(err)
			}
			defer there.Close()
			open = &file{there, n.fs, n.EmbeddedInode()}
		}
		if err := n.fs.disk.truncate(open.File, int64(size)); err != nil {
			return fs.ToErrno(err)
		}
		in.Valid &^= fuse.FATTR_SIZE
		if in.Valid&^(fuse.FATTR_FH|fuse.FATTR_LOCKOWNER|fuse.FATTR_MTIME|fuse.FATTR_CTIME) == 0 {
			return open.Getattr(ctx, out)
		}
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if errno := n.fs.enter(reads, n.name()); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Getattr(ctx, f, out)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := n.fs.enter(allocates, n.child(name)); errno != 0 {
		return nil, errno
	}
	if err := n.fs.disk.mkdir(n.fs.at(n.child(name)), os.FileMode(mode)); err != nil {
		return nil, fs.ToErrno(err)
	}
	return n.Lookup(ctx, name, out)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if errno := n.fs.enter(changes, n.child(name)); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if errno := n.fs.enter(changes, n.child(name)); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, toName string, flags uint32) syscall.Errno {
	if errno := n.fs.enter(changes, n.child(name)); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rename(ctx, name, to, toName, flags)
}

// There are no other ways to make or fill files: they would pass by the disk.

func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

func (n *node) Tmpfile(context.Context, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EOPNOTSUPP
}

func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.EOPNOTSUPP
}

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	errno := n.LoopbackNode.Statfs(ctx, out)
	if n.fs.full(n.name()) {
		out.Bfree, out.Bavail = 0, 0
	}
	return errno
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.fs.enter(reads, n.name()); errno != 0 {
		return nil, 0, errno
	}
	h, fuseFlags, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return &directory{h.(fs.FileReaddirenter), h.(fs.FileSeekdirer), h.(fs.FileReleasedirer), n}, fuseFlags, 0
}

// directory is an open one.
type directory struct {
	fs.FileReaddirenter
	fs.FileSeekdirer
	fs.FileReleasedirer
	n *node
}

func (d *directory) Fsyncdir(context.Context, uint32) syscall.Errno {
	name := d.n.name()
	if errno := d.n.fs.enter(syncs, name); errno != 0 {
		return errno
	}
	return fs.ToErrno(d.n.fs.disk.syncDir(d.n.fs.at(name)))
}

// file is an open one.
type file struct {
	*os.File
	fs    *FS
	inode *fs.Inode
}

func (f *file) name() string { return f.inode.Path(f.inode.Root()) }

func (f *file) Read(_ context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.fs.enter(reads, f.name()); errno != 0 {
		return nil, errno
	}
	n, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(buf[:n]), 0
}

func (f *file) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	what := changes
	if hole, err := unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE); err != nil || hole < off+int64(len(data)) {
		what = allocates
	}
	if errno := f.fs.enter(what, f.name()); errno != 0 {
		return 0, errno
	}
	n, err := f.fs.disk.write(f.File, data, off)
	return uint32(n), fs.ToErrno(err)
}

func (f *file) Fsync(context.Context, uint32) syscall.Errno {
	name := f.name()
	errno := f.fs.enter(syncs, name)
	if errno != 0 {
		f.fs.disk.giveUp(f.File)
		return errno
	}
	return fs.ToErrno(f.fs.disk.sync(f.File, name))
}

func (f *file) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

func (f *file) Release(context.Context) syscall.Errno { return fs.ToErrno(f.Close()) }
