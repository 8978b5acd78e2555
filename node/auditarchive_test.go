package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// shippingAudit is a cluster whose audit files are small, and paths in them readable.
func shippingAudit(t *testing.T, dir string) *nodetest.Cluster {
	t.Helper()
	return nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) {
		cfg.Archive, cfg.ArchiveSnapshotEvery, cfg.AuditFileBytes, cfg.AuditClearPaths = "file://"+dir, 2*time.Second, 4<<10, true
	}})
}

const canary = "canary/of/a/path"

// fillAudit has each peer rotate its log.
func fillAudit(t *testing.T, c *nodetest.Cluster, peers ...int) {
	t.Helper()
	for _, i := range peers {
		cl := c.Client(nodetest.Role("superuser"), i)
		put(t, cl, canary, "x")
		for range 60 {
			get(t, cl, canary)
		}
	}
}

func closedFiles(t *testing.T, c *nodetest.Cluster, i int) []string {
	t.Helper()
	list, err := audit.Closed(filepath.Join(c.DataDir(i), "audit"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// objects are the names of those with the audit log of peer i.
func objects(t *testing.T, a *snapshot.Archive, i int) (names []string) {
	t.Helper()
	list, err := a.List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		if o.Kind == snapshot.Audit && o.Peer == fmt.Sprintf("nexus-%d", i+1) {
			names = append(names, o.Name)
		}
	}
	return names
}

// auditShipped waits until all closed files of these peers are in the archive, once.
func auditShipped(t *testing.T, c *nodetest.Cluster, a *snapshot.Archive, peers ...int) {
	t.Helper()
	for _, i := range peers {
		nodetest.Eventually(t, fmt.Sprintf("the closed audit files of peer %d are in the archive", i+1), func() error {
			if files, there := len(closedFiles(t, c, i)), len(objects(t, a, i)); there != files || files < 3 {
				return fmt.Errorf("%d of %d", there, files)
			}
			return nil
		})
	}
}

func verifyAudit(t *testing.T, a *snapshot.Archive, shares []store.RecoveryShare) (map[string]node.ArchivedLog, []audit.Finding) {
	t.Helper()
	logs, noState, err := node.VerifyAudit(ctx, node.ArchiveReading{Archive: a, Shares: shares}, "")
	if err != nil || noState != nil {
		t.Fatal(err, noState)
	}
	var findings []audit.Finding
	byPeer := map[string]node.ArchivedLog{}
	for _, l := range logs {
		byPeer[l.Peer] = l
		findings = append(findings, l.Report.Findings...)
	}
	return byPeer, findings
}

// Leader and followers archive their own logs. What is there verifies, joins their directories, and says nothing to who has no keys. What is damaged is found.
func TestAuditArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := shippingAudit(t, dir)
	a := archiveOf(t, dir)
	fillAudit(t, c, 0, 1, 2)
	auditShipped(t, c, a, 0, 1, 2)
	shares := sharesOf(recovered(t, c))
	var logs map[string]node.ArchivedLog
	nodetest.Eventually(t, "the archive has anchors of all", func() error {
		var findings []audit.Finding
		logs, findings = verifyAudit(t, a, shares)
		if len(logs) != 3 || len(findings) > 0 {
			t.Fatalf("%d logs, %+v", len(logs), findings)
		}
		for _, l := range logs {
			if l.Anchor == nil {
				return fmt.Errorf("none of %s", l.Peer)
			}
		}
		return nil
	})
	for i := range 3 {
		l := logs[fmt.Sprintf("nexus-%d", i+1)]
		local, err := l.VerifyLocal(filepath.Join(c.DataDir(i), "audit"), l.Anchor, l.Current)
		if err != nil || len(local.Findings) > 0 || !local.Anchored || local.Count < l.Report.Count || l.Report.Files != len(objects(t, a, i)) {
			t.Errorf("%+v\n%+v, %v", l, local, err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{canary, "spiffe://", "secret.get"} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%q stands readable in %s", secret, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Node(0).Status(ctx)
	for _, p := range s.Peers {
		if p.Archive == nil || p.Archive.Audit == nil || p.Archive.Audit.Error != "" || p.Archive.Audit.Since.IsZero() {
			t.Errorf("%s: %+v", p.ID, p.Archive)
		}
	}
	for i := range 3 {
		c.Stop(i)
	}

	first, second := objects(t, a, 0), objects(t, a, 1)
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	change := func(t *testing.T, dir, name string, with func([]byte) []byte) {
		t.Helper()
		path := filepath.Join(dir, filepath.FromSlash(name))
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, with(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lose := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
				t.Fatal(err)
			}
		}
	}
	exchange := func(name, other string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(at(other))
			if err != nil {
				t.Fatal(err)
			}
			change(t, dir, name, func([]byte) []byte { return b })
		}
	}
	for what, test := range map[string]struct {
		damage func(t *testing.T, dir string)
		kind   string
		file   string
		words  string
	}{
		"a flipped bit": {func(t *testing.T, dir string) {
			change(t, dir, first[1], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, audit.Altered, first[1], "cannot be read"},
		"a missing object":           {lose(first[1]), audit.Missing, first[2], "are missing"},
		"the first object missing":   {lose(first[0]), audit.Missing, first[1], "records 1 to"},
		"an object of another peer":  {exchange(first[0], second[0]), audit.Altered, first[0], "not what its place says"},
		"another object of the peer": {exchange(first[1], first[2]), audit.Altered, first[1], "not what its place says"},
		"half an object": {func(t *testing.T, dir string) {
			change(t, dir, first[0], func(b []byte) []byte { return b[:len(b)/2] })
		}, audit.Altered, first[0], "cannot be read"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			damaged := t.TempDir()
			copyTo(t, damaged, dir)
			test.damage(t, damaged)
			_, findings := verifyAudit(t, archiveOf(t, damaged), shares)
			if len(findings) != 1 || findings[0].Kind != test.kind || findings[0].File != test.file || !strings.Contains(findings[0].Detail, test.words) {
				t.Errorf("%+v", findings)
			}
		})
	}
}

// While the store takes nothing, answers and rotation go on, and it shows. A sealed peer ships nothing. Neither leaves a gap, nor does a restart.
func TestAuditShippingGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := shippingAudit(t, dir)
	a := archiveOf(t, dir)
	fillAudit(t, c, 0, 1, 2)
	auditShipped(t, c, a, 0, 1, 2)
	shares := sharesOf(recovered(t, c))

	mine := filepath.Join(dir, filepath.FromSlash(filepath.Dir(objects(t, a, 0)[0])))
	if err := os.Rename(mine, mine+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(closedFiles(t, c, 0))
	fillAudit(t, c, 0)
	if after := len(closedFiles(t, c, 0)); after <= before {
		t.Errorf("%d closed files, and then %d", before, after)
	}
	nodetest.Eventually(t, "it shows that the store takes nothing", func() error {
		for _, p := range c.Node(0).Status(ctx).Peers {
			if p.ID == "nexus-1" && p.Archive.Audit.Waiting > 0 && p.Archive.Audit.Error != "" {
				return nil
			}
		}
		return errors.New("it does not")
	})
	if err := errors.Join(os.Remove(mine), os.Rename(mine+"-away", mine)); err != nil {
		t.Fatal(err)
	}
	auditShipped(t, c, a, 0)

	if err := c.Client(nodetest.Role("superuser"), 0).Seal(ctx, "nexus-3"); err != nil {
		t.Fatal(err)
	}
	had := objects(t, a, 2)
	rotated := len(closedFiles(t, c, 2))
	sealed := c.Client(nodetest.Role("superuser"), 2)
	nodetest.Eventually(t, "the sealed peer rotates its log: refusals are on record, too", func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second/2)
		defer cancel()
		_, _, err := sealed.Get(ctx, canary, 0)
		if n := len(closedFiles(t, c, 2)); n <= rotated {
			return fmt.Errorf("%d closed files, %w", n, err)
		}
		return nil
	})
	fillAudit(t, c, 0)
	auditShipped(t, c, a, 0)
	if len(closedFiles(t, c, 2)) <= len(had) || len(objects(t, a, 2)) != len(had) {
		t.Errorf("the sealed peer has %d closed files, of which %d were archived before it was sealed, and %d are", len(closedFiles(t, c, 2)), len(had), len(objects(t, a, 2)))
	}

	for i := range 3 {
		c.Stop(i)
	}
	times := map[string]time.Time{}
	list, err := a.List(ctx, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		times[i.Name] = i.Modified
	}
	lost := objects(t, a, 1)[1] // as if storing it had failed; that what is there was stored and the answer said otherwise looks like a restart
	if err := os.Remove(filepath.Join(dir, filepath.FromSlash(lost))); err != nil {
		t.Fatal(err)
	}
	startAll(c)
	nodetest.Eventually(t, "the sealed peer is let in again", func() error { return c.Client(nodetest.Role("superuser"), 0).Unseal(ctx, "nexus-3") })
	whole(t, c)
	fillAudit(t, c, 0, 1, 2)
	auditShipped(t, c, a, 0, 1, 2)
	logs, findings := verifyAudit(t, a, shares)
	if len(logs) != 3 || len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	if list, err = a.List(ctx, [16]byte{}); err != nil || !slices.ContainsFunc(list, func(i snapshot.Item) bool { return i.Name == lost }) {
		t.Errorf("%s is still not there, %v", lost, err)
	}
	for _, i := range list {
		if was, there := times[i.Name]; there && i.Name != lost && i.Modified != was {
			t.Errorf("%s was stored again", i.Name)
		}
	}
}
