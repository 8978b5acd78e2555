package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// All peers are killed under load, and their disks are lost; the Keepers live. Started again, the peers bring their cluster back from the bucket of
// a real S3 server without anybody's doing, with every write that was acknowledged more than two seconds before the end. Then the same
// with the one that does it killed at each step.
func TestColdStart(t *testing.T) {
	t.Parallel()
	dir, err := mortal()
	if err != nil {
		t.Fatal(err)
	}
	store := s3server.Start(t)
	address := strings.Replace(store.Bucket(t, "archive"), "s3://archive?", "s3://archive/production/eu?", 1)
	config := filepath.Join(t.TempDir(), "nexus.yaml")
	settings := "archive: " + address + "\narchive_snapshot_every: 5s\n"
	if err := os.WriteFile(config, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"AWS_ACCESS_KEY_ID=" + store.Access, "AWS_SECRET_ACCESS_KEY=" + store.Secret}
	c := broken(t, harness.Options{Voters: 3, Keepers: 3, Binaries: dir, Failpoints: true, Args: []string{"--config", config}, Env: env})
	c.must(os.WriteFile(config, []byte(settings+"restore_latest: true\n"), 0o600)) // from the next start on, for ever
	for _, step := range []failpoint.Name{"", failpoint.ClusterColdClaimed, failpoint.ClusterColdSeeded, failpoint.ClusterColdTakeIn} {
		super := c.client(harness.Superuser) // one of before would be told once that an outcome is unknown
		load := c.load(super)
		load.more(100)
		if step == "" {
			load.more(200) // over some seconds, so that many must be there
		}
		c.eventually("the archive is not behind", func() error {
			a, err := shipping(super)
			if err == nil && (a.BehindSeconds >= 1.5 || a.Error != "") {
				err = fmt.Errorf("%+v", a)
			}
			return err
		})
		end := time.Now()
		for i := range 3 {
			c.Peer(i).Kill()
		}
		close(load.stop)
		load.end()
		load.wg.Wait()
		for i := range 3 {
			c.must(os.RemoveAll(c.DataDir(i)))
		}
		began := time.Now()
		if step != "" {
			c.must(c.Arm(c.Peer(0), step))
		}
		for i := range 3 {
			c.must(c.Peer(i).Start())
		}
		if step != "" {
			c.eventually("the coordinator dies at "+string(step), func() error {
				if _, _, ok := c.Peer(0).Running(); ok {
					return errors.New("it lives")
				}
				return nil
			})
			c.must(c.Peer(0).Start())
		}
		super = c.client(harness.Superuser)
		c.eventually("all peers serve the same state", func() error {
			s, err := super.Status(ctx)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if !p.Voter {
					return fmt.Errorf("%s has no vote: %s", p.ID, p.Reason)
				}
			}
			return c.Whole(ctx, super)
		})
		t.Logf("died at %q: all peers serve after %s", step, time.Since(began).Round(10*time.Millisecond))
		load.check(super, end.Add(-2*time.Second))
		_, err := super.Put(ctx, "afterwards", map[string]string{"v": "1"}, nil)
		c.must(err)
	}
	// It is on record who did it.
	b, err := os.ReadFile(auditFile(t, c.DataDir(0)))
	c.must(err)
	ops := map[string]int{}
	for line := range strings.Lines(string(b)) {
		var r struct{ Op, By string }
		if json.Unmarshal([]byte(line), &r) == nil && r.By == "setting restore-latest" {
			ops[r.Op]++
		}
	}
	if ops["cluster.restore"] == 0 || ops["cluster.members.add"] < 2 || ops["cluster.members.promote"] < 2 {
		t.Errorf("on record: %v", ops)
	}
}

func auditFile(t *testing.T, dataDir string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dataDir, "audit", "*"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no audit log: %v", err)
	}
	return list[0]
}
