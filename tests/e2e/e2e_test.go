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
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
	"github.com/spike-ha/spike-ha/secret"
)

// Killing the leader under load loses nothing that was acknowledged, makes
// nothing twice and fails no request of a client that knows all peers.
func TestKillTheLeaderUnderLoad(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	stop := c.load(cl)
	for range 2 {
		leader := c.leader(cl)
		c.kill(peerName(leader))
		c.leader(cl) // another one
		c.start(peerName(leader))
		c.whole(cl)
	}
	a := stop()
	if len(a.values) == 0 {
		t.Fatal("no write was acknowledged")
	}
	c.whole(cl)
	c.check(a)
}

// Killing everything loses nothing either; the peers unseal themselves from the
// Keepers, which stayed up.
func TestKillAllPeers(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	stop := c.load(cl)
	c.more(func() int { s, _ := status(cl); return s.Secrets }, 30)
	c.kill(peerName(0), peerName(1), peerName(2))
	c.start(peerName(0), peerName(1), peerName(2))
	c.whole(cl)
	a := stop()
	c.whole(cl)
	c.check(a)
}

// With all Keepers down a restarted peer votes and catches up, answers "not
// ready", and serves when they return; the others refill them.
func TestKeepersDownDuringARestart(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	if _, err := cl.Put(ctx, "a/b", map[string]string{"value": "1"}, nil); err != nil {
		t.Fatal(err)
	}
	leader := c.leader(cl)
	sealed, other := (leader+1)%3, (leader+2)%3
	for i := range 3 {
		c.kill(keeperName(i))
	}
	c.kill(peerName(sealed))
	c.start(peerName(sealed))
	c.kill(peerName(other)) // now the sealed peer's vote is needed
	alive := c.client(superuser, leader, sealed)
	if _, err := alive.Put(ctx, "a/b", map[string]string{"value": "2"}, nil); err != nil {
		t.Fatal("the sealed peer did not help to commit:", err)
	}
	c.eventually("the sealed peer catches up", func() error {
		s, err := status(c.client(superuser, leader))
		if err != nil {
			return err
		}
		var l, p client.PeerStatus
		for _, x := range s.Peers {
			switch x.ID {
			case peerName(leader):
				l = x
			case peerName(sealed):
				p = x
			}
		}
		if !p.Sealed {
			t.Fatal("it unsealed without Keepers")
		}
		if p.AppliedIndex < l.AppliedIndex {
			return fmt.Errorf("at %d of %d", p.AppliedIndex, l.AppliedIndex)
		}
		return nil
	})
	only := c.client(superuser, sealed)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, _, err := only.Get(short, "a/b", 0); secret.CodeOf(err) != secret.CodeSealed {
		t.Fatalf("a sealed peer answered %v", err)
	}
	c.start(peerName(other), keeperName(0), keeperName(1), keeperName(2))
	c.whole(cl)
	if values, _, err := only.Get(ctx, "a/b", 0); err != nil || values["value"] != "2" {
		t.Fatal(values, err)
	}
	c.eventually("all Keepers are refilled", func() error { return keepersGood(cl, 3) })
}

func keepersGood(cl *client.Client, want int) error {
	s, err := status(cl)
	if err != nil {
		return err
	}
	good := 0
	for _, k := range s.Keepers {
		if k.Health == "good" {
			good++
		}
	}
	if good < want {
		return fmt.Errorf("%+v", s.Keepers)
	}
	return nil
}

