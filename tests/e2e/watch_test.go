package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
)

// spikectl hears of every change once and in order while each peer in turn is
// killed under it, and ends well when it is interrupted.
func TestWatchUnderKills(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	c.whole(cl)
	watch := exec.Command(filepath.Join(bin, "spikectl"), "secret", "watch", "feed/", "--format", "json")
	watch.Env = os.Environ()
	for name, value := range c.env {
		watch.Env = append(watch.Env, name+"="+value)
	}
	said, err := watch.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watch.Process.Kill() })
	if line, err := bufio.NewReader(said).ReadString('\n'); !strings.HasPrefix(line, "watching from index ") {
		t.Fatalf("%q, %v", line, err)
	}
	lines := bufio.NewScanner(out)
	written, heard := 0, uint64(0)
	write := func() {
		t.Helper()
		for range 10 {
			if _, err := cl.Put(ctx, fmt.Sprintf("feed/%d", written), map[string]string{"value": "canary"}, nil); err != nil {
				t.Fatal(err)
			}
			written++
		}
		for n := written - 10; n < written; n++ {
			var e client.Event
			if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Path != fmt.Sprintf("feed/%d", n) || e.Kind != "put" || e.Index < heard {
				t.Fatalf("heard %q, %v; want feed/%d", lines.Text(), lines.Err(), n)
			}
			heard = e.Index
		}
	}
	for i := range 3 {
		write()
		c.kill(peerName(i))
		write()
		c.start(peerName(i))
		c.whole(cl)
	}
	write()
	if err := watch.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if lines.Scan() {
		t.Errorf("heard %q besides", lines.Text())
	}
	if err := watch.Wait(); err != nil {
		t.Error("interrupted:", err)
	}
	// All were started anew: nobody reaches back to the beginning.
	if _, err := c.try("secret", "watch", "feed/", "--after", "1"); err == nil || !strings.HasPrefix(err.Error(), "exit status 3") {
		t.Error(err)
	}
}
