package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// The tests are named after the invariants of DESIGN.md.

var ctx = context.Background()

func exact(s string) secret.Pattern  { return secret.Pattern{Kind: secret.Exact, Text: s} }
func prefix(s string) secret.Pattern { return secret.Pattern{Kind: secret.Prefix, Text: s} }

func put(t *testing.T, c *client.Client, path, value string) client.ChangeAnswer {
	t.Helper()
	answer, err := c.Put(ctx, path, map[string]string{"value": value}, nil)
	if err != nil {
		t.Fatalf("put %s: %v", path, err)
	}
	return answer
}

func get(t *testing.T, c *client.Client, path string) string {
	t.Helper()
	values, _, err := c.Get(ctx, path, 0)
	if err != nil {
		t.Fatalf("get %s: %v", path, err)
	}
	return values["value"]
}

// Invariant 1: neither values nor names are readable on any disk: log,
// snapshots, audit and markers are searched for canaries in several spellings.
func TestInvariant1NoPlaintextOnDisk(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.SnapshotBytes = 8 << 10 }})
	su := c.Client(nodetest.Role("superuser"))
	const value, path, key, policyName, pattern = "canaryvalue7d1f", "canarypath/7d1f", "canarykey7d1f", "canarypolicy7d1f", "canarypattern/7d1f"
	for i := range 50 { // enough for snapshots
		if _, err := su.Put(ctx, path, map[string]string{key: fmt.Sprint(value, i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := su.PutPolicy(ctx, client.Policy{Name: policyName, SPIFFEID: exact("spiffe://example.org/workload/canaryapp7d1f"), Path: prefix(pattern), Permissions: []string{"read"}}); err != nil {
		t.Fatal(err)
	}
	su.Get(ctx, path, 0)
	su.GetPolicy(ctx, policyName)
	c.Client("/workload/web").Get(ctx, path, 0)
	if _, err := su.Delete(ctx, path); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "a snapshot", func() error {
		if found, _ := filepath.Glob(filepath.Join(c.DataDir(c.Leader()), "raft", "snapshots", "*", "state.bin")); len(found) == 0 {
			put(t, su, path, value)
			return errors.New("there is none yet")
		}
		return nil
	})
	for i := range 3 {
		c.Stop(i)
	}
	files := 0
	for i := range 3 {
		err := filepath.WalkDir(c.DataDir(i), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			files++
			for _, canary := range []string{value, path, key, policyName, pattern, "canaryapp7d1f", "canarypath"} {
				if bytes.Contains(b, []byte(canary)) {
					t.Errorf("%s holds %q", name, canary)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 12 {
		t.Fatalf("only %d files were looked at", files)
	}
}

// Invariant 2: a peer without keys votes and replicates; losing every Keeper
// only keeps a restarted peer from serving, until one returns.
func TestInvariant2SealedPeersKeepTheQuorum(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	put(t, su, "a/b", "before")
	for i := range 3 {
		c.StopKeeper(i)
	}
	follower := (c.Leader() + 1) % 3
	other := (c.Leader() + 2) % 3
	leader := c.Leader()
	c.Stop(follower)
	c.Start(follower)
	c.Stop(other) // the quorum now needs the sealed peer's vote
	put(t, c.Client(nodetest.Role("superuser"), leader), "a/b", "while sealed")
	nodetest.Eventually(t, "the sealed peer catches up", func() error {
		s := c.Node(leader).Status(ctx)
		for _, p := range s.Peers {
			if p.ID == s.Peers[follower].ID && p.AppliedIndex >= s.Peers[leader].AppliedIndex && p.StateHash == s.Peers[leader].StateHash {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.Peers)
	})
	if h := c.Node(follower).Health(); !h.Sealed {
		t.Fatal("a peer unsealed without any Keeper")
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, _, err := c.Client(nodetest.Role("superuser"), follower).Get(short, "a/b", 0); secret.CodeOf(err) != secret.CodeSealed {
		t.Fatalf("the sealed peer answered %v, not that it is sealed", err)
	}
	c.StartKeeper(0) // empty: the unsealed leader refills them
	c.StartKeeper(1)
	c.StartKeeper(2)
	c.Start(other)
	c.Ready()
	if v := get(t, c.Client(nodetest.Role("superuser"), follower), "a/b"); v != "while sealed" {
		t.Fatalf("read %q", v)
	}
}

// Invariant 2: a sealed leader hands leadership to a peer that has keys.
func TestInvariant2SealedLeaderHandsOver(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	for i := range 3 {
		c.StopKeeper(i)
	}
	sealed := (c.Leader() + 1) % 3
	c.Stop(sealed)
	c.Start(sealed)
	nodetest.Eventually(t, "the sealed peer leads", func() error {
		if c.Node(sealed).Health().Leader {
			return nil
		}
		return errors.Join(errors.New("not yet"), c.Node(c.Leader()).HandTo(ctx, c.Node(sealed).Health().Peer))
	})
	nodetest.Eventually(t, "a peer with keys leads", func() error {
		if l := c.Leader(); c.Node(l).Health().Sealed {
			return fmt.Errorf("peer %d leads, which is sealed", l+1)
		}
		return nil
	})
	put(t, c.Client(nodetest.Role("superuser"), (sealed+1)%3, (sealed+2)%3), "a/b", "x")
}

// Invariant 3: after a random schedule of restarts and snapshots under load, all
// peers have equal hashes at an equal index.
func TestInvariant3EqualHashesEverywhere(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.SnapshotBytes = 16 << 10 }})
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var acked atomic.Int64
	for w := range 4 {
		cl := c.Client(nodetest.Role("superuser"))
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				path := fmt.Sprintf("w%d/%d", w, n%7)
				var err error
				switch n % 5 {
				case 3:
					_, err = cl.Delete(ctx, path)
				case 4:
					_, err = cl.Purge(ctx, path)
				default:
					_, err = cl.Put(ctx, path, map[string]string{"n": strings.Repeat("x", n%500)}, nil)
				}
				if err != nil && secret.CodeOf(err) != secret.CodeNotFound {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				acked.Add(1)
			}
		})
	}
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for range 6 {
		i := random.IntN(3)
		before := acked.Load()
		nodetest.Eventually(t, "progress", func() error {
			if t.Failed() || acked.Load() > before+50 {
				return nil
			}
			return errors.New("too few writes")
		})
		c.Stop(i)
		c.Start(i)
		c.Ready()
	}
	close(stop)
	writers.Wait()
	nodetest.Eventually(t, "equal states", func() error {
		s := c.Node(0).Status(ctx)
		for _, p := range s.Peers {
			if p.AppliedIndex != s.Peers[0].AppliedIndex {
				return errors.New("not at one index yet")
			}
		}
		for _, p := range s.Peers {
			if p.StateHash != s.Peers[0].StateHash || p.DataHash != s.Peers[0].DataHash {
				t.Fatalf("the states differ at index %d: %+v", p.AppliedIndex, s.Peers)
			}
		}
		return nil
	})
}

// Invariants 4 and 7: once a revocation is acknowledged, no peer serves what it
// took away, and a reader never sees data under a policy of another view.
func TestInvariant7RevocationHoldsEverywhere(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	const app = "/workload/web"
	policy := client.Policy{Name: "web", SPIFFEID: exact("spiffe://" + nodetest.Domain + app), Path: prefix("web"), Permissions: []string{"read"}}
	put(t, su, "web/db", "x")
	var readers [3]*client.Client
	for i := range readers {
		readers[i] = c.Client(app, i)
	}
	for round := range 15 {
		if _, err := c.Client(nodetest.Role("superuser"), round%3).PutPolicy(ctx, policy); err != nil {
			t.Fatal(err)
		}
		for i, r := range readers {
			if _, _, err := r.Get(ctx, "web/db", 0); err != nil {
				t.Fatalf("round %d: granted, but peer %d says %v", round, i+1, err)
			}
		}
		if _, err := c.Client(nodetest.Role("superuser"), (round+1)%3).DeletePolicy(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		for i, r := range readers {
			if _, _, err := r.Get(ctx, "web/db", 0); secret.CodeOf(err) != secret.CodeDenied {
				t.Fatalf("round %d: revoked, but peer %d says %v", round, i+1, err)
			}
		}
		// The same for the data: a deletion holds everywhere once acknowledged.
		if _, err := su.Delete(ctx, "web/db"); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if _, _, err := c.Client(nodetest.Role("superuser"), i).Get(ctx, "web/db", 0); secret.CodeOf(err) != secret.CodeNotFound {
				t.Fatalf("round %d: deleted, but peer %d says %v", round, i+1, err)
			}
		}
		put(t, su, "web/db", "x")
	}
}

// Invariant 5: no acknowledged write is lost to a concurrent one.
func TestInvariant5NoLostUpdates(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.MaxVersions = 1000 }})
	const writers, each = 16, 12
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[secret.Version]int{}
	for w := range writers {
		cl := c.Client(nodetest.Role("superuser"), w%3)
		wg.Go(func() {
			for range each {
				answer, err := cl.Put(ctx, "hot/path", map[string]string{"w": fmt.Sprint(w)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[answer.Version]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	m, err := c.Client(nodetest.Role("superuser")).Metadata(ctx, "hot/path")
	if err != nil || m.CurrentVersion != writers*each || len(m.Versions) != writers*each || len(seen) != writers*each {
		t.Fatalf("%d acknowledged writes, %d versions, current %d, %d numbers told: %v", writers*each, len(m.Versions), m.CurrentVersion, len(seen), err)
	}
	// Compare-and-set: of all who expect one version, one succeeds.
	var won atomic.Int32
	expect := m.CurrentVersion
	for w := range writers {
		cl := c.Client(nodetest.Role("superuser"), w%3)
		wg.Go(func() {
			switch _, err := cl.Put(ctx, "hot/path", map[string]string{"w": "cas"}, &expect); secret.CodeOf(err) {
			case "":
				won.Add(1)
			case secret.CodeConflict:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d compare-and-sets on one version succeeded", won.Load())
	}
}

// Invariant 8: every decision is on record before its answer; the anchors in the
// cluster show a cut tail; a peer that cannot record does not answer.
func TestInvariant8Audit(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"), 1)
	put(t, su, "a/b", "x")
	get(t, su, "a/b")
	c.Client("/workload/web", 1).Get(ctx, "a/b", 0)
	dir := filepath.Join(c.DataDir(1), "audit")
	records := readRecords(t, dir)
	var ops []string
	for _, r := range records {
		if r.Caller != "" {
			ops = append(ops, fmt.Sprintf("%s %s %s %s", strings.TrimPrefix(r.Caller, "spiffe://"+nodetest.Domain), r.Op, r.Phase, r.Decision))
		}
	}
	all := strings.Join(ops, "\n")
	for _, want := range []string{"/spike/pilot/role/superuser secret.put intent allow", "/spike/pilot/role/superuser secret.put outcome allow",
		"/spike/pilot/role/superuser secret.get decision allow", "/workload/web secret.get decision deny"} {
		if !strings.Contains(all, want) {
			t.Errorf("no record %q in\n%s", want, all)
		}
	}
	var anchor audit.Anchor
	nodetest.Eventually(t, "an anchor", func() error {
		for _, p := range c.Node(0).Status(ctx).Peers {
			if p.ID == "nexus-2" && p.AuditAnchor != "" {
				a, err := audit.ParseAnchor(p.AuditAnchor)
				if anchor = a; err == nil && a.Count >= uint64(len(records)) {
					return nil
				}
			}
		}
		return errors.New("not anchored yet")
	})
	if report, err := audit.Verify(dir, &anchor); err != nil || len(report.Findings) > 0 || !report.Anchored {
		t.Fatal(report, err)
	}
	c.Stop(1)
	cut(t, dir, 3)
	if report, err := audit.Verify(dir, &anchor); err != nil || len(report.Findings) == 0 {
		t.Fatal("a cut tail was not found", report, err)
	}
	// The peer itself notices when it comes back, says so, and serves on.
	c.Start(1)
	c.Ready()
	nodetest.Eventually(t, "the fault shows", func() error {
		for _, p := range c.Node(0).Status(ctx).Peers {
			if p.ID == "nexus-2" && p.AuditFault != "" {
				return nil
			}
		}
		return errors.New("it does not")
	})
}

// A cut log shows also when the peer comes back without keys: what it records
// while sealed must not be anchored over the point that is missing.
func TestInvariant8CutLogOfASealedPeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	peer := (c.Leader() + 1) % 3
	su := c.Client(nodetest.Role("superuser"), peer)
	put(t, su, "a/b", "x")
	for range 10 {
		get(t, su, "a/b")
	}
	anchored := func() (a audit.Anchor) {
		p := c.Node(c.Leader()).Status(ctx).Peers[peer]
		if p.AuditAnchor != "" {
			a, _ = audit.ParseAnchor(p.AuditAnchor)
		}
		return a
	}
	dir := filepath.Join(c.DataDir(peer), "audit")
	written := uint64(len(readRecords(t, dir)))
	nodetest.Eventually(t, "an anchor", func() error {
		if a := anchored(); a.Count < written {
			return fmt.Errorf("%v of %d records", a, written)
		}
		return nil
	})
	for i := range 3 {
		c.StopKeeper(i)
	}
	c.Stop(peer)
	before := anchored()
	cut(t, dir, 3)
	c.Start(peer)
	stranger := c.Client("/workload/web", peer)
	nodetest.Eventually(t, "an anchor of what was recorded while sealed", func() error {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, _, err := stranger.Get(short, "a/b", 0); err == nil {
			t.Fatal("a sealed peer served")
		}
		if now := anchored(); now.Count <= before.Count {
			return fmt.Errorf("anchored at %d, before at %d", now.Count, before.Count)
		}
		return nil
	})
	report, err := audit.Verify(dir, nil)
	if err != nil || len(report.Findings) == 0 {
		t.Fatal("the missing records do not show any more:", report, err)
	}
	if p := c.Node(c.Leader()).Status(ctx).Peers[peer]; p.AuditFault == "" {
		t.Error("the status does not show the fault")
	}
}

// Invariant 7: a seal holds on every peer from its acknowledgement on, however
// it meets the unsealing of a peer; and what it closed opens again.
func TestInvariant7SealHoldsEverywhere(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	put(t, c.Client(nodetest.Role("superuser")), "a/b", "x")
	var readers []*client.Client
	for i := range 3 {
		readers = append(readers, c.Client(nodetest.Role("superuser"), i))
	}
	random := rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano())))
	for range 8 {
		if err := readers[random.IntN(3)].Seal(ctx, ""); err != nil {
			t.Fatal(err)
		}
		for i, r := range readers {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			if _, _, err := r.Get(short, "a/b", 0); err == nil {
				t.Errorf("peer %d served after the seal was acknowledged", i+1)
			}
			cancel()
		}
		if err := readers[random.IntN(3)].Unseal(ctx, ""); err != nil {
			t.Fatal(err)
		}
		if random.IntN(2) == 0 { // else the next seal meets peers that are unsealing
			c.Ready()
		}
	}
	c.Ready()
	for _, r := range readers {
		if v := get(t, r, "a/b"); v != "x" {
			t.Errorf("read %q", v)
		}
	}
}

// A Keeper that hangs must not keep the others from being supplied.
func TestKeepersAreRefilledBesideOneThatHangs(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	c.HangKeeper(0)
	c.StopKeeper(1)
	c.StartKeeper(1)
	nodetest.Eventually(t, "the emptied Keeper has its share again", func() error {
		health := ""
		for _, k := range c.Node(0).Status(ctx).Keepers {
			if k.Name == "keeper-2" {
				health = k.Health
			}
		}
		if health != "good" {
			return errors.New(health)
		}
		return nil
	})
}

func readRecords(t *testing.T, dir string) (records []audit.Record) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var r audit.Record
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatal(err)
			}
			records = append(records, r)
		}
	}
	return records
}

// cut keeps the first n lines of the only file.
func cut(t *testing.T, dir string, n int) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	b, err := os.ReadFile(files[0])
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	if err := os.WriteFile(files[0], bytes.Join(lines[:n], nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Invariant 10, for the ends of the machine that tests of package seal do not
// reach: two bootstraps at once give one key; a second one changes nothing.
func TestInvariant10TwoBootstraps(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, nodetest.Options{})
	var wg sync.WaitGroup
	var won atomic.Int32
	for i := range 3 {
		cl := c.Client("/spike/bootstrap", i)
		wg.Go(func() {
			switch err := cl.Init(ctx, client.InitRequest{}); secret.CodeOf(err) {
			case "":
				won.Add(1)
			case secret.CodeConflict:
			default:
				t.Errorf("bootstrap through peer %d: %v", i+1, err)
			}
		})
	}
	wg.Wait()
	if won.Load() == 0 {
		t.Fatal("no bootstrap succeeded")
	}
	c.Ready()
	su := c.Client(nodetest.Role("superuser"))
	put(t, su, "a/b", "x")
	if err := c.Client("/spike/bootstrap").Init(ctx, client.InitRequest{}); secret.CodeOf(err) != secret.CodeConflict {
		t.Fatalf("a second bootstrap: %v", err)
	}
	for i := range 3 { // the keys of one peer open what another wrote, also after a restart
		c.Stop(i)
		c.Start(i)
		c.Ready()
		if v := get(t, c.Client(nodetest.Role("superuser"), i), "a/b"); v != "x" {
			t.Fatalf("peer %d read %q", i+1, v)
		}
	}
}
