// Package upgrade runs clusters in which peers of the version before and of this
// one work together.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	_ "github.com/spike-ha/spike-ha/cli" // what the programs are made of: a result is not kept when that changes
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/internal/process"
	_ "github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

const patience = 90 * time.Second

// build makes the programs of this version, and of the one that the file
// previous names, out of the history of this repository.
func build(t *testing.T) (before, now string) {
	t.Helper()
	raw, err := os.ReadFile("previous")
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(raw))
	if err := exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		fmt.Fprintf(os.Stderr, "\n*** THE UPGRADE FROM %s IS NOT TESTED: this clone does not have that commit. Clone with the whole history. ***\n\n", commit)
		t.Skip("the history is not here")
	}
	before, now = filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "now")
	shell := func(dir, command string, args ...string) {
		t.Helper()
		cmd := exec.Command(command, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
		}
	}
	shell(".", "./build-previous", before)
	shell("../..", "go", "build", "-trimpath", "-o", now+"/", "./cmd/...")
	return before, now
}

type upgrading struct {
	*harness.Cluster
	t        *testing.T
	operator *client.Client
	now      string // the programs of this version
}

func (u *upgrading) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgrading) eventually(what string, check func() error) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := harness.Poll(ctx, check); err != nil {
		u.t.Fatalf("%s: %v", what, err)
	}
}

// restart stops a process and starts it again as another build.
func (u *upgrading) restart(p *process.Child, binaries string) {
	u.t.Helper()
	u.must(p.Stop(nil))
	p.Binary = filepath.Join(binaries, filepath.Base(p.Binary))
	u.must(p.Start())
}

// lead has each voter lead for a while and uses the cluster through every peer
// meanwhile.
func (u *upgrading) lead(round string) {
	u.t.Helper()
	ctx := u.t.Context()
	for i := range u.Peers() {
		u.eventually(harness.PeerName(i)+" leads", func() error {
			s, err := u.operator.Status(ctx)
			if err != nil {
				return err
			}
			if s.Leader == harness.PeerName(i) {
				return nil
			}
			return errors.Join(fmt.Errorf("%s leads", s.Leader), u.operator.TransferLeadership(ctx, harness.PeerName(i)))
		})
		for via := range u.Peers() {
			cl, done, err := u.Client(ctx, harness.Superuser, via)
			u.must(err)
			path, value := fmt.Sprintf("%s/%d/%d", round, i, via), map[string]string{"v": strconv.Itoa(via)}
			if _, err := cl.Put(ctx, path, value, nil); err != nil {
				u.t.Errorf("put through %s while %s leads: %v", harness.PeerName(via), harness.PeerName(i), err)
			}
			other, done2, err := u.Client(ctx, harness.Superuser, (via+1)%u.Peers())
			u.must(err)
			if got, _, err := other.Get(ctx, path, 0); err != nil || got["v"] != value["v"] {
				u.t.Errorf("%s through %s while %s leads: %v, %v", path, harness.PeerName((via+1)%u.Peers()), harness.PeerName(i), got, err)
			}
			done()
			done2()
		}
	}
}

