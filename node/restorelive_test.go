package node_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// archiving starts a cluster that ships into a directory, at the newest format level.
func archiving(t *testing.T) (*nodetest.Cluster, *snapshot.Archive, *client.Client) {
	t.Helper()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.ArchiveSnapshotEvery = "file://"+dir, 2*time.Second
	}})
	super := c.Client(nodetest.Role("superuser"))
	rotate(t, super, "audit-path") // once the level has risen
	return c, archiveOf(t, dir), super
}

// equalHashes waits until peers have the same state at the same index.
func equalHashes(t *testing.T, c *nodetest.Cluster, peers ...int) (data [32]byte) {
	t.Helper()
	nodetest.Eventually(t, "equal hashes", func() error {
		all, first := c.Node(peers[0]).Hashes()
		for _, i := range peers[1:] {
			if other, _ := c.Node(i).Hashes(); other != all {
				return fmt.Errorf("peer %d differs", i+1)
			}
		}
		data = first
		return nil
	})
	return data
}

// A state of the archive takes the place of the present one on all peers at once, with
// what was there then and without what came later, after a plan that says so.
func TestRestoreLive(t *testing.T) {
	t.Parallel()
	c, a, super := archiving(t)
	for i := range 20 {
		put(t, super, fmt.Sprintf("a/%d", i), "first")
	}
	if _, err := super.PutPolicy(ctx, client.Policy{Name: "readers", SPIFFEID: exact("spiffe://" + nodetest.Domain + "/workload/a"), Path: prefix("a/"), Permissions: []string{"read"}}); err != nil {
		t.Fatal(err)
	}
	shipped(t, c, a)
	then := newest(c)
	for i := range 10 {
		put(t, super, fmt.Sprintf("a/%d", i), "second")
	}
	put(t, super, "b", "new")
	if _, err := super.Purge(ctx, "a/15"); err != nil {
		t.Fatal(err)
	}
	if _, err := super.DeletePolicy(ctx, "readers"); err != nil {
		t.Fatal(err)
	}
	shipped(t, c, a)

	q := client.RestoreArchiveRequest{Index: then}
	plan, err := super.RestoreArchive(ctx, q, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := client.RecordChanges{Appear: 1, Vanish: 1, Change: 10}
	if plan.Index != then || plan.Secrets != 20 || plan.Policies != 1 || plan.LiveSecrets != 20 || plan.SecretChanges != want ||
		plan.PolicyChanges != (client.RecordChanges{Appear: 1}) || plan.LiveIndex <= then || plan.NewestChange == nil || plan.RestoredAt != 0 {
		t.Fatalf("%+v", plan)
	}
	if v := get(t, super, "b"); v != "new" {
		t.Fatal("a plan changed something")
	}
	wrong := []byte(plan.Code)
	wrong[len(wrong)-1] ^= 1
	if _, err := super.RestoreArchive(ctx, client.RestoreArchiveRequest{Confirm: string(wrong)}, nil); reason(err) != "plan_outdated" && secret.CodeOf(err) != secret.CodeInvalid {
		t.Fatalf("a wrong code: %v", err)
	}
	admin := c.Client(nodetest.Role("admin"))
	if _, err := admin.RestoreArchive(ctx, q, nil); secret.CodeOf(err) != secret.CodeDenied {
		t.Fatalf("an admin: %v", err)
	}

	watch, err := super.Watch(ctx, client.WatchOptions{Prefix: "a/"})
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() {
		_, err := watch.Next(ctx)
		watched <- err
	}()
	done, err := super.RestoreArchive(ctx, client.RestoreArchiveRequest{Confirm: plan.Code}, nil)
	if err != nil || done.RestoredAt <= plan.LiveIndex {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := <-watched; secret.CodeOf(err) != secret.CodeForgotten {
		t.Errorf("a watch that goes on after a restore: %v", err)
	}
	for i := range 3 {
		cl := c.Client(nodetest.Role("superuser"), i)
		for n := range 20 {
			if v := get(t, cl, fmt.Sprintf("a/%d", n)); v != "first" {
				t.Errorf("a/%d through peer %d: %s", n, i+1, v)
			}
		}
		if _, _, err := cl.Get(ctx, "b", 0); secret.CodeOf(err) != secret.CodeNotFound {
			t.Errorf("b through peer %d: %v", i+1, err)
		}
		if _, err := cl.GetPolicy(ctx, "readers"); err != nil {
			t.Error(err)
		}
		if d := c.Node(i).Damaged(); d != 0 {
			t.Errorf("peer %d cannot open %d records", i+1, d)
		}
	}
	data := equalHashes(t, c, 0, 1, 2)
	if fmt.Sprintf("%x", data) != plan.DataHash {
		t.Error("the data hash is not that of the archive")
	}
	again, err := super.RestoreArchive(ctx, client.RestoreArchiveRequest{Confirm: plan.Code}, nil)
	if err != nil || again.RestoredAt != done.RestoredAt {
		t.Errorf("the same code again: %+v, %v", again, err)
	}
	put(t, super, "a/1", "third")
	if _, err := super.RestoreArchive(ctx, client.RestoreArchiveRequest{Confirm: plan.Code}, nil); err != nil || get(t, super, "a/1") != "third" {
		t.Errorf("it was done again: %v", err)
	}
}

// newest is the index up to which some peer has applied.
func newest(c *nodetest.Cluster) (index uint64) {
	for i := range 3 {
		index = max(index, c.Node(i).Applied())
	}
	return index
}

// A client that lost the peer that works for it asks another one with the same code. When
// the first has done it meanwhile, the other says so, and not that nothing was changed.
func TestRestoreLiveUnderOneCodeTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.Archive = "file://" + dir }})
	super := c.Client(nodetest.Role("superuser"))
	rotate(t, super, "audit-path")
	put(t, super, "a", "first")
	shipped(t, c, archiveOf(t, dir))
	then := newest(c)
	put(t, super, "a", "second")
	plan, err := c.Node(0).PlanRestore(ctx, store.RestoreTarget{Index: then})
	if err != nil {
		t.Fatal(err)
	}
	var first store.RestorePlan
	second, err := c.Node(1).RestoreLive(ctx, plan.Code, func(s store.RestoreStep) {
		if first.Done == 0 && s.Step == store.RestoreReading {
			if first, err = c.Node(0).RestoreLive(ctx, plan.Code, func(store.RestoreStep) {}); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || first.Done == 0 || second.Done != first.Done {
		t.Fatalf("done at %d, and the other peer says %d, %v", first.Done, second.Done, err)
	}
	if v := get(t, super, "a"); v != "first" {
		t.Error(v)
	}
}
