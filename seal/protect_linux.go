package seal

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
)

// ProtectProcess asks the system to make no core dump of this process and to let no other process of the same
// user look into it. A program that holds keys or shares calls it first. Failing is reported and harmless
// otherwise, and so is that this program was not built to erase what Go copies.
func ProtectProcess() error {
	var errs []error
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("seal: core dumps stay possible: %w", err))
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("seal: the process stays open to debuggers: %w", err))
	}
	if !erase.Enabled {
		errs = append(errs, errors.New("seal: copies of keys that Go made are not erased, because this program was built without GOEXPERIMENT=runtimesecret, which \"make build\" sets"))
	}
	return errors.Join(errs...)
}
