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

	"github.com/spike-ha/spike-ha/audit"
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
		{audit.ErrDamaged, node.ExitData, false},
		{fmt.Errorf("%w: EIO", audit.ErrNotDurable), node.ExitRestart, false},
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

// lifeFile tells this program that it is to be the one of TestRestart: its first
// life begins a second one.
const lifeFile = "NODE_RESTART_LIFE"

func TestMain(m *testing.M) {
	if file := os.Getenv(lifeFile); file != "" {
		if err := live(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func live(file string) error {
	which := file + ".first"
	if _, err := os.Stat(which); err == nil {
		which = file + ".second"
	}
	if err := os.WriteFile(which, fmt.Appendf(nil, "%d %q", os.Getpid(), os.Args), 0o600); err != nil {
		return err
	}
	if which == file+".second" {
		return nil
	}
	return node.Restart()
}

func TestRestart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "life")
	cmd := exec.Command(os.Args[0], "an", "argument")
	cmd.Env = append(os.Environ(), lifeFile+"="+file)
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