// A Keeper with a wrong share is named and skipped, and put right again.
func TestWrongShare(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	if _, err := cl.Put(ctx, "a/b", map[string]string{"value": "1"}, nil); err != nil {
		t.Fatal(err)
	}
	addresses := c.keeperAddresses()
	liar, err := keeper.NewClient(keeper.ClientOptions{Name: keeperName(0), URL: addresses[keeperName(0)], Source: c.source("spike/nexus/liar"),
		TrustDomains: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("spike.ist")}})
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	// Peers go down first, so that none refills the Keeper meanwhile.
	c.kill(peerName(0), peerName(1), peerName(2))
	slots, err := liar.Holds(ctx)
	if err != nil || len(slots) != 1 {
		t.Fatal(slots, err)
	}
	wrong := make([]byte, 32)
	wrong[31] = 1
	if err := liar.Place(ctx, seal.Slot{Cluster: slots[0].Cluster, Set: slots[0].Set, Index: slots[0].Index}, wrong); err != nil {
		t.Fatal(err)
	}
	c.start(peerName(0), peerName(1), peerName(2))
	c.whole(cl)
	if values, _, err := cl.Get(ctx, "a/b", 0); err != nil || values["value"] != "1" {
		t.Fatal(values, err)
	}
	c.eventually("the Keeper is put right", func() error { return keepersGood(cl, 3) })
}

// keeperAddresses reads where the Keepers listen from a peer's command line.
func (c *cluster) keeperAddresses() map[string]string {
	c.t.Helper()
	found := map[string]string{}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, name := range lines {
		b, _ := os.ReadFile(name)
		args := strings.Split(string(b), "\x00")
		if !strings.Contains(string(b), c.dir) || filepath.Base(args[0]) != "nexus" {
			continue
		}
		for i, arg := range args {
			if arg == "--keepers" && i+1 < len(args) {
				for _, item := range strings.Split(args[i+1], ",") {
					name, url, _ := strings.Cut(item, "=")
					found[name] = url
				}
			}
		}
	}
	if len(found) == 0 {
		c.t.Fatal("no peer's command line names the Keepers")
	}
	return found
}

// A policy revoked through one peer denies at once through another.
func TestRevokeThroughOneReadThroughAnother(t *testing.T) {
	t.Parallel()
	c := up(t)
	const app = "workload/web"
	path := secret.Pattern{Kind: secret.Prefix, Text: "web"}
	grant := client.Policy{Name: "web", SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: "spiffe://spike.ist/" + app}, Path: path, Permissions: []string{"read"}}
	if _, err := c.client(superuser).Put(ctx, "web/db", map[string]string{"value": "x"}, nil); err != nil {
		t.Fatal(err)
	}
	admins := []*client.Client{c.client("spike/pilot/role/admin", 0), c.client("spike/pilot/role/admin", 1), c.client("spike/pilot/role/admin", 2)}
	readers := []*client.Client{c.client(app, 0), c.client(app, 1), c.client(app, 2)}
	for round := range 20 {
		if _, err := admins[round%3].PutPolicy(ctx, grant); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readers[(round+1)%3].Get(ctx, "web/db", 0); err != nil {
			t.Fatalf("round %d: granted, then %v", round, err)
		}
		if _, err := admins[(round+2)%3].DeletePolicy(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readers[round%3].Get(ctx, "web/db", 0); secret.CodeOf(err) != secret.CodeDenied {
			t.Fatalf("round %d: revoked, then %v", round, err)
		}
	}
}

// Sixteen writers on one path through all peers, with the leader killed in
// between: each acknowledged write is a version, and no version is anybody's twice.
func TestSixteenWritersOnOnePath(t *testing.T) {
	t.Parallel()
	c := up(t)
	const writers, each = 16, 10
	cl := c.client(superuser)
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[secret.Version]int{}
	for w := range writers {
		mine := c.client(superuser, w%3, (w+1)%3, (w+2)%3)
		wg.Go(func() {
			for n := range each {
				answer, err := mine.Put(ctx, "hot/path", map[string]string{"by": fmt.Sprintf("%d.%d", w, n)}, nil)
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				mu.Lock()
				told[answer.Version]++
				mu.Unlock()
			}
		})
	}
	leader := c.leader(cl)
	c.eventually("the first versions", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(told) < 10 && !t.Failed() {
			return fmt.Errorf("%d", len(told))
		}
		return nil
	})
	c.kill(peerName(leader))
	c.start(peerName(leader))
	wg.Wait()
	m, err := cl.Metadata(ctx, "hot/path")
	if err != nil || m.CurrentVersion != writers*each || len(told) != writers*each {
		t.Fatalf("%d acknowledged writes, current version %d, %d different versions told: %v", writers*each, m.CurrentVersion, len(told), err)
	}
}

