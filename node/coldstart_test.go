package node_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
)

// shipping is a cluster that ships into a directory.
func shipping(t *testing.T, dir string) *nodetest.Cluster {
	t.Helper()
	return nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.ArchiveSnapshotEvery = "file://"+dir, 2*time.Second
	}})
}

// loseDisks stops all peers and removes what they had; they are configured to begin again from the archive.
func loseDisks(t *testing.T, c *nodetest.Cluster) {
	t.Helper()
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		if err := os.RemoveAll(c.DataDir(i)); err != nil {
			t.Fatal(err)
		}
		c.Configure(i, func(cfg *node.Config) { cfg.RestoreLatest = true })
	}
}

func startAll(c *nodetest.Cluster) {
	for i := range 3 {
		c.Start(i)
	}
}

// whole waits until all peers are voters that serve the same state.
func whole(t *testing.T, c *nodetest.Cluster) {
	t.Helper()
	nodetest.Eventually(t, "all peers are voters that serve the same", func() error {
		s := c.Node(0).Status(ctx)
		if len(s.Peers) != 3 {
			return fmt.Errorf("%d peers", len(s.Peers))
		}
		for _, p := range s.Peers {
			if !p.Voter || p.Sealed || p.StateHash != s.Peers[0].StateHash {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

// refuses waits until peer i says why it does not begin.
func refuses(t *testing.T, c *nodetest.Cluster, i int, words ...string) {
	t.Helper()
	nodetest.Eventually(t, fmt.Sprintf("peer %d says %q", i+1, words), func() error {
		for _, p := range c.Node(i).Status(ctx).Peers {
			if p.ID != fmt.Sprintf("nexus-%d", i+1) {
				continue
			}
			for _, w := range words {
				if !strings.Contains(p.Reason, w) {
					return fmt.Errorf("%s: %s", p.State, p.Reason)
				}
			}
			return nil
		}
		return fmt.Errorf("it is not in its own status")
	})
}

// All disks are gone and the Keepers live: the peers begin again by themselves, with all that was shipped, and go on from there.
func TestColdStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := shipping(t, dir)
	super := c.Client(nodetest.Role("superuser"))
	for i := range 20 {
		put(t, super, fmt.Sprintf("a/%d", i), fmt.Sprint("value ", i))
	}
	shipped(t, c, archiveOf(t, dir))
	_, before := c.Node(0).Hashes()
	for round := range 2 {
		loseDisks(t, c)
		startAll(c)
		whole(t, c)
		if _, data := c.Node(2).Hashes(); data != before {
			t.Fatal("another state was restored")
		}
		put(t, c.Client(nodetest.Role("superuser")), "afterwards", fmt.Sprint(round))
		shipped(t, c, archiveOf(t, dir))
		_, before = c.Node(0).Hashes()
	}
}

// The Keepers are gone with the disks: the coordinator waits for shares, takes no wrong one, and the cluster is opened by them. What else is
// shipped under the incarnation before is never taken for its state.
func TestColdStartWithShares(t *testing.T) {
	t.Parallel()
	dir, late := t.TempDir(), t.TempDir()
	c := shipping(t, dir)
	super := c.Client(nodetest.Role("superuser"))
	for i := range 5 {
		put(t, super, fmt.Sprintf("a/%d", i), "early")
	}
	shares := recovered(t, c)
	shipped(t, c, archiveOf(t, dir))
	early := t.TempDir()
	copyTo(t, early, dir)
	for i := range 5 {
		put(t, super, fmt.Sprintf("late/%d", i), "late")
	}
	shipped(t, c, archiveOf(t, dir))
	copyTo(t, late, dir)
	loseDisks(t, c)
	for i := range 3 {
		c.StopKeeper(i)
		c.StartKeeper(i)
		c.Configure(i, func(cfg *node.Config) { cfg.Archive = "file://" + early })
	}
	startAll(c)
	refuses(t, c, 0, "the Keepers have not the shares", "2 recovery shares to this peer, nexus-1", "(0 given)")
	refuses(t, c, 1, "waiting for nexus-1")
	keeper := c.Client(nodetest.Role("restore"), 0)
	wrong := shares[0]
	wrong.Share = append([]byte(nil), wrong.Share...)
	wrong.Share[0] ^= 1
	if _, err := keeper.Restore(ctx, wrong); reason(err) != "share_wrong" {
		t.Errorf("a wrong share: %v", err)
	}
	if p, err := keeper.Restore(ctx, shares[0]); err != nil || p.Collected != 1 || p.Remaining != 1 {
		t.Errorf("the first share: %+v, %v", p, err)
	}
	refuses(t, c, 0, "(1 given)")
	if p, err := keeper.Restore(ctx, shares[2]); err != nil || p.Remaining != 0 {
		t.Errorf("the second share: %+v, %v", p, err)
	}
	whole(t, c)
	super = c.Client(nodetest.Role("superuser"))
	if _, _, err := super.Get(ctx, "late/0", 0); secret.CodeOf(err) != secret.CodeNotFound {
		t.Errorf("what is not in the archive: %v", err)
	}
	put(t, super, "after", "after")
	shipped(t, c, archiveOf(t, early))

	copyTo(t, early, late) // the leader of before was alive somewhere
	loseDisks(t, c)        // and the Keepers were filled again
	startAll(c)
	whole(t, c)
	super = c.Client(nodetest.Role("superuser"))
	if got := get(t, super, "after"); got != "after" {
		t.Errorf("%q", got)
	}
	if _, _, err := super.Get(ctx, "late/0", 0); secret.CodeOf(err) != secret.CodeNotFound {
		t.Errorf("a late object of the incarnation before: %v", err)
	}
}

// Two sets of peers begin from one archive at the same time: one has the keys from its Keepers, the other from people's shares. One of them does it; the
// other says who, forms nothing, and keeps no keys.
func TestColdStartOfTwoSets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one := shipping(t, dir)
	put(t, one.Client(nodetest.Role("superuser")), "a", "1")
	shares := recovered(t, one)
	shipped(t, one, archiveOf(t, dir))
	loseDisks(t, one)
	two := nodetest.New(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.RestoreLatest = "file://"+dir, true
	}})
	refuses(t, two, 0, "the Keepers have not the shares")
	keeper := two.Client(nodetest.Role("restore"), 0)
	elsewhere, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := two.Client(nodetest.Role("restore"), 1).Restore(elsewhere, shares[0]); err == nil || !strings.Contains(err.Error(), "lowest id (nexus-1=") {
		t.Errorf("a share given to another peer: %v", err)
	}
	if _, err := keeper.Restore(ctx, shares[0]); err != nil {
		t.Fatal(err)
	}
	startAll(one)
	if _, err := keeper.Restore(ctx, shares[1]); err != nil && secret.CodeOf(err) != secret.CodeUnavailable { // it knows by now that it is too late
		t.Fatal(err)
	}
	won, lost := one, two
	nodetest.Eventually(t, "one of them begins", func() error {
		if two.Node(0).Health().Formed {
			won, lost = two, one
		}
		if !won.Node(0).Health().Formed {
			return errors.New("none has")
		}
		return nil
	})
	whole(t, won)
	refuses(t, lost, 0, "incarnation 2", "nexus-1="+won.PeerAddress(0))
	for i := range 3 {
		if h := lost.Node(i).Health(); h.Formed || lost.Node(i).HasKeys() {
			t.Errorf("peer %d of the others: %+v", i+1, h)
		}
	}
}

// copyTo copies the objects of an archive that are not there.
func copyTo(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if _, err := os.Stat(target); err == nil {
			return nil
		}
		return errors.Join(os.MkdirAll(filepath.Dir(target), 0o700), os.WriteFile(target, b, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What the archive says is heeded, and nothing is formed instead.
func TestColdStartRefuses(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	c := shipping(t, root)
	put(t, c.Client(nodetest.Role("superuser")), "a", "1")
	shipped(t, c, archiveOf(t, root))
	id := listOf(t, root)[0].Cluster
	claim := func(dir string, incarnation uint64, nonce byte, peers ...string) {
		t.Helper()
		if err := archiveOf(t, dir).Claim(ctx, snapshot.Claimed{Cluster: id, Incarnation: incarnation, Nonce: [32]byte{nonce}, By: "nexus-9", Peers: peers, When: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name  string
		setUp func(dir string)
		words []string
	}{
		{"nothing there", func(string) {}, []string{"is empty", "remove --restore-latest from all peers"}},
		{"claimed", func(dir string) {
			copyTo(t, dir, root)
			claim(dir, 2, 1, "nexus-9=there:1")
		}, []string{"incarnation 2 was claimed by nexus-9 of the peers nexus-9=there:1", "claim from the archive", "snapshot restore"}},
		{"of others", func(dir string) {
			copyTo(t, dir, root)
			claim(dir, 1, 1, "nexus-9=there:1")
		}, []string{"is that of other peers"}},
		{"two clusters", func(dir string) {
			copyTo(t, dir, root)
			if _, err := archiveOf(t, dir).PutKeyring(ctx, snapshot.Header{Cluster: [16]byte{9}, Incarnation: 1, Peer: "x"}, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}, []string{"more than one cluster"}},
		{"damaged", func(dir string) {
			copyTo(t, dir, root)
			for _, i := range listOf(t, dir) {
				if i.Kind != snapshot.Keyring {
					name := filepath.Join(dir, i.Name)
					b, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					b[len(b)-1] ^= 1
					if err := os.WriteFile(name, b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}, []string{"does not restore", "snapshot restore"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := t.TempDir()
			test.setUp(at)
			loseDisks(t, c)
			for i := range 3 {
				c.Configure(i, func(cfg *node.Config) { cfg.Archive = "file://" + at })
			}
			before := len(listOf(t, at))
			startAll(c)
			refuses(t, c, 0, test.words...)
			for i := range 3 {
				if h := c.Node(i).Health(); h.Formed || !h.Sealed || c.Node(i).HasKeys() {
					t.Errorf("peer %d: %+v", i+1, h)
				}
			}
			if len(listOf(t, at)) != before {
				t.Error("something was stored")
			}
		})
	}
	t.Run("without the setting", func(t *testing.T) { // another cluster is formed
		loseDisks(t, c)
		for i := range 3 {
			c.Configure(i, func(cfg *node.Config) { cfg.RestoreLatest, cfg.Archive = false, "file://"+root })
		}
		startAll(c)
		c.Leader()
		if c.Node(0).Health().Initialised {
			t.Error("it is the cluster of before")
		}
	})
}

// Others were first and have shipped since: a peer that had begun, and could not claim it, says who they are.
func TestColdStartTooLate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := shipping(t, dir)
	put(t, c.Client(nodetest.Role("superuser")), "a", "1")
	shipped(t, c, archiveOf(t, dir))
	loseDisks(t, c)
	id := listOf(t, dir)[0].Cluster
	cluster := filepath.Join(dir, "v1", hex.EncodeToString(id[:]))
	first, second := filepath.Join(cluster, fmt.Sprintf("%020d", 1)), filepath.Join(cluster, fmt.Sprintf("%020d", 2))
	if err := os.WriteFile(second, nil, 0o600); err != nil { // nothing can be stored below it
		t.Fatal(err)
	}
	startAll(c)
	refuses(t, c, 0, "incarnation 2 could not be claimed")
	for i := range 3 {
		c.Stop(i)
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	copyTo(t, filepath.Join(second, "snapshot"), filepath.Join(first, "snapshot"))
	err := archiveOf(t, dir).Claim(ctx, snapshot.Claimed{Cluster: id, Incarnation: 2, Nonce: [32]byte{1}, By: "nexus-9", Peers: []string{"nexus-9=there:1"}, When: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	startAll(c)
	refuses(t, c, 0, "began to restore incarnation 2", "which nexus-9 of the peers nexus-9=there:1 began", "remove raft/")
	for i := range 3 {
		if h := c.Node(i).Health(); h.Formed || c.Node(i).HasKeys() {
			t.Errorf("peer %d: %+v", i+1, h)
		}
	}
}

func listOf(t *testing.T, dir string) []snapshot.Item {
	t.Helper()
	list, err := archiveOf(t, dir).List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
