// Package e2e runs the real programs: separate processes, real TLS, real files,
// real signals. When the tests are built with the race detector, so are the
// programs.
package e2e

import (
	"bytes"
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

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	_ "github.com/spike-ha/spike-ha/cli" // what the programs are made of: a result is not kept when that changes
	"github.com/spike-ha/spike-ha/identity"
	_ "github.com/spike-ha/spike-ha/node"
)

var (
	ctx = context.Background()
	bin string // directory of the programs
)

// patience bounds every wait; the machine may be busy and the programs slowed
// by the race detector.
const patience = 90 * time.Second

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	args := []string{"build", "-o", bin + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "../../cmd/...")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the programs:", err)
		return 1
	}
	return m.Run()
}

// cluster is a development cluster of separate processes.
type cluster struct {
	t    testing.TB
	dir  string
	urls []string
	env  map[string]string
}

func up(t testing.TB, args ...string) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "spike") // short, for the sake of sockets
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: filepath.Join(dir, "dev")}
	t.Cleanup(func() {
		c.try("dev", "down", "--dir", c.dir)
		if t.Failed() {
			c.dumpLogs()
		}
		os.RemoveAll(dir)
	})
	c.ctl(append([]string{"dev", "up", "--detach", "--dir", c.dir, "--base-port", "0"}, args...)...)
	c.env = map[string]string{}
	for line := range strings.Lines(c.ctl("dev", "env", "--dir", c.dir)) {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		c.env[name] = strings.Trim(value, `'"`)
	}
	c.urls = strings.Split(c.env["SPIKE_NEXUS_API_URLS"], ",")
	return c
}

// ctl runs spikectl, which must succeed, and returns its standard output.
func (c *cluster) ctl(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("spikectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (c *cluster) try(args ...string) (string, error) {
	limit, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	cmd := exec.CommandContext(limit, filepath.Join(bin, "spikectl"), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = os.Environ()
	for name, value := range c.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, errOut.String())
	}
	return out.String(), err
}

func (c *cluster) dumpLogs() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "logs", "*.log"))
	for _, name := range logs {
		b, _ := os.ReadFile(name)
		c.t.Logf("--- %s\n%s", filepath.Base(name), b[max(0, len(b)-4000):])
	}
}

func (c *cluster) kill(names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.ctl("dev", "kill", name, "--dir", c.dir)
	}
}

func (c *cluster) start(names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.ctl("dev", "start", name, "--dir", c.dir, "--wait", "0s")
	}
}

func peerName(i int) string   { return fmt.Sprintf("nexus-%d", i+1) }
func keeperName(i int) string { return fmt.Sprintf("keeper-%d", i+1) }

// source opens the identity at a SPIFFE path.
func (c *cluster) source(path string) *identity.Source {
	c.t.Helper()
	socket := strings.TrimSpace(c.ctl("dev", "identity", "add", path, "--dir", c.dir))
	s, err := identity.Open(ctx, identity.Options{Socket: socket, Timeout: patience})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { s.Close() })
	return s
}

const superuser = "spike/pilot/role/superuser"

// client makes a client with an identity, of the peers named, or of all.
func (c *cluster) client(path string, peers ...int) *client.Client {
	c.t.Helper()
	urls := c.urls
	if len(peers) > 0 {
		urls = nil
		for _, i := range peers {
			urls = append(urls, c.urls[i])
		}
	}
	cl, err := client.New(client.Config{Addresses: urls, Patience: patience, TLS: c.source(path).Client(func(spiffeid.ID) error { return nil })})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func (c *cluster) eventually(what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks; the deadline decides
	}
}

func status(cl *client.Client) (client.Status, error) {
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return cl.Status(limit)
}

// leader waits for a leader that all reachable peers agree on.
func (c *cluster) leader(cl *client.Client) (leader int) {
	c.t.Helper()
	c.eventually("a leader", func() error {
		s, err := status(cl)
		if err != nil {
			return err
		}
		for i := range c.urls {
			for _, p := range s.Peers {
				if p.ID == s.Leader && p.ID == peerName(i) && p.Reachable && p.State == "leader" {
					leader = i
					return nil
				}
			}
		}
		return fmt.Errorf("leader %q", s.Leader)
	})
	return leader
}

// whole waits until all peers serve, at one index with one state.
func (c *cluster) whole(cl *client.Client) {
	c.t.Helper()
	c.eventually("all peers serve the same state", func() error {
		s, err := status(cl)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if !p.Reachable || p.Sealed || p.Damaged > 0 {
				return fmt.Errorf("%+v", p)
			}
			if p.AppliedIndex != s.Peers[0].AppliedIndex {
				return errors.New("not at one index")
			}
		}
		for _, p := range s.Peers {
			if p.StateHash != s.Peers[0].StateHash {
				c.t.Fatalf("the states differ at one index: %+v", s.Peers)
			}
		}
		return nil
	})
}

// acked is what was acknowledged while something was going on.
type acked struct {
	mu     sync.Mutex
	values map[string]string
	gap    time.Duration // longest time between two acknowledgements
}

// load writes until stop is called, and returns what was acknowledged.
func (c *cluster) load(cl *client.Client) (stop func() *acked) {
	a := &acked{values: map[string]string{}}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			last := time.Now()
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				path, value := fmt.Sprintf("load/%d/%d", w, n), fmt.Sprint(n)
				if _, err := cl.Put(ctx, path, map[string]string{"value": value}, nil); err != nil {
					c.t.Errorf("put %s: %v", path, err)
					return
				}
				a.mu.Lock()
				a.values[path] = value
				a.gap = max(a.gap, time.Since(last))
				a.mu.Unlock()
				last = time.Now()
			}
		})
	}
	return func() *acked {
		close(done)
		wg.Wait()
		return a
	}
}

// more waits for n further acknowledgements.
func (c *cluster) more(a func() int, n int) {
	c.t.Helper()
	want := a() + n
	c.eventually("writes go on", func() error {
		if c.t.Failed() || a() >= want {
			return nil
		}
		return fmt.Errorf("%d of %d", a(), want)
	})
}

// check reads everything that was acknowledged, through every peer.
func (c *cluster) check(a *acked) {
	c.t.Helper()
	for i := range c.urls {
		cl := c.client(superuser, i)
		for path, value := range a.values {
			values, answer, err := cl.Get(ctx, path, 0)
			if err != nil || values["value"] != value || answer.Version != 1 {
				c.t.Fatalf("%s through %s: %v, version %d, %v; acknowledged was %q, once", path, peerName(i), values, answer.Version, err, value)
			}
		}
	}
	c.t.Logf("%d acknowledged writes are on every peer; longest time without one: %s", len(a.values), a.gap.Round(time.Millisecond))
}