// A peer whose disk was damaged or exchanged says what is wrong and does not
// start; the others go on.
func TestDamagedAndForeignData(t *testing.T) {
	t.Parallel()
	c := up(t, "--peers", "3")
	cl := c.client(superuser)
	stop := c.load(cl)
	c.more(func() int { s, _ := status(cl); return s.Secrets }, 20)
	a := stop()
	data := func(i int, parts ...string) string {
		return filepath.Join(append([]string{c.dir, "data", peerName(i)}, parts...)...)
	}
	victim := (c.leader(cl) + 1) % 3
	rest := []int{(victim + 1) % 3, (victim + 2) % 3}
	for _, damage := range []struct {
		name string
		do   func(t *testing.T)
		want string
	}{
		{"a flipped bit in the log", func(t *testing.T) {
			// Ciphertext of a value lies in the middle of some entry; a byte of it is
			// changed wherever entries lie.
			change(t, findFile(t, data(victim, "raft"), ".db"), func(b []byte) []byte {
				for i := len(b) / 4; i < len(b); i += 1024 {
					if b[i] != 0 {
						b[i] ^= 0x40
					}
				}
				return b
			})
		}, "remove raft/"},
		{"an edited audit file", func(t *testing.T) {
			files, _ := filepath.Glob(data(victim, "audit", "*.jsonl"))
			change(t, files[0], func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"op":"audit.file"`), []byte(`"op":"audit.f1le"`), 1)
			})
		}, "audit verify"},
		{"another peer's data", func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(data(victim, "raft")), os.CopyFS(data(victim, "raft"), os.DirFS(data(rest[0], "raft")))); err != nil {
				t.Fatal(err)
			}
		}, "belongs to another peer"},
	} {
		c.kill(peerName(victim))
		kept := t.TempDir()
		if err := os.CopyFS(kept, os.DirFS(data(victim))); err != nil {
			t.Fatal(err)
		}
		damage.do(t)
		if out := c.runPeer(victim); !strings.Contains(out, damage.want) {
			t.Errorf("%s: the peer said %q, nothing of %q", damage.name, out, damage.want)
		}
		if _, err := c.client(superuser, rest...).Put(ctx, "still/there", map[string]string{"value": "x"}, nil); err != nil {
			t.Fatalf("%s: the others do not serve: %v", damage.name, err)
		}
		if err := errors.Join(os.RemoveAll(data(victim)), os.CopyFS(data(victim), os.DirFS(kept))); err != nil {
			t.Fatal(err)
		}
		c.start(peerName(victim))
		c.whole(cl)
	}
	c.check(a)
}

// runPeer runs a stopped peer in the foreground, with the command line that the
// cluster gives it, until it ends, and returns what it said last.
func (c *cluster) runPeer(i int) string {
	c.t.Helper()
	c.try("dev", "start", peerName(i), "--dir", c.dir, "--wait", "0s") // it may fail: that is the point
	name := filepath.Join(c.dir, "logs", peerName(i)+".log")
	var said string
	c.eventually(peerName(i)+" ends", func() error {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if said = lines[len(lines)-1]; !strings.HasPrefix(said, "nexus: ") {
			return fmt.Errorf("its last word is %q", said)
		}
		return nil
	})
	return said
}

func findFile(t testing.TB, dir, suffix string) string {
	t.Helper()
	found := ""
	filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, suffix) {
			found = name
		}
		return err
	})
	if found == "" {
		t.Fatalf("no *%s in %s", suffix, dir)
	}
	return found
}

func change(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The guided tour holds.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "spike")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	limit, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	out, err := exec.CommandContext(limit, filepath.Join(bin, "spikectl"), "dev", "up", "--demo", "--dir", filepath.Join(dir, "dev")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
