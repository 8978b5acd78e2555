package node_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/node"
)

func TestExitStatus(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err      error
		status   int
		restarts bool // when it ran long enough
	}{
		{nil, 0, false},
		{errors.New("wrong flag"), node.ExitFailed, false},
		{cluster.ErrDirInUse, node.ExitFailed, false},
		{cluster.ErrNoProgress, node.ExitRestart, true},
		{cluster.ErrDiskHangs, node.ExitRestart, false}, // the disk would hang again, and the kernel may not let go
		{&cluster.ErrCorruptLog{}, node.ExitData, false},
		{cluster.ErrCorruptSnapshot, node.ExitData, false},
		{cluster.ErrForeignData, node.ExitData, false},
		{cluster.ErrSuperseded, node.ExitData, false},
		{&fsm.ErrUnknownLevel{}, node.ExitData, false},
	} {
		err := tc.err
		if err != nil { // as Run says it
			err = errors.Join(fmt.Errorf("this peer cannot go on: %w", err), errors.New("it did not stop in time"))
		}
		if got := node.ExitStatus(err); got != tc.status {
			t.Errorf("%v: status %d, want %d", tc.err, got, tc.status)
		}
		if got := node.RestartsItself(err, time.Hour); got != tc.restarts {
			t.Errorf("%v: starts itself again: %v", tc.err, got)
		}
		if node.RestartsItself(err, 59*time.Second) {
			t.Errorf("%v: starts itself again in the first minute", tc.err)
		}
	}
}

// TestRestartHelper is the program of TestRestart: its first life begins a second one.
func TestRestartHelper(t *testing.T) {
	file := os.Getenv("NODE_RESTART_HELPER")
	if file == "" {
		t.Skip("helper of TestRestart")
	}
	if _, err := os.Stat(file + ".first"); err != nil {
		write(t, file+".first")
		t.Fatal(node.Restart())
	}
	write(t, file+".second")
}

func write(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d %q", os.Getpid(), os.Args), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "life")
	cmd := exec.Command(os.Args[0], "-test.run=^TestRestartHelper$")
	cmd.Env = append(os.Environ(), "NODE_RESTART_HELPER="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, err1 := os.ReadFile(file + ".first")
	second, err2 := os.ReadFile(file + ".second")
	if err1 != nil || err2 != nil || string(first) != string(second) {
		t.Errorf("first life %s (%v), second %s (%v)", first, err1, second, err2)
	}
	if want := strconv.Itoa(cmd.Process.Pid); len(first) < len(want) || string(first[:len(want)]) != want {
		t.Errorf("another process: %s", first)
	}
}
