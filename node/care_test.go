package node_test

import (
	"bytes"
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
	"github.com/spike-ha/spike-ha/tests/s3server"
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
		cfg.ArchiveSnapshotEvery = 10_000 * 3600e9 // by this clock, which tests advance: only they make snapshots
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
	for i := range 3 { // a follower may not have heard of it yet
		changed, err := super.Put(ctx, "fresh", map[string]string{"v": fmt.Sprint(i)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if index := exportedIndex(t, c.Client(nodetest.Role("superuser"), i)); index < changed.Index {
			t.Errorf("what was acknowledged at %d is not in an archive of %d", changed.Index, index)
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

// exportedIndex is the index of the state that a peer exports.
func exportedIndex(t *testing.T, cl *client.Client) uint64 {
	t.Helper()
	in, size, err := cl.ExportSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil || int64(len(b)) != size {
		t.Fatal(len(b), size, err)
	}
	file, err := snapshot.ReadTar(bytes.NewReader(b), size, "export")
	if err != nil {
		t.Fatal(err)
	}
	return newestSnapshot(t, snapshot.New(file, "", "")).Last
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

func counted(t *testing.T, a *snapshot.Archive, kind snapshot.Kind) (names []string) {
	t.Helper()
	list, err := a.List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.Kind == kind {
			names = append(names, i.Name)
		}
	}
	return names
}

func careFor(t *testing.T, cl *client.Client) client.SnapshotsAnswer {
	t.Helper()
	care, err := cl.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return care
}

// drillsOf waits until so many drills are on record.
func drillsOf(t *testing.T, cl *client.Client, n int) client.SnapshotsAnswer {
	t.Helper()
	var care client.SnapshotsAnswer
	nodetest.Eventually(t, fmt.Sprintf("%d drills", n), func() (err error) {
		if care, err = cl.Snapshots(ctx); err == nil && len(care.Drills) < n {
			err = fmt.Errorf("%d drills", len(care.Drills))
		}
		return err
	})
	if len(care.Drills) > n {
		t.Fatalf("%d drills instead of %d", len(care.Drills), n)
	}
	return care
}

func saved(t *testing.T, cl *client.Client, n int) {
	t.Helper()
	for i := range n {
		put(t, cl, fmt.Sprintf("saved/%d", i), "v")
		if _, err := cl.SaveSnapshot(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// The leader drills when it is due by the record, whoever led before, and prunes after a drill that succeeded, never after one that failed. What is
// set outlasts a restart.
func TestCareBySchedule(t *testing.T) {
	t.Parallel()
	c, a, dir, clock := cared(t, nil)
	super := c.Client(nodetest.Role("superuser"))
	if _, err := super.PutSettings(ctx, client.SettingsRequest{ArchiveDrillSeconds: ptr(uint64(3600)), KeepMinimum: ptr(uint32(1)), KeepHourly: ptr(uint32(1))}); err != nil {
		t.Fatal(err)
	}
	saved(t, super, 3)
	if n := len(counted(t, a, snapshot.Snapshot)); n < 3 {
		t.Fatalf("%d snapshots", n)
	}
	clock.advance(2 * time.Minute) // a new leader takes its time; the first drill is due at once
	care := drillsOf(t, super, 1)
	if d := care.Drills[0]; !d.OK || care.NextDrill == nil || care.NextDrill.Sub(d.Time) != time.Hour {
		t.Fatalf("%+v", care)
	}
	nodetest.Eventually(t, "what may go has gone", func() error {
		if left := counted(t, a, snapshot.Snapshot); len(left) != 1 {
			return fmt.Errorf("%d snapshots are left", len(left))
		}
		return nil
	})
	nodetest.Eventually(t, "it is shown", func() error {
		if p := careFor(t, super).Pruned; p == nil || p.Deleted == 0 || p.Error != "" {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	if d := drilled(t, super); !d.OK { // what is left restores
		t.Fatalf("%+v", d)
	}

	before := c.Leader()
	next := (before + 1) % 3
	nodetest.Eventually(t, "another leads", func() error {
		_ = c.Node(before).HandTo(ctx, fmt.Sprintf("nexus-%d", next+1))
		if c.Leader() != next {
			return errors.New("not yet")
		}
		return nil
	})
	nodetest.Eventually(t, "it ships", func() error {
		if careFor(t, super).Shipper != fmt.Sprintf("nexus-%d", next+1) {
			return errors.New("not yet")
		}
		return nil
	})
	clock.advance(60 * time.Minute)
	nodetest.Eventually(t, "it drills, a minute after it began to lead", func() error {
		clock.advance(10 * time.Second)
		if len(careFor(t, super).Drills) < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	care = drillsOf(t, super, 3)
	if d := care.Drills[0]; !d.OK || d.Peer != fmt.Sprintf("nexus-%d", next+1) {
		t.Fatalf("%+v", d)
	}

	saved(t, super, 3)
	flip(t, dir, newestSnapshot(t, a).Name)
	there := counted(t, a, snapshot.Snapshot)
	clock.advance(61 * time.Minute)
	if d := drillsOf(t, super, 4).Drills[0]; d.OK {
		t.Fatalf("%+v", d)
	}
	clock.advance(61 * time.Minute) // after the next one it has had every chance to prune
	if d := drillsOf(t, super, 5).Drills[0]; d.OK {
		t.Fatalf("%+v", d)
	}
	if left := counted(t, a, snapshot.Snapshot); len(left) < len(there) {
		t.Fatalf("%d of %d snapshots were deleted after a drill that failed", len(there)-len(left), len(there))
	}
	saved(t, super, 1)
	clock.advance(61 * time.Minute)
	if d := drillsOf(t, super, 6).Drills[0]; !d.OK {
		t.Fatalf("%+v", d)
	}
	nodetest.Eventually(t, "pruned again", func() error {
		if left := counted(t, a, snapshot.Snapshot); len(left) != 1 {
			return fmt.Errorf("%d snapshots are left", len(left))
		}
		return nil
	})

	c.Stop(before)
	c.Start(before)
	c.Ready()
	care = careFor(t, c.Client(nodetest.Role("operator"), before))
	if care.Retention != (client.Retention{Minimum: 1, Hourly: 1}) || care.DrillSeconds != 3600 || len(care.Drills) != 6 {
		t.Fatalf("%+v", care)
	}
	if _, err := super.PutSettings(ctx, client.SettingsRequest{ArchiveDrillSeconds: ptr(uint64(0))}); err != nil {
		t.Fatal(err)
	}
	if _, err := super.PutSettings(ctx, client.SettingsRequest{MaxVersions: ptr(uint32(7))}); err != nil { // which leaves the others as they are
		t.Fatal(err)
	}
	if care = careFor(t, super); care.NextDrill != nil || care.Retention.Minimum != 1 || care.DrillSeconds != 0 {
		t.Fatalf("%+v", care)
	}
}

// A segment that is missing is found, and so is an archive that is gone.
func TestDrillFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	c, a, dir, _ := cared(t, nil)
	super := c.Client(nodetest.Role("superuser"))
	saved(t, super, 1)
	segments := func() (list []snapshot.Item) {
		all, err := a.List(ctx, [16]byte{})
		if err != nil {
			t.Fatal(err)
		}
		plan, _ := snapshot.MakePlan(all, 0, 0)
		return plan.Segments
	}
	nodetest.Eventually(t, "three segments go on from the snapshot", func() error {
		put(t, super, "more", "v")
		if n := len(segments()); n < 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if d := drilled(t, super); !d.OK || d.Entries == 0 {
		t.Fatalf("%+v", d)
	}
	lost := segments()[1]
	if err := os.Remove(filepath.Join(dir, filepath.FromSlash(lost.Name))); err != nil {
		t.Fatal(err)
	}
	if d := drilled(t, super); d.OK || !strings.Contains(d.Reason, fmt.Sprintf("from index %d to %d are missing", lost.First, lost.Last)) || d.Object == "" {
		t.Fatalf("%+v", d)
	}
	nodetest.Eventually(t, "nothing is there any more", func() error { return os.RemoveAll(filepath.Join(dir, "v1")) }) // in which peers go on storing
	if d := drilled(t, super); d.OK || d.Object != "" {
		t.Fatalf("%+v", d)
	}
}

// A store that hangs holds no drill longer than this peer may go on with it, and nothing is on record of one that was given up. One that lets the peers delete nothing is a
// state, and not an error that comes again and again.
func TestCareWithAStoreThatRefuses(t *testing.T) {
	t.Parallel()
	server := s3server.Start(t)
	proxy := server.Proxy(t, 1)
	server.Bucket(t, "care")
	clock := &clock{}
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.Archive, cfg.Now = proxy.URL("care"), clock.now }})
	level3(t, c)
	super := c.Client(nodetest.Role("superuser"))
	if _, err := super.PutSettings(ctx, client.SettingsRequest{KeepMinimum: ptr(uint32(1))}); err != nil {
		t.Fatal(err)
	}
	saved(t, super, 3)

	proxy.Do(s3server.Rule{Fault: s3server.Hang, Method: "GET", Name: "/snapshot/"})
	first := c.Client(nodetest.Role("superuser"), 0)
	hanging := func() error { // a drill that is begun here and does not come to its end
		brief, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		d, err := first.DrillArchive(brief)
		if err == nil && d.Done {
			t.Fatalf("%+v", d)
		}
		return err
	}
	if err := hanging(); reason(err) == "under_way" {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the drill hangs", func() error {
		if hit, _ := proxy.Hits(); hit == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	if err := super.Seal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := super.Unseal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	proxy.Do(s3server.Rule{Fault: s3server.Denied, Method: "GET", Name: "/snapshot/"}) // of requests that come; what hangs does so on
	began := time.Now()
	var refused client.DrillAnswer
	nodetest.Eventually(t, "the drill of before the seal has ended", func() (err error) {
		refused, err = first.DrillArchive(ctx)
		return err
	})
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it went on for %s, until the store's silence ended it", took)
	}
	if refused.OK || !strings.Contains(refused.Reason, "does not allow it") {
		t.Fatalf("%+v", refused)
	}
	proxy.Do(s3server.Rule{Fault: s3server.Denied, Method: "DELETE"})
	nodetest.Eventually(t, "another drill is made", func() error {
		d, err := first.DrillArchive(ctx)
		if err == nil && !d.OK {
			t.Fatalf("%+v", d)
		}
		return err
	})
	if care := careFor(t, super); len(care.Drills) != 2 || !care.Drills[0].OK || care.Drills[1].ID != refused.ID {
		t.Fatalf("what was given up is on record: %+v", care.Drills)
	}
	clock.advance(2 * time.Minute)
	var pruned *client.Pruned
	nodetest.Eventually(t, "the refusal is shown", func() error {
		if pruned = careFor(t, super).Pruned; pruned == nil || !pruned.Forbidden || pruned.Deleted != 0 {
			return fmt.Errorf("%+v", pruned)
		}
		return nil
	})
	hits, _ := proxy.Hits()
	clock.advance(30 * time.Minute)
	for i := range 3 { // each takes the shipper a second, in which there are two looks at what is to be done
		if _, err := super.Put(ctx, "time", map[string]string{"v": fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
		want := c.Node(c.Leader()).Applied()
		nodetest.Eventually(t, "it is shipped", func() error {
			st, err := super.Status(ctx)
			if err != nil {
				return err
			}
			for _, p := range st.Peers {
				if p.Archive != nil && p.Archive.Active && p.Archive.Shipped >= want {
					return nil
				}
			}
			return errors.New("not yet")
		})
	}
	if again := careFor(t, super).Pruned; again == nil || !again.Time.Equal(pruned.Time) {
		t.Errorf("%+v, then %+v", pruned, again)
	}
	if now, _ := proxy.Hits(); now != hits {
		t.Errorf("it tried %d more times to delete", now-hits)
	}
}

// A drill that cannot even be tried is tried again a minute later, not all the time: each try is on record in the audit log.
func TestDrillThatCannotBeTried(t *testing.T) {
	t.Parallel()
	c, a, _, clock := cared(t, nil)
	super := c.Client(nodetest.Role("superuser"))
	saved(t, super, 1)
	leader, release := c.Leader(), make(chan struct{})
	tries := func() (n int) {
		files, _ := filepath.Glob(filepath.Join(c.DataDir(leader), "audit", "*.jsonl"))
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for line := range bytes.Lines(b) {
				if bytes.Contains(line, []byte("setting archive drills")) && bytes.Contains(line, []byte(`"intent"`)) {
					n++
				}
			}
		}
		return n
	}
	if err := c.Node(leader).HoldDrills(release); err != nil {
		t.Fatal(err)
	}
	clock.advance(2 * time.Minute)
	nodetest.Eventually(t, "a try", func() error {
		if tries() == 0 {
			return errors.New("none")
		}
		return nil
	})
	for i := range 3 { // about a second each
		put(t, super, fmt.Sprintf("more/%d", i), "v")
		shipped(t, c, a)
	}
	if n := tries(); n != 1 {
		t.Errorf("%d tries", n)
	}
	close(release)
	clock.advance(time.Minute)
	if d := drillsOf(t, super, 1).Drills[0]; !d.OK || tries() != 2 {
		t.Errorf("%+v after %d tries", d, tries())
	}
}
