// Package locked holds secret bytes outside the Go heap, in memory that the system is asked neither to swap nor
// to dump nor to hand to a forked process.
//
// It never fails and never panics: where the system refuses to lock memory (RLIMIT_MEMLOCK), the bytes are kept
// unlocked, and Degraded tells why. memguard, the usual choice, treats that refusal as fatal and wipes every
// buffer of the process first, which would turn a small limit into an outage; this package stands on memguard's
// system layer (memcall) instead. It protects against swap files, core dumps and stray reads and writes
// beyond a buffer, not against somebody who may read this process's memory.
package locked

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/awnumar/memcall"
)

// refusal says that the system did not lock memory.
type refusal struct {
	at  time.Time
	err error
}

// degraded is the first refusal, if there was one.
var degraded atomic.Pointer[refusal]

// Degraded is nil while every buffer so far could be locked, else the first reason why one could not, and since when.
func Degraded() (since time.Time, err error) {
	if r := degraded.Load(); r != nil {
		return r.at, r.err
	}
	return time.Time{}, nil
}

// Buffer is a fixed number of secret bytes between two inaccessible pages. The caller makes sure that nobody
// uses Bytes after Destroy: that is a fault, by design.
type Buffer struct {
	bytes  []byte
	region []byte // guard page, data pages, guard page; nil when the bytes had to come from the heap
	locked bool
	once   sync.Once
}

// New makes a buffer of n zero bytes, n at least 1.
func New(n int) *Buffer {
	page := os.Getpagesize()
	inner := (n + page - 1) / page * page
	region, err := memcall.Alloc(inner + 2*page)
	if err != nil {
		note(err)
		return &Buffer{bytes: make([]byte, n)}
	}
	b := &Buffer{region: region, bytes: region[page+inner-n : page+inner : page+inner]}
	if err := memcall.Lock(region[page : page+inner]); err != nil {
		note(err)
	} else {
		b.locked = true
	}
	private(region[page : page+inner])
	// A guard page that cannot be set up costs protection against overruns only, which Go's bounds checks give too.
	_ = memcall.Protect(region[:page], memcall.NoAccess())
	_ = memcall.Protect(region[page+inner:], memcall.NoAccess())
	return b
}

// Take moves secret into a new buffer and wipes where it came from.
func Take(secret []byte) *Buffer {
	b := New(len(secret))
	copy(b.bytes, secret)
	Wipe(secret)
	return b
}

// Bytes is the memory itself, valid until Destroy.
func (b *Buffer) Bytes() []byte { return b.bytes }

// Locked says whether the system holds this buffer out of swap.
func (b *Buffer) Locked() bool { return b.locked }

// Destroy wipes the bytes and gives the memory back. It is idempotent and accepts nil.
func (b *Buffer) Destroy() {
	if b == nil {
		return
	}
	b.once.Do(func() {
		Wipe(b.bytes)
		if b.region == nil {
			return
		}
		page := os.Getpagesize()
		if b.locked {
			_ = memcall.Unlock(b.region[page : len(b.region)-page])
		}
		_ = memcall.Free(b.region)
		b.region, b.bytes = nil, nil
	})
}

// Wipe overwrites b with zeros in a way the compiler keeps.
func Wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(b)
}

func note(err error) { degraded.CompareAndSwap(nil, &refusal{time.Now(), err}) }
