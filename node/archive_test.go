package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"

	"github.com/spike-ha/spike-ha/api/client"
)

func archiveOf(t *testing.T, dir string) *snapshot.Archive {
	t.Helper()
	a, err := node.OpenArchive(ctx, "file://"+dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func sharesOf(list []client.RestoreRequest) (shares []store.RecoveryShare) {
	for _, r := range list {
		shares = append(shares, store.RecoveryShare{Index: r.Index, Bytes: [32]byte(r.Share), Cluster: [16]byte(r.Cluster), Set: [16]byte(r.Set)})
	}
	return shares
}

// shipped waits until everything that this peer has applied is in the archive.
func shipped(t *testing.T, c *nodetest.Cluster, a *snapshot.Archive) {
	t.Helper()
	want := uint64(0)
	for i := range 3 {
		want = max(want, c.Node(i).Applied())
	}
	nodetest.Eventually(t, "all is in the archive", func() error {
		list, err := a.List(ctx, [16]byte{})
		if err != nil {
			return err
		}
		plan, err := snapshot.MakePlan(list, 0, 0)
		if err != nil {
			return err
		}
		if plan.Last < want {
			return fmt.Errorf("%d of %d", plan.Last, want)
		}
		return nil
	})
}

// Every peer, every Keeper and every disk is lost. From the archive and shares that people kept, a cluster begins again:
// with what was acknowledged, without what was deleted, of a higher incarnation, with other peers joining it.
func TestRestoreFromArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.ArchiveSnapshotEvery = "file://"+dir, 2*time.Second
	}})
	a := archiveOf(t, dir)
	super := c.Client(nodetest.Role("superuser"))
	for i := range 30 {
		put(t, super, fmt.Sprintf("a/%d", i), fmt.Sprint("first ", i))
	}
	shipped(t, c, a)
	nodetest.Eventually(t, "keys are rotated", func() error { return super.RotateKeys(ctx) })
	for i := range 20 {
		put(t, super, fmt.Sprintf("a/%d", i), fmt.Sprint("second ", i))
	}
	if _, err := super.Purge(ctx, "a/25"); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "keys are rotated", func() error { return super.RotateKeys(ctx) })
	shares := sharesOf(recovered(t, c))
	nodetest.Eventually(t, "what is stored is under the new key, so that nothing changes any more", func() error {
		keys, err := super.Keys(ctx)
		if err != nil {
			return err
		}
		for _, e := range keys.Epochs {
			if e.Purpose == "data" && e.Status == "retired" {
				return errors.New("it is not yet")
			}
		}
		return nil
	})
	shipped(t, c, a)
	_, before := c.Node(0).Hashes()
	for i := range 3 {
		c.Stop(i)
		if err := os.RemoveAll(c.DataDir(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		c.StopKeeper(i)
		c.StartKeeper(i)
	}

	restoring := node.ArchiveRestoring{ArchiveReading: node.ArchiveReading{Archive: a, Shares: shares[:1]},
		DataDir: c.DataDir(0), ID: "nexus-1", Address: c.PeerAddress(0), Who: "a test"}
	if _, _, err := node.RestoreArchive(ctx, restoring); err == nil {
		t.Fatal("restored with too few shares")
	}
	wrong := shares[1]
	wrong.Bytes[0] ^= 1
	restoring.Shares = []store.RecoveryShare{shares[0], wrong}
	if _, _, err := node.RestoreArchive(ctx, restoring); reason(err) != "share_wrong" {
		t.Fatalf("a wrong share: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.DataDir(0), "raft")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("something was installed")
	}
	restoring.Shares = shares[1:]
	report, err := node.VerifyArchive(ctx, restoring.ArchiveReading)
	if err != nil || report.Secrets != 29 || report.Data != before {
		t.Fatalf("%+v, %v", report, err)
	}
	forged := filepath.Join(dir, "v1", fmt.Sprintf("%x", report.Cluster), fmt.Sprintf("%020d", uint64(1<<63)))
	if err := errors.Join(os.MkdirAll(forged, 0o700), os.WriteFile(filepath.Join(forged, "claim"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	restored, incarnation, err := node.RestoreArchive(ctx, restoring)
	if err != nil || restored.Data != before || incarnation <= 1 || incarnation > 1<<32 {
		t.Fatalf("%+v, %d, %v", restored, incarnation, err)
	}
	c.Configure(0, func(cfg *node.Config) { cfg.Peers = "nexus-1=" + c.PeerAddress(0) })
	c.Start(0)
	for i := 1; i < 3; i++ {
		c.Configure(i, func(cfg *node.Config) { cfg.Peers, cfg.Join = "", "nexus-1="+c.PeerAddress(0) })
		c.Start(i)
	}
	first := c.Client(nodetest.Role("superuser"), 0)
	keeper := c.Client(nodetest.Role("restore"), 0)
	for _, s := range shares[1:] {
		nodetest.Eventually(t, "the share is taken", func() error {
			_, err := keeper.Restore(ctx, client.RestoreRequest{Index: s.Index, Share: s.Bytes[:], Cluster: s.Cluster[:], Set: s.Set[:]})
			if r := reason(err); r == "share_given_already" || r == "not_sealed" {
				return nil
			}
			return err
		})
	}
	for i := 1; i < 3; i++ {
		id := fmt.Sprintf("nexus-%d", i+1)
		nodetest.Eventually(t, id+" is added", func() error { return first.AddMember(ctx, id, c.PeerAddress(i)) })
		nodetest.Eventually(t, id+" is promoted", func() error { return first.PromoteMember(ctx, id) })
	}
	c.Ready()
	for i := range 3 {
		cl := c.Client(nodetest.Role("superuser"), i)
		for n := range 30 {
			want := fmt.Sprint("first ", n)
			if n < 20 {
				want = fmt.Sprint("second ", n)
			}
			if n == 25 {
				if _, _, err := cl.Get(ctx, "a/25", 0); err == nil {
					t.Error("what was purged is back")
				}
			} else if v := get(t, cl, fmt.Sprintf("a/%d", n)); v != want {
				t.Errorf("a/%d is %q, want %q", n, v, want)
			}
		}
	}
	put(t, first, "a/25", "anew")
	shipped(t, c, a)
	list, err := a.List(ctx, [16]byte{})
	if err != nil || snapshot.NewestIncarnation(list) != incarnation {
		t.Errorf("the new cluster ships as incarnation %d, it is %d; %v", snapshot.NewestIncarnation(list), incarnation, err)
	}
}

// What cannot be an archive's address is refused at the start, without repeating what may be in it.
func TestArchiveAddresses(t *testing.T) {
	t.Parallel()
	cfg := node.Default()
	cfg.Peers, cfg.Keepers = "nexus-1=127.0.0.1:8555", "keeper-1=https://127.0.0.1:8554"
	for address, good := range map[string]bool{
		"": true, "file:///srv/archive": true, "s3://bucket": true, "s3://bucket/production/eu?endpoint=https://s3.example.org&region=eu": true,
		"/srv/archive": false, "file://host/srv": false, "file:relative": false, "file:///srv?x=y": false, "https://bucket": false, "s3://bucket/a b": false,
		"s3://bucket/../other": false, "s3://%zz:secret@": false,
	} {
		cfg.Archive = address
		err := cfg.Validate()
		if (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", address, err)
		}
	}
}
