package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
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
	load := c.load(super)
	load.more(200)
	c.eventually("keys are rotated", func() error { return super.RotateKeys(ctx) })
	c.Peer(c.leader(super)).Kill()
	load.more(100)
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
	load.more(200)
	c.eventually("the archive is not behind", func() error {
		a, err := shipping(super)
		if err == nil && (a.BehindSeconds >= 1.5 || a.Error != "") {
			err = fmt.Errorf("%+v", a)
		}
		return err
	})
	end := load.loseEverything()

	ctl := spikectl(t, env)
	open := []string{"--archive", address, "--share", shares.files[0], "--share", shares.files[2], "--identity", shares.key}
	t.Log(ctl(append([]string{"snapshot", "verify"}, open...)...))
	if out := ctl("snapshot", "probe", "--archive", address); !strings.Contains(out, "refuses a second object of a name") {
		t.Errorf("probe: %s", out)
	}
	if out := ctl(append([]string{"snapshot", "prune", "--newest", "1", "--hourly", "1", "--daily", "0", "--weekly", "0", "--monthly", "0", "--yes"}, open...)...); strings.Contains(out, " 0 objects deleted") {
		t.Errorf("nothing was pruned: %s", out)
	}
	ctl(append([]string{"snapshot", "restore", "--data-dir", c.DataDir(0), "--id", harness.PeerName(0), "--peer-address", c.PeerAddress(0), "--yes"}, open...)...)
	first := c.beginAgain(shares.requests[0], shares.requests[2])
	load.check(first, end.Add(-2*time.Second))
	_, err := first.Put(ctx, "afterwards", map[string]string{"v": "1"}, nil)
	c.must(err)
}
