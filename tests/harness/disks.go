package harness

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness/faultfs"
)

// mount puts a file system that fails on purpose under the data directory of each peer.
func (c *Cluster) mount() error {
	for i := range c.o.Voters + c.o.Learners {
		disk, err := faultfs.Mount(filepath.Dir(c.DataDir(i)), c.path("behind", PeerName(i)))
		if err != nil {
			return err
		}
		c.disks = append(c.disks, disk)
	}
	return nil
}

// Disk is what is under the data directory of peer i. It needs Options.Disks.
func (c *Cluster) Disk(i int) *faultfs.FS { return c.disks[i] }

// PowerLoss kills peers, all at once, and has their disks lose what was not durable: see faultfs.FS.LosePower. They stay down.
func (c *Cluster) PowerLoss(random *rand.Rand, peers ...int) error {
	var wait sync.WaitGroup
	failed := make([]error, len(peers))
	for k, i := range peers {
		var some *rand.Rand // of its own
		if random != nil {
			some = rand.New(rand.NewPCG(random.Uint64(), random.Uint64()))
		}
		wait.Go(func() {
			failed[k] = c.peers[i].KillAnd(func() error { return c.disks[i].LosePower(some) })
		})
	}
	wait.Wait()
	return errors.Join(failed...)
}

// unmount takes the disks away; nothing runs on them any more.
func (c *Cluster) unmount() (failed error) {
	for _, d := range c.disks {
		failed = errors.Join(failed, d.Close())
	}
	return failed
}

// restartAfter is how long what supervises a process waits, as systemd and Kubernetes do.
const restartAfter = time.Second

// supervise starts a process again that has ended of its own accord, unless it said that this does not help.
func (c *Cluster) supervise(p *process.Child, how string) {
	if how == "exit status 65" {
		return
	}
	go func() {
		select {
		case <-c.closing:
		case <-time.After(restartAfter):
			_ = p.Start() // somebody else may have
		}
	}()
}
