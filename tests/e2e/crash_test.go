package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// mortal are the programs with failpoints.
var mortal = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(bin, "mortal")
	args := []string{"build", "-tags", "failpoints", "-o", dir + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "../../cmd/nexus", "../../cmd/keeper")...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return dir, err
})

// crashing is a cluster whose processes die at steps, under a little load.
type crashing struct {
	*brokenCluster
	all  *client.Client // of a superuser, at all peers
	each []*client.Client

	load    sync.WaitGroup
	stop    chan struct{}
	mu      sync.Mutex
	written []string // acknowledged
}

func crash(t *testing.T, keepers int) *crashing {
	t.Helper()
	dir, err := mortal()
	if err != nil {
		t.Fatal(err)
	}
	c := &crashing{brokenCluster: broken(t, harness.Options{Voters: 3, Keepers: keepers, Binaries: dir, Failpoints: true}), stop: make(chan struct{})}
	c.all = c.client(harness.Superuser)
	for i := range c.Peers() {
		c.each = append(c.each, c.client(harness.Superuser, i))
	}
	c.eventually("the level has risen", func() error { return c.all.RotateKeys(ctx, "audit-path") })
	writer := c.client(harness.Superuser)
	pace := time.NewTicker(10 * time.Millisecond) // a little load: each write is read again, through every peer
	t.Cleanup(pace.Stop)
	c.load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-c.stop:
				return
			case <-pace.C:
			}
			path := fmt.Sprintf("load/%d", n)
			_, err := writer.Put(ctx, path, map[string]string{"v": path}, nil)
			if err != nil && secret.CodeOf(err) != secret.CodeUnknown {
				t.Errorf("put: %v", err)
				return
			}
			if err == nil {
				c.mu.Lock()
				c.written = append(c.written, path)
				c.mu.Unlock()
			}
		}
	})
	return c
}

// kill has a process die at a step of a command, starts it again, and runs the
// same command until it completes. first is the command as it meets the victim,
// again the same at any peer.
func (c *crashing) kill(step failpoint.Name, victim *process.Child, first, again func(context.Context) error) {
	c.t.Helper()
	limit, cancel := context.WithCancel(ctx)
	defer cancel()
	c.must(c.Arm(victim, step))
	pid, _, ok := victim.Running()
	if !ok {
		c.t.Fatalf("%s does not run", victim.Name)
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = first(limit) }) // whatever it comes to: its process dies
	c.eventually(fmt.Sprintf("%s dies at %s", victim.Name, step), func() error {
		if now, _, ok := victim.Running(); ok && now == pid {
			return errors.New("it lives")
		}
		return nil
	})
	cancel()
	wait.Wait()
	began := time.Now()
	c.must(victim.Start())
	c.eventually(fmt.Sprintf("after %s died at %s the same completes", victim.Name, step), func() error { return again(ctx) })
	c.t.Logf("%s died at %s; the same was complete after %s", victim.Name, step, time.Since(began).Round(time.Millisecond))
}

// finish stops the load, starts every peer anew, and reads through each of them
// all that was acknowledged.
func (c *crashing) finish() {
	c.t.Helper()
	close(c.stop)
	c.load.Wait()
	for i := range c.Peers() {
		c.Peer(i).Kill()
	}
	for i := range c.Peers() {
		c.must(c.Peer(i).Start())
	}
	c.readable()
}

func (c *crashing) readable() {
	c.t.Helper()
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, c.all) })
	for i, cl := range c.each {
		for _, path := range c.written {
			if got, _, err := cl.Get(ctx, path, 0); err != nil || got["v"] != path {
				c.t.Fatalf("%s through %s: %v, %v", path, harness.PeerName(i), got, err)
			}
		}
	}
	c.t.Logf("%d acknowledged writes are on every peer", len(c.written))
}

// rekeyed waits until a rekey is over, and everything is under new keys.
func (c *crashing) rekeyed() {
	c.t.Helper()
	c.eventually("the keys of before are rotated", func() error {
		keys, err := c.all.Keys(ctx)
		if err == nil && (keys.Pending != nil || keys.Inherited || keys.Stale > 0) {
			err = fmt.Errorf("pending %v, inherited %v, %d stale", keys.Pending, keys.Inherited, keys.Stale)
		}
		return err
	})
}

