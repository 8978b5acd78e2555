package node_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// pairs is load on two secrets that always change together, with a protocol of what
// was answered at which index.
type pairs struct {
	t    *testing.T
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	writes []seen
	reads  []seen
}

type seen struct {
	index uint64
	value string
}

func (p *pairs) write(cl *client.Client) {
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		default:
		}
		v := fmt.Sprint(n)
		answer, err := cl.Transact(ctx, client.Operation{Op: "put", Path: "pair/x", Values: map[string]string{"value": v}},
			client.Operation{Op: "put", Path: "pair/y", Values: map[string]string{"value": v}})
		if err != nil {
			p.t.Errorf("a write under a restore: %v", err)
			return
		}
		p.mu.Lock()
		p.writes = append(p.writes, seen{answer.Index, v})
		p.mu.Unlock()
	}
}

func (p *pairs) read(cl *client.Client) {
	last := uint64(0)
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		default:
		}
		got, answer, err := cl.Get(ctx, []string{"pair/x", "pair/y"}[n%2], 0)
		if err != nil {
			p.t.Errorf("a read under a restore: %v", err)
			return
		}
		if answer.Index < last {
			p.t.Errorf("a read went back from index %d to %d", last, answer.Index)
		}
		last = answer.Index
		p.mu.Lock()
		p.reads = append(p.reads, seen{answer.Index, got["value"]})
		p.mu.Unlock()
	}
}

// check holds every read against what was last written, or restored, at its index.
func (p *pairs) check(restoredAt uint64, restored string) {
	p.t.Helper()
	close(p.stop)
	p.done.Wait()
	// A write in the same entry as the restore came before it: after it, it would have been refused.
	events := append(slices.Clone(p.writes), seen{restoredAt, restored})
	slices.SortStableFunc(events, func(a, b seen) int { return cmp.Compare(a.index, b.index) })
	before, after := 0, 0
	for _, r := range p.reads {
		next, _ := slices.BinarySearchFunc(events, r.index+1, func(e seen, i uint64) int { return cmp.Compare(e.index, i) })
		at := next - 1
		if at < 0 {
			continue
		}
		if events[at].value != r.value {
			p.t.Errorf("index %d read %q, and %q was written last, at %d; restored at %d", r.index, r.value, events[at].value, events[at].index, restoredAt)
		}
		if r.index < restoredAt {
			before++
		} else {
			after++
		}
	}
	if before == 0 || after == 0 {
		p.t.Errorf("%d reads before the restore and %d after it show nothing", before, after)
	}
	p.t.Logf("%d writes, %d reads before, %d after", len(p.writes), before, after)
}

// records is enough for more than a few chunks.
const records = 24

// large fills a cluster.
func large(t *testing.T, cl *client.Client, value string) {
	t.Helper()
	for i := range records {
		put(t, cl, fmt.Sprintf("large/%d", i), value+strings.Repeat("x", 200<<10))
	}
}

// under runs the plan's restore at a peer, and between while it stands still in the
// middle of staging.
func under(t *testing.T, n *node.Node, code string, between func()) (store.RestorePlan, error) {
	t.Helper()
	once := false
	return n.RestoreLive(ctx, code, func(s store.RestoreStep) {
		if !once && s.Step == store.RestoreStaging && s.Done >= s.Total/2 {
			once = true
			between()
		}
	})
}

