package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

// All Keepers are restarted, one after the other, as docs/operations.md says, under load; and after each a peer is
// killed, which unseals itself again. With three of them and a threshold of two nothing may go wrong: at no time
// are fewer than two good.
func TestRollingKeeperRestart(t *testing.T) {
	t.Parallel()
	c := broken(t, harness.Options{Voters: 3, Keepers: 3})
	socket, err := c.Authority.Add(harness.Superuser)
	c.must(err)
	spikectl := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(bin, "spikectl"), append([]string{"--socket", socket, "--trust-root", harness.TrustDomain,
			"--address", strings.Join(c.APIs(), ",")}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	operator := c.client(harness.Superuser)
	c.eventually("all Keepers are good", func() error { return keepersGood(operator, 3) })

	done := make(chan struct{})
	var wg sync.WaitGroup
	each := func(what func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond): // enough of each, and room for the others
				}
				if err := what(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	observer := c.client(harness.Superuser)
	looks, least := 0, 3
	each(func() error {
		a, err := observer.VerifyKeepers(ctx)
		if err != nil {
			return err
		}
		looks, least = looks+1, min(least, a.Good)
		if a.Good < a.Threshold {
			return fmt.Errorf("only %d Keepers are good: %+v", a.Good, a.Keepers)
		}
		return nil
	})
	writer, written := c.client(harness.Superuser), 0
	each(func() error {
		answer, err := writer.Put(ctx, "rolling/keepers", map[string]string{"n": strconv.Itoa(written + 1)}, nil)
		if err == nil && int(answer.Version) != written+1 {
			return fmt.Errorf("version %d after %d writes", answer.Version, written)
		}
		written++
		return err
	})
	for i := range 3 {
		if i == 1 { // it may also just end
			c.must(c.Keeper(i).Kill())
		} else {
			c.must(c.Keeper(i).Stop(nil))
		}
		if out, err := spikectl("keeper", "verify"); err == nil || !strings.Contains(out, harness.KeeperName(i)+" is unreachable") {
			t.Errorf("with %s down: %v\n%s", harness.KeeperName(i), err, out)
		}
		c.must(c.Keeper(i).Start())
		if out, err := spikectl("keeper", "verify", "--wait", "60s"); err != nil || !strings.Contains(out, "all 3 Keepers are good: 1 above the threshold of 2") {
			t.Fatalf("after a restart of %s: %v\n%s", harness.KeeperName(i), err, out)
		}
		c.must(c.Peer(i).Kill())
		c.must(c.Peer(i).Start())
		c.eventually("the killed peer has its keys again", func() error { return serves(operator, 3) })
	}
	close(done)
	wg.Wait()
	t.Logf("%d writes, %d looks at the Keepers; at least %d were good", written, looks, least)
	if looks < 10 {
		t.Errorf("the Keepers were looked at %d times only", looks)
	}
}
