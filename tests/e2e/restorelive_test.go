package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// The peer that restores into the running cluster is killed at each step, leader or not.
// Before the commit nothing has changed, after it everything has; the same command, with the
// same code, completes it at any peer, once.
func TestCrashesInRestoreLive(t *testing.T) {
	t.Parallel()
	programs, err := mortal()
	if err != nil {
		t.Fatal(err)
	}
	c := &crashing{brokenCluster: broken(t, harness.Options{Voters: 3, Keepers: 3, Binaries: programs, Failpoints: true, Args: []string{"--archive", "file://" + t.TempDir()}}), stop: make(chan struct{})}
	c.all = c.client(harness.Superuser)
	for i := range c.Peers() {
		c.each = append(c.each, c.client(harness.Superuser, i))
	}
	c.eventually("the level has risen", func() error { return c.all.RotateKeys(ctx, "audit-path") })
	put := func(path, value string) (index uint64) {
		t.Helper()
		answer, err := c.all.Put(ctx, path, map[string]string{"v": value}, nil)
		c.must(err)
		return answer.Index
	}
	shipped := func(index uint64) {
		t.Helper()
		c.eventually("it is in the archive", func() error {
			s, err := status(c.all)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.Archive != nil && p.Archive.Shipped >= index {
					return nil
				}
			}
			return errors.New("not yet")
		})
	}
	for i := range 6 {
		put(fmt.Sprintf("large/%d", i), strings.Repeat("x", 200<<10))
	}
	then := put("state", "archived")
	value := func(cl *client.Client) (string, error) {
		got, _, err := cl.Get(ctx, "state", 0)
		return got["v"], err
	}
	for n, step := range []failpoint.Name{failpoint.NodeRestoreBegin, failpoint.NodeRestoreChunk, failpoint.NodeRestoreCommitBefore, failpoint.NodeRestoreCommitAfter} {
		at := (c.leader(c.all) + n%2) % 3
		put(fmt.Sprintf("new/%d", n), "x")
		shipped(put("state", "later"))
		plan, err := c.all.RestoreArchive(ctx, client.RestoreArchiveRequest{Index: then}, nil)
		c.must(err)
		q := client.RestoreArchiveRequest{Confirm: plan.Code}
		between := ""
		var done, repeated client.RestorePlan
		c.kill(step, c.Peer(at), func(ctx context.Context) error {
			_, err := c.each[at].RestoreArchive(ctx, q, nil)
			return err
		}, func(ctx context.Context) (err error) {
			if between == "" {
				if between, err = value(c.all); err != nil {
					return err
				}
			}
			done, err = c.all.RestoreArchive(ctx, q, nil)
			return err
		})
		want := "later"
		if step == failpoint.NodeRestoreCommitAfter {
			want = "archived"
		}
		if between != want {
			t.Errorf("%s: the state was %q, want %q", step, between, want)
		}
		repeated, err = c.all.RestoreArchive(ctx, q, nil)
		if c.must(err); repeated.RestoredAt != done.RestoredAt || done.RestoredAt == 0 {
			t.Errorf("%s: restored at %d, and again at %d", step, done.RestoredAt, repeated.RestoredAt)
		}
		c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, c.all) })
		for i, cl := range c.each {
			if v, err := value(cl); err != nil || v != "archived" {
				t.Errorf("%s: through %s it is %q, %v", step, harness.PeerName(i), v, err)
			}
			if list, err := cl.List(ctx, "new/"); err != nil || len(list.Keys) != 0 {
				t.Errorf("%s: through %s there is %v, %v", step, harness.PeerName(i), list.Keys, err)
			}
		}
	}
	// And as an operator does it.
	shipped(put("state", "later"))
	socket, err := c.Authority.Add(harness.Superuser)
	c.must(err)
	run := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(bin, "spikectl"), append([]string{"--socket", socket, "--trust-root", harness.TrustDomain,
			"--address", strings.Join(c.APIs(), ","), "--format", "json", "snapshot", "restore", "--live"}, args...)...)
		out, err := cmd.Output()
		return string(out), err
	}
	if _, err := run("--share", "x"); exitStatus(err) != 1 {
		t.Errorf("--live with shares: %v", err)
	}
	if _, err := run("--confirm", "1-2-00"); exitStatus(err) != 2 {
		t.Errorf("a code of no plan: %v", err)
	}
	var plan client.RestorePlan
	out, err := run("--at", fmt.Sprint(then))
	c.must(err)
	c.must(json.Unmarshal([]byte(out), &plan))
	if v, err := value(c.all); err != nil || v != "later" || plan.RestoredAt != 0 {
		t.Errorf("after a plan: %s, %v; %+v", v, err, plan)
	}
	out, err = run("--confirm", plan.Code)
	c.must(err)
	c.must(json.Unmarshal([]byte(out), &plan))
	if v, err := value(c.all); err != nil || v != "archived" || plan.RestoredAt == 0 {
		t.Errorf("restored by spikectl: %s, %v; %+v", v, err, plan)
	}
	c.finish()
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// BenchmarkRestoreLive restores 100,000 secrets of 256 bytes into a running cluster that
// has as many others by then, from a directory: from the request to a read of what was
// restored through every peer, and the most memory that a peer had, before and in the end.
func BenchmarkRestoreLive(b *testing.B) {
	const secrets, batch, writers = 100_000, 50, 16
	for range b.N {
		c := broken(b, harness.Options{Voters: 3, Keepers: 3, Args: []string{"--archive", "file://" + b.TempDir()}})
		cl := c.client(harness.Superuser)
		c.eventually("the level has risen", func() error { return cl.RotateKeys(ctx, "audit-path") })
		fill := func(prefix string) {
			var next atomic.Int64
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for n := next.Add(batch) - batch; n < secrets; n = next.Add(batch) - batch {
						var list []client.Operation
						for i := range batch {
							list = append(list, client.Operation{Op: "put", Path: fmt.Sprintf("%s/%d/db-%d", prefix, n%1000, n+int64(i)), Values: map[string]string{"v": strings.Repeat("x", 248)}})
						}
						if _, err := cl.Transact(ctx, list...); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
		most := func() (mib float64) {
			for i := range c.Peers() {
				pid, _, _ := c.Peer(i).Running()
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				c.must(err)
				kib, err := strconv.ParseFloat(regexp.MustCompile(`VmHWM:\s*(\d+)`).FindStringSubmatch(string(text))[1], 64)
				c.must(err)
				mib = max(mib, kib/1024)
			}
			return mib
		}
		fill("archived")
		mark, err := cl.Put(ctx, "mark", map[string]string{"v": "archived"}, nil)
		c.must(err)
		fill("later")
		last, err := cl.Put(ctx, "mark", map[string]string{"v": "later"}, nil)
		c.must(err)
		c.eventually("all is in the archive", func() error {
			s, err := status(cl)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.Archive != nil && p.Archive.Shipped >= last.Index {
					return nil
				}
			}
			return errors.New("not yet")
		})
		before := most()
		began := time.Now()
		plan, err := cl.RestoreArchive(ctx, client.RestoreArchiveRequest{Index: mark.Index}, nil)
		c.must(err)
		planned := time.Since(began)
		began = time.Now()
		var staging time.Duration
		_, err = cl.RestoreArchive(ctx, client.RestoreArchiveRequest{Confirm: plan.Code}, func(l client.RestoreLine) {
			if l.Step == "staging" && staging == 0 {
				staging = time.Since(began)
			}
		})
		c.must(err)
		for i := range c.Peers() {
			got, _, err := c.client(harness.Superuser, i).Get(ctx, "mark", 0)
			if c.must(err); got["v"] != "archived" {
				b.Errorf("peer %d: %v", i+1, got)
			}
		}
		b.ReportMetric(time.Since(began).Seconds(), "s/restore")
		b.ReportMetric(staging.Seconds(), "s/reading")
		b.ReportMetric(planned.Seconds(), "s/plan")
		b.ReportMetric(before, "MiB-before")
		b.ReportMetric(most(), "MiB-peak")
	}
}