// shares are the recovery shares of now.
func (c *crashing) shares() (list []client.RestoreRequest) {
	c.t.Helper()
	key, err := age.GenerateX25519Identity()
	c.must(err)
	files, err := c.client("/spike/pilot/role/recover").Recover(ctx, client.RecoverRequest{Recipients: []string{key.Recipient().String()}, OneHolder: true})
	c.must(err)
	for _, f := range files {
		file, err := recoveryfile.Parse([]byte(f.Content))
		c.must(err)
		share, err := file.Open(key)
		c.must(err)
		list = append(list, client.RestoreRequest{Index: file.Index, Share: share, Cluster: file.Cluster.ID[:], Set: file.Set[:]})
	}
	return list
}

// A rekey is killed at each of its steps, on the peer that does it, leader or
// not, and so is a Keeper at each of its. The same command completes it, once.
// In the end old shares are refused and new ones open the cluster.
func TestCrashesInRekey(t *testing.T) {
	t.Parallel()
	c := crash(t, 3)
	old := c.shares()
	rekey := func(i int) (first, again func(context.Context) error) {
		q := client.RekeyRequest{ID: client.NewID(), Shares: 3, Threshold: 2}
		return func(ctx context.Context) error { return c.each[i].Rekey(ctx, q) }, func(ctx context.Context) error { return c.all.Rekey(ctx, q) }
	}
	for n, step := range []failpoint.Name{failpoint.SealBeginBefore, failpoint.SealBeginAfter, failpoint.SealPlaceOne, failpoint.SealPlaceAfter,
		failpoint.SealCommitBefore, failpoint.SealCommitAfter, failpoint.SealSettleAfter} {
		at := (c.leader(c.all) + n%2) % 3 // the leader, or one that follows
		before, err := c.all.Keys(ctx)
		c.must(err)
		first, again := rekey(at)
		var between client.KeysAnswer
		c.kill(step, c.Peer(at), first, func(ctx context.Context) (err error) {
			if between.ShareSet == nil {
				if between, err = c.all.Keys(ctx); err != nil {
					return err
				}
			}
			return again(ctx)
		})
		after, err := c.all.Keys(ctx)
		c.must(err)
		done := between.ShareSet.ID != before.ShareSet.ID
		if after.Pending != nil || after.ShareSet.ID == before.ShareSet.ID || done && after.ShareSet.ID != between.ShareSet.ID {
			t.Errorf("%s: the set was %v, then %v, and is %v; pending %v", step, before.ShareSet, between.ShareSet, after.ShareSet, after.Pending)
		}
		if committed := step == failpoint.SealCommitAfter || step == failpoint.SealSettleAfter; committed != done {
			t.Errorf("%s: committed is %v", step, done)
		}
	}
	for n, step := range []failpoint.Name{failpoint.KeeperPlaceBefore, failpoint.KeeperPlaceAfter, failpoint.KeeperFetchBefore,
		failpoint.KeeperSettleBefore, failpoint.KeeperSettleAfter} {
		at := (c.leader(c.all) + n) % 3
		first, again := rekey(at)
		c.kill(step, c.Keeper(n%3), first, again)
	}
	// A rekey that fails, for want of a Keeper, and dies while it takes its set back.
	c.Keeper(0).Kill()
	at := c.leader(c.all)
	first, again := rekey(at)
	c.kill(failpoint.SealAbandon, c.Peer(at), first, func(ctx context.Context) error {
		if _, _, up := c.Keeper(0).Running(); !up {
			c.must(c.Keeper(0).Start())
		}
		return again(ctx)
	})
	c.rekeyed()
	present := c.shares()
	c.finish()

	for i := range 3 {
		c.Peer(i).Kill()
		c.Keeper(i).Kill()
	}
	for i := range 3 {
		c.must(c.Keeper(i).Start())
		c.must(c.Peer(i).Start())
	}
	restore := c.client("/spike/pilot/role/restore")
	give := func(r client.RestoreRequest) (answer client.RestoreAnswer, err error) {
		c.eventually("a leader takes shares", func() error {
			limit, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			answer, err = restore.Restore(limit, r)
			if code := secret.CodeOf(err); code == secret.CodeUnavailable || code == secret.CodeUnknown {
				return err
			}
			return nil
		})
		return answer, err
	}
	for _, r := range old {
		if _, err := give(r); secret.CodeOf(err) != secret.CodeInvalid {
			t.Errorf("share %d of before the rekeys: %v", r.Index, err)
		}
	}
	// The leader dies with enough shares, then with the keys that they gave; what it
	// had collected is given again.
	for _, step := range []failpoint.Name{failpoint.SealRestoreCollected, failpoint.SealRestoreUnsealed} {
		leader := c.leader(c.all)
		feed := func(ctx context.Context) error {
			for _, r := range present[:2] {
				if _, err := restore.Restore(ctx, r); err != nil && secret.CodeOf(err) != secret.CodeInvalid {
					return err
				}
			}
			return nil
		}
		c.kill(step, c.Peer(leader), feed, func(context.Context) error { return nil })
		if step == failpoint.SealRestoreCollected {
			continue
		}
		c.eventually("the cluster is open again", func() error {
			if err := feed(ctx); err != nil {
				return err
			}
			return c.Whole(ctx, c.all)
		})
	}
	c.readable()
}

