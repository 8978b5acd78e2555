package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
)

// clock is the time of a cluster, which a test moves on.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// cared is a cluster with an archive in a directory and a clock of its own.
func cared(t *testing.T, change func(*node.Config)) (c *nodetest.Cluster, a *snapshot.Archive, dir string, time *clock) {
	t.Helper()
	dir, time = t.TempDir(), &clock{}
	c = nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.Now = "file://"+dir, time.now
		if change != nil {
			change(cfg)
		}
	}})
	level3(t, c)
	return c, archiveOf(t, dir), dir, time
}

// level3 waits until the cluster can have its archive cared for.
func level3(t *testing.T, c *nodetest.Cluster) {
	t.Helper()
	super := c.Client(nodetest.Role("superuser"))
	nodetest.Eventually(t, "level 3", func() error {
		st, err := super.Status(ctx)
		if err == nil && st.Level < 3 {
			err = fmt.Errorf("level %d", st.Level)
		}
		return err
	})
}

func newestSnapshot(t *testing.T, a *snapshot.Archive) snapshot.Item {
	t.Helper()
	list, err := a.List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := snapshot.MakePlan(list, 0, 0)
	if err != nil && !errors.As(err, new(*snapshot.GapError)) {
		t.Fatal(err)
	}
	return plan.Snapshot
}

// flip damages one byte in the middle of an object.
func flip(t *testing.T, dir, name string) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func drilled(t *testing.T, cl *client.Client) client.DrillAnswer {
	t.Helper()
	d, err := cl.DrillArchive(ctx)
	if err != nil || !d.Done {
		t.Fatalf("%+v, %v", d, err)
	}
	return d
}

// Whoever is asked, the snapshot is made, and drills are on record everywhere: one that succeeded, with the hash of the state, and one that
// found a flipped bit, which is an alarm until one succeeds again.
func TestSaveAndDrill(t *testing.T) {
	t.Parallel()
	c, a, dir, _ := cared(t, nil)
	super := c.Client(nodetest.Role("superuser"))
	for i := range 20 {
		put(t, super, fmt.Sprintf("a/%d", i), fmt.Sprint("value ", i))
	}
	if _, err := super.Purge(ctx, "a/7"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		peer := c.Client(nodetest.Role("superuser"), i)
		saved, err := peer.SaveSnapshot(ctx)
		if err != nil || !saved.Done || saved.Size == 0 {
			t.Fatalf("%+v, %v", saved, err)
		}
		if newest := newestSnapshot(t, a); newest.Name != saved.Name || newest.Last != saved.Index || newest.Size != saved.Size {
			t.Fatalf("%+v, and the newest is %+v", saved, newest)
		}
		d := drilled(t, peer)
		_, hash := c.Node(i).Hashes()
		if !d.OK || d.Secrets != 19 || d.Versions != 19 || d.Peer != fmt.Sprintf("nexus-%d", i+1) || d.DataHash != fmt.Sprintf("%x", hash) || d.Index < saved.Index {
			t.Fatalf("%+v", d)
		}
	}
	flip(t, dir, newestSnapshot(t, a).Name)
	d := drilled(t, super)
	if d.OK || !strings.Contains(d.Reason, "does not open") || d.Object == "" || d.DataHash != "" {
		t.Fatalf("%+v", d)
	}
	for i := range 3 {
		st, err := c.Client(nodetest.Role("operator"), i).Status(ctx)
		if err != nil || st.Verified == nil || !st.Verified.OK || st.Drill == nil || st.Drill.ID != d.ID || !alarmed(st) {
			t.Fatalf("%+v, %v", st, err)
		}
		answer, err := c.Client(nodetest.Role("operator"), i).Snapshots(ctx)
		if err != nil || len(answer.Drills) != 4 || answer.Drills[0].Reason != d.Reason || answer.Shipper == "" || answer.DrillSeconds != 86400 {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	if _, err := super.SaveSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	if d := drilled(t, super); !d.OK {
		t.Fatalf("%+v", d)
	}
	if st, err := super.Status(ctx); err != nil || alarmed(st) {
		t.Fatalf("%+v, %v", st.Alarms, err)
	}
	for _, role := range []string{"admin", "operator", "recover"} {
		cl := c.Client(nodetest.Role(role))
		_, saving := cl.SaveSnapshot(ctx)
		_, drilling := cl.DrillArchive(ctx)
		_, _, exporting := cl.ExportSnapshot(ctx)
		for _, err := range []error{saving, drilling, exporting} {
			if secret.CodeOf(err) != secret.CodeDenied {
				t.Errorf("%s: %v", role, err)
			}
		}
	}
}

func alarmed(st client.Status) bool {
	for _, a := range st.Alarms {
		if a.Kind == "archive-drill-failed" {
			return true
		}
	}
	return false
}

// A cluster begins again from the file that any peer gives out, while the one that wrote it goes on.
func TestSingleFileArchive(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1}) // without an archive
	super := c.Client(nodetest.Role("superuser"))
	for i := range 30 {
		put(t, super, fmt.Sprintf("a/%d", i), strings.Repeat("v", 1000))
	}
	in, size, err := super.ExportSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "archive.tar")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(out, in)
	if err = errors.Join(err, in.Close(), out.Close()); err != nil || n != size {
		t.Fatal(n, size, err)
	}
	_, before := c.Node(0).Hashes()
	file, err := snapshot.OpenTar(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a := snapshot.New(file, "", "")
	restoring := node.ArchiveRestoring{ArchiveReading: node.ArchiveReading{Archive: a, Shares: sharesOf(recovered(t, c))}, DataDir: filepath.Join(c.Dir, "other"), ID: "nexus-1", Address: c.PeerAddress(0), Who: "a test"}
	report, incarnation, err := node.RestoreArchive(ctx, restoring)
	if err != nil || report.Data != before || report.Secrets != 30 || incarnation <= 1 {
		t.Fatalf("%+v, %d, %v", report, incarnation, err)
	}
	c.Stop(0)
	c.StopKeeper(0)
	c.StopKeeper(1)
	c.StopKeeper(2)
	for i := range 3 {
		c.StartKeeper(i)
	}
	c.Configure(0, func(cfg *node.Config) { cfg.DataDir = restoring.DataDir })
	c.Start(0)
	restore := c.Client(nodetest.Role("restore"))
	for _, s := range restoring.Shares {
		nodetest.Eventually(t, "the share is taken", func() error {
			_, err := restore.Restore(ctx, client.RestoreRequest{Index: s.Index, Share: s.Bytes[:], Cluster: s.Cluster[:], Set: s.Set[:]})
			if r := reason(err); r == "share_given_already" || r == "not_sealed" {
				return nil
			}
			return err
		})
	}
	c.Ready()
	if v := get(t, c.Client(nodetest.Role("superuser")), "a/29"); v != strings.Repeat("v", 1000) {
		t.Error(v)
	}
	c.Client(nodetest.Role("superuser")).Seal(ctx, "")
	if _, _, err := c.Client(nodetest.Role("superuser")).ExportSnapshot(short(t)); secret.CodeOf(err) != secret.CodeSealed {
		t.Errorf("a sealed peer gave an archive out: %v", err)
	}
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}