// A cluster of the version before is upgraded peer by peer, under load: no request
// fails, each version leads the other, and the format level rises once the last
// peer is upgraded, not before. Then the version before does not start any more.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	before, now := build(t)
	dir, err := os.MkdirTemp("", "spike") // short, for the sake of sockets
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := harness.Start(ctx, harness.Options{Dir: dir, Binaries: before, Voters: 3, Keepers: 3})
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			c.Logs(t.Output(), 4000)
		}
		os.RemoveAll(dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	operator, done, err := c.Client(t.Context(), harness.Superuser)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	u := &upgrading{c, t, operator, now}

	stop := u.load()
	u.keepers("a new Keeper among peers of the version before", 0)
	for i := range c.Peers() {
		if s, err := operator.Status(t.Context()); err != nil || s.Level > fsm.FirstLevel {
			t.Errorf("with %s not upgraded the level is %d: %v", harness.PeerName(i), s.Level, err)
		}
		u.restart(c.Peer(i), now)
		u.eventually("all serve", func() error { return serves(operator) })
		u.lead(fmt.Sprint("upgraded-", i+1))
	}
	u.proven("new peers, and two Keepers of the version before", 1)
	u.keepers("", 1)
	u.proven("one Keeper of the version before", 2)
	u.keepers("", 2)
	u.proven("all Keepers are new", 3)
	u.eventually("the level rises", func() error {
		s, err := operator.Status(t.Context())
		if err == nil && s.Level != fsm.Level {
			err = fmt.Errorf("it is %d", s.Level)
		}
		return err
	})
	stop()
	u.eventually("all peers have one state", func() error { return c.Whole(t.Context(), operator) })

	// There is no way back.
	p := c.Peer(0)
	u.must(p.Stop(nil))
	p.Binary = filepath.Join(before, "nexus")
	u.must(p.Start())
	u.eventually("the version before stops", func() error {
		if info := p.Info(); info.State != process.Died {
			return fmt.Errorf("it is %s", info.State)
		}
		return nil
	})
	if words := p.LastWords(); !strings.Contains(words, "newer") {
		t.Errorf("it says: %s", words)
	}
	p.Binary = filepath.Join(now, "nexus")
	u.must(p.Start())
	u.eventually("all peers have one state", func() error { return c.Whole(t.Context(), operator) })
}

// keepers upgrades one Keeper and waits until all have their shares. It looks once a second: peers of the version
// before fetch every share for a look, and the new Keepers do not give them away at any pace.
func (u *upgrading) keepers(what string, i int) {
	u.t.Helper()
	u.restart(u.Keeper(i), u.now)
	look := time.NewTicker(time.Second)
	defer look.Stop()
	u.eventually("all Keepers have their shares: "+what, func() error {
		<-look.C
		s, err := u.operator.Status(u.t.Context())
		if err != nil {
			return err
		}
		for _, k := range s.Keepers {
			if k.Health != "good" {
				return fmt.Errorf("%s: %s", k.Name, k.Health)
			}
		}
		return nil
	})
}

// proven checks that all Keepers are good, so many of them without having sent their shares.
func (u *upgrading) proven(what string, want int) {
	u.t.Helper()
	a, err := u.operator.VerifyKeepers(u.t.Context())
	if err != nil {
		u.t.Fatalf("%s: %v", what, err)
	}
	proven := 0
	for _, k := range a.Keepers {
		if k.Health == "good" && !k.Fetched {
			proven++
		}
	}
	if a.Good != 3 || proven != want {
		u.t.Errorf("%s: %d are good, %d proven: %+v", what, a.Good, proven, a.Keepers)
	}
}

func serves(operator *client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := operator.Status(ctx)
	if err != nil {
		return err
	}
	for _, p := range s.Peers {
		if !p.Reachable || p.Sealed {
			return fmt.Errorf("%s is %s, sealed %v: %s", p.ID, p.State, p.Sealed, p.Reason)
		}
	}
	return nil
}

// load counts one secret up until stop is called, which checks that nothing that
// was acknowledged is missing.
func (u *upgrading) load() (stop func()) {
	cl, done, err := u.Client(u.t.Context(), harness.Superuser)
	u.must(err)
	ended := make(chan struct{})
	acknowledged := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
			}
			expect := secret.Version(acknowledged)
			if _, err := cl.Put(context.Background(), "counter", map[string]string{"n": strconv.Itoa(acknowledged + 1)}, &expect); err != nil {
				u.t.Errorf("after %d writes: %v", acknowledged, err)
				return
			}
			acknowledged++
		}
	})
	return func() {
		close(ended)
		wg.Wait()
		defer done()
		got, _, err := cl.Get(context.Background(), "counter", 0)
		if err != nil || got["n"] != strconv.Itoa(acknowledged) {
			u.t.Errorf("the counter is %v after %d acknowledged steps: %v", got, acknowledged, err)
		}
		u.t.Logf("%d writes were acknowledged", acknowledged)
	}
}
