// Package faultfs is a file system that fails on purpose, for the data directory
// of a process that is to be shown that its disk is full, read-only, slow or
// hanging, that an fsync fails, or that the power goes.
//
// It hands everything on to a directory, through FUSE, and keeps apart what a
// disk would have after a power loss: see disk. Mounting takes root and Linux.
package faultfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Fault is what a disk suffers from. The zero value is a disk that works.
type Fault struct {
	Under    string        // the directory that it is limited to; all when empty
	Full     bool          // what needs room fails with ENOSPC; what overwrites does not
	ReadOnly bool          // what changes anything fails with EROFS
	FailSync bool          // fsync fails with EIO, and what was not durable never gets so: as in Linux, a second fsync says nothing of it
	Stall    bool          // everything waits until there is another fault, or none
	Slow     time.Duration // how much longer each fsync takes, and each write by a tenth of that
	off      bool          // the power is gone
}

func (f Fault) String() string {
	var what []string
	for word, is := range map[string]bool{"full": f.Full, "read-only": f.ReadOnly, "no fsync": f.FailSync, "hangs": f.Stall, "no power": f.off, "slow by " + f.Slow.String(): f.Slow > 0} {
		if is {
			what = append(what, word)
		}
	}
	slices.Sort(what)
	return strings.TrimSpace(f.Under + " disk " + strings.Join(what, ", "))
}

// kind is what an operation asks of a disk.
type kind int

const (
	reads     kind = iota
	changes        // and needs no room
	allocates      // and needs some
	syncs
)

// FS is a mounted file system. Its methods may be called from any goroutine.
type FS struct {
	place   string // where it is mounted
	dir     string // what is behind it
	server  *fuse.Server
	disk    *disk
	mu      sync.Mutex // guards what follows
	fault   Fault
	changed chan struct{} // closed at the next fault
	hit     uint64        // operations that failed, waited or were slowed down
}

// ErrNeedsRoot says that file systems cannot be mounted by this user.
var ErrNeedsRoot = errors.New("mounting a file system that fails on purpose needs root, and /dev/fuse")

// Mount puts a file system over the directory place, empty, with what it holds below the
// directory dir. Both are made when they are not there.
func Mount(place, dir string) (*FS, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNeedsRoot
	}
	sweep()
	if err := errors.Join(os.MkdirAll(place, 0o700), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, err
	}
	f := &FS{place: place, dir: dir, changed: make(chan struct{})}
	var err error
	if f.disk, err = newDisk(dir); err != nil {
		return nil, err
	}
	if err := f.mount(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *FS) mount() error {
	under, err := fs.NewLoopbackRoot(f.disk.live)
	if err != nil {
		return err
	}
	root := &node{under.(*fs.LoopbackNode), f}
	syscall.ForkLock.RLock() // no child is made meanwhile
	defer syscall.ForkLock.RUnlock()
	defer keepToSelf()
	f.server, err = fs.Mount(f.place, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: fmt.Sprintf(named, os.Getpid()), Name: "faultfs", DisableXAttrs: true}})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNeedsRoot, err)
	}
	return nil
}

// Suffer begins a fault, and ends the one before.
func (f *FS) Suffer(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
	close(f.changed)
	f.changed = make(chan struct{})
}

// Hit is how many operations have failed, waited or were slowed down so far.
func (f *FS) Hit() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}

// LosePower has the disk lose what was not durable; all of it, or, with random, but for what it wrote back of its own
// accord. Nobody may have a file open: whoever did was killed before.
func (f *FS) LosePower(random *rand.Rand) error {
	f.Suffer(Fault{off: true})
	if err := f.unmount(); err != nil {
		return err
	}
	if err := f.disk.losePower(random); err != nil {
		return err
	}
	f.Suffer(Fault{})
	return f.mount()
}

// Close ends every fault and unmounts, even when somebody has a file open.
func (f *FS) Close() error {
	f.Suffer(Fault{off: true})
	return f.unmount()
}

func (f *FS) unmount() error {
	if err := unix.Unmount(f.place, detach); err != nil {
		return fmt.Errorf("unmount %s: %w", f.place, err)
	}
	f.server.Wait()
	return nil
}

// detach is MNT_DETACH of umount2(2): also what is in use.
const detach = 2

// sweep takes away what processes have mounted that were killed. Nobody answers for it any more, so that whoever
// asks, and be it for its name, waits for ever.
func sweep() {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) { // what, where, type …: proc(5)
		f := strings.Fields(line)
		var pid int
		if len(f) < 3 || f[2] != "fuse.faultfs" {
			continue
		}
		if _, err := fmt.Sscanf(f[0], named, &pid); err != nil {
			continue
		}
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil { // it runs; what waits to be reaped has none
			continue
		}
		const force = 1 // MNT_FORCE: ends what waits
		_ = unix.Unmount(f[1], force|detach)
	}
}

// named is what is mounted, with the process that answers for it.
const named = "faultfs-%d"

// keepToSelf has no child inherit the connections to the kernel, which go-fuse leaves to chance: a child that waits for
// an answer, and itself keeps the connection open on which it would come, cannot be killed any more.
func keepToSelf() {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == "/dev/fuse" {
			if fd, err := strconv.Atoi(e.Name()); err == nil {
				syscall.CloseOnExec(fd)
			}
		}
	}
}

// enter waits as long as the disk hangs, and says how an operation on name fails.
func (f *FS) enter(what kind, name string) syscall.Errno {
	slowed := false
	for {
		f.mu.Lock()
		fault, changed := f.fault, f.changed
		if fault.Under != "" && !strings.Contains("/"+name+"/", "/"+fault.Under+"/") {
			fault = Fault{}
		}
		slow := !slowed && fault.Slow > 0 && what != reads
		if what != syncs {
			fault.Slow /= 10
		}
		errno := fault.fails(what)
		if fault.Stall || slow || errno != 0 {
			f.hit++
		}
		f.mu.Unlock()
		switch {
		case fault.Stall:
			<-changed
			continue
		case slow:
			slowed = true
			select {
			case <-time.After(fault.Slow):
			case <-changed:
			}
			continue
		}
		return errno
	}
}

func (f Fault) fails(what kind) syscall.Errno {
	switch {
	case f.off, f.FailSync && what == syncs:
		return syscall.EIO
	case f.ReadOnly && what != reads:
		return syscall.EROFS
	case f.Full && what == allocates:
		return syscall.ENOSPC
	}
	return 0
}

// full tells whether there is no room for what is under name, without counting that as a failure.
func (f *FS) full(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault.Full && (f.fault.Under == "" || path.Base(name) == f.fault.Under)
}

// at is where the file of a name is kept.
func (f *FS) at(name string) string { return filepath.Join(f.disk.live, name) }
