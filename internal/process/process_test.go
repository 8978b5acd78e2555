package process_test

import (
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/spike-ha/spike-ha/internal/process"
)

// Nobody starts a process while something is done to its files.
func TestKillAnd(t *testing.T) {
	t.Parallel()
	spawner := process.NewSpawner()
	t.Cleanup(spawner.Close)
	c := &process.Child{Name: "sleep", Binary: "/bin/sleep", Args: []string{"1000"}, LogFile: filepath.Join(t.TempDir(), "log"), Spawner: spawner}
	t.Cleanup(func() { _ = c.Kill() })
	for range 20 {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		var done atomic.Bool
		started := make(chan error)
		if err := c.KillAnd(func() error {
			if _, _, runs := c.Running(); runs {
				t.Error("it runs still")
			}
			begun := make(chan bool)
			go func() {
				close(begun)
				err := c.Start()
				if !done.Load() {
					t.Error("it was started meanwhile")
				}
				started <- err
			}()
			<-begun
			defer done.Store(true)
			return exec.Command("/bin/true").Run() // some work: another process could be started in that time
		}); err != nil {
			t.Fatal(err)
		}
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		if err := c.KillAnd(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := c.KillAnd(func() error { return nil }); err != nil { // of one that does not run
			t.Fatal(err)
		}
	}
}
