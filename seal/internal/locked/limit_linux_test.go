package locked_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// A system that refuses to lock memory costs a warning, not the process and not the bytes.
func TestRefusedLockDegrades(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: this thread loses a capability and ends with the goroutine
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
			t.Error(err)
			return
		}
		defer unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old)
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&head, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		caps[unix.CAP_IPC_LOCK/32].Effective &^= 1 << (unix.CAP_IPC_LOCK % 32)
		if err := unix.Capset(&head, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
			t.Error(err)
			return
		}
		b := locked.New(32)
		defer b.Destroy()
		if b.Locked() {
			t.Error("the system locked memory beyond its limit: this test tests nothing")
		}
		copy(b.Bytes(), "still usable")
		if string(b.Bytes()[:12]) != "still usable" {
			t.Error("lost the bytes")
		}
		if since, err := locked.Degraded(); err == nil || since.IsZero() {
			t.Error("nobody is told")
		}
	}()
	<-done
}