// While half of the records are staged leadership moves, a peer restarts from a snapshot
// with the staging area in it, and another one joins, all under load. The restore goes
// on; reads and writes see one order with it at one index, and no error; every peer, one that joins
// afterwards too, has the same state; and the archive leads to before it, into its middle, and after it.
func TestRestoreLiveUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.SnapshotBytes = "file://"+dir, 4<<20
	}})
	a := archiveOf(t, dir)
	super := c.Client(nodetest.Role("superuser"))
	rotate(t, super, "audit-path")
	large(t, super, "archived ")
	for _, path := range []string{"pair/x", "pair/y"} {
		put(t, super, path, "archived")
	}
	shipped(t, c, a)
	data := equalHashes(t, c, 0, 1, 2)
	then := newest(c)
	large(t, super, "later ")
	load := &pairs{t: t, stop: make(chan struct{})}
	load.done.Go(func() { load.write(c.Client(nodetest.Role("superuser"), 0, 1, 2)) })
	for i := range 3 {
		cl := c.Client(nodetest.Role("superuser"), i, (i+1)%3, (i+2)%3)
		load.done.Go(func() { load.read(cl) })
	}
	leader := c.Leader()
	driver, restarts := (leader+1)%3, (leader+2)%3
	plan, err := c.Node(driver).PlanRestore(ctx, store.RestoreTarget{Index: then})
	if err != nil || plan.DataHash != data {
		t.Fatalf("%+v, %v", plan, err)
	}
	joined, middle := 0, uint64(0)
	done, err := under(t, c.Node(driver), plan.Code, func() {
		nodetest.Eventually(t, "leadership moves", func() error { return c.Node(leader).HandTo(ctx, fmt.Sprintf("nexus-%d", restarts+1)) })
		nodetest.Eventually(t, "the peer knows what is staged", func() error {
			if s, ok := c.Node(restarts).Staged(); !ok || s.Records == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		middle = c.Node(restarts).Applied()
		c.Stop(restarts)
		c.Start(restarts)
		var id, address string
		joined, id, address = c.Join()
		nodetest.Eventually(t, "a peer joins", func() error { return super.AddMember(ctx, id, address) })
		nodetest.Eventually(t, "the peers that came know what is staged", func() error {
			for _, i := range []int{restarts, joined} {
				if s, ok := c.Node(i).Staged(); !ok || s.Records == 0 {
					return fmt.Errorf("peer %d does not", i+1)
				}
			}
			return nil
		})
	})
	if err != nil || done.Done == 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	nodetest.Eventually(t, "reads and writes go on", func() error {
		load.mu.Lock()
		defer load.mu.Unlock()
		if n := len(load.writes); n == 0 || load.writes[n-1].index < done.Done+100 {
			return errors.New("too few")
		}
		return nil
	})
	load.check(done.Done, "archived")
	late, id, address := c.Join()
	nodetest.Eventually(t, "another joins", func() error { return super.AddMember(ctx, id, address) })
	c.Ready()
	for _, i := range []int{0, 1, 2, joined, late} {
		cl := c.Client(nodetest.Role("superuser"), i)
		for n := range records {
			if v := get(t, cl, fmt.Sprintf("large/%d", n)); !strings.HasPrefix(v, "archived ") {
				t.Errorf("large/%d through peer %d: %.10s", n, i+1, v)
			}
		}
		if d := c.Node(i).Damaged(); d != 0 {
			t.Errorf("peer %d cannot open %d records", i+1, d)
		}
	}
	equalHashes(t, c, 0, 1, 2, joined, late)

	shipped(t, c, a)
	shares := sharesOf(recovered(t, c))
	for _, at := range []struct {
		index uint64
		data  [32]byte
	}{{then, data}, {middle, [32]byte{}}, {done.Done, data}, {0, [32]byte{}}} {
		report, err := node.VerifyArchive(ctx, node.ArchiveReading{Archive: a, Shares: shares, Index: at.index})
		if err != nil || at.data != [32]byte{} && report.Data != at.data || report.Secrets != records+2 {
			t.Errorf("back to index %d: %+v, %v", at.index, report, err)
		}
	}
	// And forward again, to what the restore took away.
	forward, err := c.Node(0).PlanRestore(ctx, store.RestoreTarget{Index: done.Done - 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(0).RestoreLive(ctx, forward.Code, func(store.RestoreStep) {}); err != nil {
		t.Fatal(err)
	}
	if v := get(t, super, "large/3"); !strings.HasPrefix(v, "later ") {
		t.Errorf("forward again: %.10s", v)
	}
}

// Between the archived state and its restore keys are rotated twice, all is re-encrypted,
// and the root key is replaced. What is restored opens everywhere, and is then under the
// newest keys; keys that are rotated while it is staged do not disturb it.
func TestRestoreLiveAfterRotations(t *testing.T) {
	t.Parallel()
	c, a, super := archiving(t)
	large(t, super, "archived ")
	shipped(t, c, a)
	then := newest(c)
	large(t, super, "later ")
	rotate(t, super, "data", "archive")
	archived(t, super, 1)
	rekey(t, c, super)
	rotate(t, super, "data")
	nodetest.Eventually(t, "no key is retired", func() error { return noneRetired(super) })
	shipped(t, c, a)
	plan, err := c.Node(1).PlanRestore(ctx, store.RestoreTarget{Index: then})
	if err != nil {
		t.Fatal(err)
	}
	done, err := under(t, c.Node(1), plan.Code, func() { rotate(t, super, "data") })
	if err != nil {
		t.Fatal(err)
	}
	whole := func() {
		t.Helper()
		for i := range 3 {
			cl := c.Client(nodetest.Role("superuser"), i)
			for n := range records {
				if v := get(t, cl, fmt.Sprintf("large/%d", n)); !strings.HasPrefix(v, "archived ") {
					t.Errorf("large/%d through peer %d: %.10s", n, i+1, v)
				}
			}
			if d := c.Node(i).Damaged(); d != 0 {
				t.Errorf("peer %d cannot open %d records", i+1, d)
			}
		}
	}
	whole()
	nodetest.Eventually(t, "no key is retired", func() error { return noneRetired(super) })
	whole()
	shipped(t, c, a)
	equalHashes(t, c, 0, 1, 2)
	shares := sharesOf(recovered(t, c))
	for _, index := range []uint64{then, done.Done, 0} {
		if report, err := node.VerifyArchive(ctx, node.ArchiveReading{Archive: a, Shares: shares, Index: index}); err != nil || report.Secrets != records {
			t.Errorf("back to index %d: %+v, %v", index, report, err)
		}
	}
}

func rekey(t *testing.T, c *nodetest.Cluster, super *client.Client) {
	t.Helper()
	if err := super.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	settled(t, c, super)
}

func noneRetired(super *client.Client) error {
	keys, err := super.Keys(ctx)
	if err != nil {
		return err
	}
	for _, e := range keys.Epochs {
		if e.Purpose == "data" && e.Status == "retired" || keys.Stale > 0 {
			return fmt.Errorf("%+v, %d stale", e, keys.Stale)
		}
	}
	return nil
}

// What ends a restore in the middle, and what never lets it begin: each is said as what
// it is, and leaves nothing changed and nothing staged.
func TestRestoreLiveRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(i int, cfg *node.Config) {
		if i < 2 {
			cfg.Archive, cfg.ArchiveSnapshotEvery = "file://"+dir, time.Hour
		}
	}})
	super := c.Client(nodetest.Role("superuser"))
	nodetest.Eventually(t, "an archiving peer leads", func() error {
		if c.Leader() == 2 {
			return c.Node(2).HandTo(ctx, "nexus-1")
		}
		return nil
	})
	rotate(t, super, "audit-path")
	a := archiveOf(t, dir)
	large(t, super, "archived ")
	shipped(t, c, a)
	then := newest(c)
	put(t, super, "large/0", "later")
	shipped(t, c, a)
	plan := func() store.RestorePlan {
		t.Helper()
		p, err := c.Node(0).PlanRestore(ctx, store.RestoreTarget{Index: then})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	unchanged := func(what string) {
		t.Helper()
		if v := get(t, super, "large/0"); v != "later" {
			t.Errorf("%s: something was restored", what)
		}
		for i := range 3 {
			nodetest.Eventually(t, what+": nothing is staged", func() error {
				if s, ok := c.Node(i).Staged(); ok {
					return fmt.Errorf("%+v at peer %d", s, i+1)
				}
				return nil
			})
		}
	}
	want := func(what string, err error, code secret.Code, why string) {
		t.Helper()
		if secret.CodeOf(err) != code || reason(err) != why {
			t.Errorf("%s: %v (%s, %s)", what, err, secret.CodeOf(err), reason(err))
		}
	}
	_, err := c.Node(2).PlanRestore(ctx, store.RestoreTarget{})
	want("no archive", err, secret.CodeConflict, "no_archive")
	_, err = c.Node(0).PlanRestore(ctx, store.RestoreTarget{Index: then + 1<<20})
	want("an index that is not there", err, secret.CodeConflict, "archive_gap")
	_, err = c.Node(0).PlanRestore(ctx, store.RestoreTarget{Incarnation: 77})
	want("an incarnation that is not there", err, secret.CodeConflict, "archive_nothing")
	_, err = c.Node(0).PlanRestore(ctx, store.RestoreTarget{Time: time.Now().Add(-time.Hour)})
	want("a time before the archive", err, secret.CodeConflict, "archive_nothing")
	for _, code := range []string{"x", "1-2-zz", "0-1-00", "1-1"} {
		_, err = c.Node(0).RestoreLive(ctx, code, nil)
		want(code, err, secret.CodeInvalid, "")
	}
	// Another one takes its place in the middle.
	p := plan()
	_, err = under(t, c.Node(0), p.Code, func() {
		_, err := c.Node(0).PlanRestore(ctx, store.RestoreTarget{})
		want("two at one peer", err, secret.CodeConflict, "restore_running")
		if err := c.Node(1).Stage(ctx, 2); err != nil {
			t.Error(err)
		}
	})
	want("superseded", err, secret.CodeConflict, "superseded")
	if s, ok := c.Node(0).Staged(); !ok || s.ID != [16]byte{2} {
		t.Error("the restore that came in between was given up by the one before")
	}
	// What a peer that died has left is cleared by the leader, after a while without progress.
	leader, began := c.Node(c.Leader()), time.Now()
	if err := leader.ClearStale(began, began.Add(node.StaleAfter-time.Second)); err != nil {
		t.Error(err)
	}
	if _, ok := leader.Staged(); !ok {
		t.Error("it was cleared too early")
	}
	if err := leader.ClearStale(began, began.Add(node.StaleAfter)); err != nil {
		t.Error(err)
	}
	unchanged("superseded")
	// Who asked leaves.
	leaving, leave := context.WithCancel(ctx)
	_, err = c.Node(0).RestoreLive(leaving, p.Code, func(s store.RestoreStep) {
		if s.Step == store.RestoreStaging && s.Done > 0 {
			leave()
		}
	})
	want("who asked left", err, secret.CodeUnavailable, "")
	unchanged("who asked left")
	// An operator seals.
	_, err = under(t, c.Node(0), p.Code, func() {
		if err := super.Seal(ctx, ""); err != nil {
			t.Error(err)
		}
	})
	want("sealed in the middle", err, secret.CodeSealed, "")
	_, err = c.Node(0).PlanRestore(ctx, store.RestoreTarget{})
	want("sealed", err, secret.CodeSealed, "")
	if err := super.Unseal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	unchanged("sealed")
	_, err = c.Node(0).RestoreLive(ctx, p.Code, func(store.RestoreStep) {})
	want("a plan from before the seal", err, secret.CodeConflict, "plan_outdated")
	// The limit of the state.
	limit := uint64(1 << 20)
	settings, err := super.PutSettings(ctx, client.SettingsRequest{StateLimitBytes: &limit})
	if err != nil {
		t.Fatal(settings, err)
	}
	_, err = c.Node(0).PlanRestore(ctx, store.RestoreTarget{Index: then})
	want("over the limit", err, secret.CodeFull, "")
	limit = 1 << 30
	if _, err := super.PutSettings(ctx, client.SettingsRequest{StateLimitBytes: &limit}); err != nil {
		t.Fatal(err)
	}
	// Damage is found before anything is begun, also what comes between the steps.
	p = plan()
	damage(t, a, dir, then)
	_, err = c.Node(0).RestoreLive(ctx, p.Code, func(store.RestoreStep) {})
	want("damaged", err, secret.CodeConflict, "archive_damaged")
	unchanged("damaged")
}

// damage changes a byte in the middle of the segment that holds an index.
func damage(t *testing.T, a *snapshot.Archive, dir string, index uint64) {
	t.Helper()
	list, err := a.List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.Kind == snapshot.Segment && i.First <= index && index <= i.Last {
			name := filepath.Join(dir, i.Name)
			b, err := os.ReadFile(name)
			if err == nil {
				b[len(b)/2] ^= 1
				err = errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, b, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no segment holds it")
}