// Rotation, re-encryption, refilling of Keepers, and an operator's seal, each
// killed at each step on the peer that does it.
func TestCrashesInRotation(t *testing.T) {
	t.Parallel()
	c := crash(t, 3)
	rotate := func(cl *client.Client) func(context.Context) error {
		return func(ctx context.Context) error { return cl.RotateKeys(ctx, "data") }
	}
	for n, step := range []failpoint.Name{failpoint.SealReplaceBefore, failpoint.SealReplaceAfter} {
		at := (c.leader(c.all) + n) % 3
		c.kill(step, c.Peer(at), rotate(c.each[at]), rotate(c.all))
	}
	for _, step := range []failpoint.Name{failpoint.NodeResealBefore, failpoint.NodeResealAfter, failpoint.NodeArchiveBefore} {
		leader := c.leader(c.all)
		c.kill(step, c.Peer(leader), rotate(c.each[leader]), rotate(c.all))
	}
	c.eventually("nothing is under a key of before", func() error {
		keys, err := c.all.Keys(ctx)
		if err != nil {
			return err
		}
		for _, e := range keys.Epochs {
			if e.Purpose == "data" && e.Status == "retired" {
				return fmt.Errorf("%+v", e)
			}
		}
		return nil
	})
	for n, step := range []failpoint.Name{failpoint.SealRefillBefore, failpoint.SealRefillAfter} {
		leader := c.leader(c.all)
		empty := func(context.Context) error { // a Keeper loses its share
			c.Keeper(n).Kill()
			return c.Keeper(n).Start()
		}
		c.kill(step, c.Peer(leader), empty, func(context.Context) error {
			s, err := status(c.all)
			if err == nil && slices.ContainsFunc(s.Keepers, func(k client.KeeperStatus) bool { return k.Health != "good" }) {
				err = fmt.Errorf("%+v", s.Keepers)
			}
			return err
		})
	}
	close(c.stop) // nothing is written while the cluster is sealed
	c.load.Wait()
	c.stop = make(chan struct{})
	for n, step := range []failpoint.Name{failpoint.NodeSealBefore, failpoint.NodeUnsealBefore, failpoint.NodeSealAfter, failpoint.NodeUnsealAfter} {
		at := (c.leader(c.all) + n/2) % 3
		act := func(cl *client.Client) func(context.Context) error {
			return func(ctx context.Context) error {
				if n%2 == 0 {
					return cl.Seal(ctx, "")
				}
				return cl.Unseal(ctx, "")
			}
		}
		c.kill(step, c.Peer(at), act(c.each[at]), act(c.all))
	}
	c.finish()
}
