package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// All peers and Keepers are killed under load, a leader before them, and all disks are lost. A bucket of a real S3 server and
// two people's shares bring a cluster back: with every write that was acknowledged more than two seconds before the end, and without
// anything that was deleted by then; after a rekey too, from archives that are older than it.
func TestLossOfEverything(t *testing.T) {
	t.Parallel()
	store := s3server.Start(t)
	address := store.Bucket(t, "archive")
	address = strings.Replace(address, "s3://archive?", "s3://archive/production/eu?", 1)
	env := []string{"AWS_ACCESS_KEY_ID=" + store.Access, "AWS_SECRET_ACCESS_KEY=" + store.Secret}
	c := broken(t, harness.Options{Voters: 3, Keepers: 3, Args: []string{"--archive", address, "--archive-snapshot-every", "5s"}, Env: env})
	super := c.client(harness.Superuser)

	var mu sync.Mutex
	written, purged := map[string]time.Time{}, map[string]time.Time{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				path := fmt.Sprintf("load/%d/%d", w, n)
				limit, cancel := context.WithTimeout(ctx, 20*time.Second)
				_, err := super.Put(limit, path, map[string]string{"v": path}, nil)
				if err == nil && n%5 == 4 {
					gone := fmt.Sprintf("load/%d/%d", w, n-2)
					if _, err := super.Purge(limit, gone); err == nil {
						mu.Lock()
						purged[gone] = time.Now()
						mu.Unlock()
					}
				}
				cancel()
				if err == nil {
					mu.Lock()
					written[path] = time.Now()
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond) // leaves the machine to the others
			}
		})
	}
	more := func(n int) {
		t.Helper()
		mu.Lock()
		want := len(written) + n
		mu.Unlock()
		c.eventually("writes go on", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(written) < want {
				return fmt.Errorf("%d of %d", len(written), want)
			}
			return nil
		})
	}
	more(200)
	c.eventually("keys are rotated", func() error { return super.RotateKeys(ctx) })
	c.Peer(c.leader(super)).Kill()
	more(100)
	for i := range c.Peers() {
		if c.Peer(i).Info().PID == 0 {
			c.must(c.Peer(i).Start())
		}
	}
	c.eventually("all peers serve", func() error { return c.Whole(ctx, super) })
	c.eventually("the cluster is rekeyed", func() error {
		return super.Rekey(ctx, client.RekeyRequest{Shares: 3, Threshold: 2})
	})
	shares := c.recoveryFiles(t)
	more(200)
	c.eventually("the archive is not behind", func() error {
		s, err := status(super)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Archive != nil && p.Archive.Active && p.Archive.BehindSeconds < 1.5 && p.Archive.Error == "" && p.Archive.Shipped > 0 {
				return nil
			}
		}
		return errors.New("it is, or nobody ships")
	})
	end := time.Now()
	for i := range c.Peers() {
		c.Peer(i).Kill()
	}
	close(done)
	for i := range 3 {
		c.Keeper(i).Kill()
	}
	wg.Wait()
	for i := range c.Peers() {
		c.must(os.RemoveAll(c.DataDir(i)))
	}

	ctl := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "spikectl"), args...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("spikectl %s: %v\n%s", args[:2], err, out)
		}
		return string(out)
	}
	open := []string{"--archive", address, "--share", shares.files[0], "--share", shares.files[2], "--identity", shares.key}
	t.Log(ctl(append([]string{"snapshot", "verify"}, open...)...))
	if out := ctl("snapshot", "probe", "--archive", address); !strings.Contains(out, "refuses a second object of a name") {
		t.Errorf("probe: %s", out)
	}
	if out := ctl(append([]string{"snapshot", "prune", "--newest", "1", "--hourly", "1", "--daily", "0", "--weekly", "0", "--monthly", "0", "--yes"}, open...)...); strings.Contains(out, " 0 objects deleted") {
		t.Errorf("nothing was pruned: %s", out)
	}
	ctl(append([]string{"snapshot", "restore", "--data-dir", c.DataDir(0), "--id", harness.PeerName(0), "--peer-address", c.PeerAddress(0), "--yes"}, open...)...)
	for i := range 3 {
		c.must(c.Keeper(i).Start())
		c.must(c.Peer(i).Start())
	}
	keeper := c.client("/spike/pilot/role/restore", 0)
	for _, i := range []int{0, 2} {
		c.eventually("a share is given back", func() error {
			_, err := keeper.Restore(ctx, shares.requests[i])
			var e *secret.Error
			if errors.As(err, &e) && (e.Reason == "share_given_already" || e.Reason == "not_sealed") {
				return nil
			}
			return err
		})
	}
	first := c.client(harness.Superuser, 0)
	for i := 1; i < 3; i++ {
		c.eventually("a peer joins", func() error { return first.AddMember(ctx, harness.PeerName(i), c.PeerAddress(i)) })
		c.eventually("and has a vote", func() error { return first.PromoteMember(ctx, harness.PeerName(i)) })
	}
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, first) })
	kept, lost := 0, 0
	for path, when := range written {
		_, _, err := first.Get(ctx, path, 0)
		switch code := secret.CodeOf(err); {
		case !purged[path].IsZero():
			if code != secret.CodeNotFound && end.Sub(purged[path]) > 2*time.Second {
				t.Errorf("%s was purged %s before the end, and is back: %v", path, end.Sub(purged[path]), err)
			}
		case err == nil:
			kept++
		case code == secret.CodeNotFound && end.Sub(when) <= 2*time.Second:
			lost++
		default:
			t.Errorf("%s, acknowledged %s before the end: %v", path, end.Sub(when), err)
		}
	}
	t.Logf("of %d writes %d are there, %d of the last two seconds are not, %d had been purged", len(written), kept, lost, len(purged))
	_, err := first.Put(ctx, "afterwards", map[string]string{"v": "1"}, nil)
	c.must(err)
}

// kept are a cluster's recovery shares, as one person keeps them.
type kept struct {
	files    []string
	key      string // file of the private key
	requests []client.RestoreRequest
}

func (c *brokenCluster) recoveryFiles(t *testing.T) (k kept) {
	t.Helper()
	dir := t.TempDir()
	identity, err := age.GenerateHybridIdentity()
	c.must(err)
	k.key = filepath.Join(dir, "key")
	c.must(os.WriteFile(k.key, []byte(identity.String()+"\n"), 0o600))
	var files []client.RecoveryFile
	c.eventually("recovery files", func() error {
		files, err = c.client("/spike/pilot/role/recover").Recover(ctx, client.RecoverRequest{Recipients: []string{identity.Recipient().String()}, OneHolder: true})
		return err
	})
	for _, f := range files {
		name := filepath.Join(dir, f.Name)
		c.must(os.WriteFile(name, []byte(f.Content), 0o600))
		file, err := recoveryfile.Parse([]byte(f.Content))
		c.must(err)
		share, err := file.Open(identity)
		c.must(err)
		k.files = append(k.files, name)
		k.requests = append(k.requests, client.RestoreRequest{Index: file.Index, Share: share, Cluster: file.Cluster.ID[:], Set: file.Set[:]})
	}
	return k
}
