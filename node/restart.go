package node

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
)

// Exit statuses of nexus, for whatever supervises it. Documented in
// nexus --help and docs/operations.md.
const (
	ExitFailed  = 1  // wrong settings, or it cannot go on; the last line of the log says why
	ExitData    = 65 // its data is damaged, foreign, superseded or of a newer version: starting it again does not help (EX_DATAERR)
	ExitRestart = 75 // nothing is wrong with its data: start it again (EX_TEMPFAIL)
)

// ExitStatus is the status with which the program ends after err.
func ExitStatus(err error) int {
	if err == nil {
		return 0
	}
	for _, again := range []error{cluster.ErrNoProgress, cluster.ErrDiskHangs, audit.ErrNotDurable} {
		if errors.Is(err, again) {
			return ExitRestart
		}
	}
	var log *cluster.ErrCorruptLog
	var level *fsm.ErrUnknownLevel
	if errors.As(err, &log) || errors.As(err, &level) {
		return ExitData
	}
	for _, data := range []error{cluster.ErrForeignData, cluster.ErrNewerFormat, cluster.ErrCorruptMarker, cluster.ErrCorruptSnapshot,
		cluster.ErrLostData, cluster.ErrRecovering, cluster.ErrSuperseded, audit.ErrDamaged} {
		if errors.Is(err, data) {
			return ExitData
		}
	}
	return ExitFailed
}

// restartsAfter is how long a process has run before it starts itself again: one
// that stands still at once is a supervisor's, who knows how to wait.
const restartsAfter = time.Minute

// RestartsItself tells whether a program that ran for so long should begin anew
// in the same process after err, rather than end: only when Raft made no
// progress, at most once a minute.
func RestartsItself(err error, ran time.Duration) bool {
	return errors.Is(err, cluster.ErrNoProgress) && ran >= restartsAfter
}

// Restart runs the program anew in this process, with its arguments and
// environment. Files are closed by the kernel, the lock of the data directory
// with them; memory is gone. It returns only if that is not possible.
func Restart() error {
	self := "/proc/self/exe" // this very program, also when the file was replaced
	if _, err := os.Stat(self); err != nil {
		if self, err = os.Executable(); err != nil {
			return err
		}
	}
	return syscall.Exec(self, os.Args, os.Environ())
}
