package node_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

var update = flag.Bool("update", false, "write testdata/archive-1 anew; archives lie in buckets for years, so what is there must be restored for good")

// goldenState is what an archive holds at an index.
type goldenState struct {
	Index                       uint64
	Secrets, Versions, Policies int
	Data                        string
}

// golden describes testdata/archive-1/archive.
type golden struct {
	Shares []client.RestoreRequest // of a cluster that is no more
	States []goldenState
}

// An archive that a cluster once wrote, with secrets, policies, deleted and purged
// versions, a rotation and a rekey: each state of it is still read, by its shares, as it was.
func TestGoldenArchive(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "archive-1")
	if *update {
		writeGoldenArchive(t, dir)
	}
	var want golden
	b, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(filepath.Join(dir, "archive"))
	if err != nil {
		t.Fatal(err)
	}
	a := archiveOf(t, absolute)
	for _, s := range want.States {
		report, err := node.VerifyArchive(ctx, node.ArchiveReading{Archive: a, Shares: sharesOf(want.Shares), Index: s.Index})
		if err != nil {
			t.Errorf("index %d: %v", s.Index, err)
			continue
		}
		if got := (goldenState{report.Index, report.Secrets, report.Versions, report.Policies, fmt.Sprintf("%x", report.Data)}); got != s {
			t.Errorf("index %d: %+v, want %+v", s.Index, got, s)
		}
	}
}

func writeGoldenArchive(t *testing.T, dir string) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	work := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.Archive = "file://" + work }})
	a := archiveOf(t, work)
	super := c.Client(nodetest.Role("superuser"))
	var want golden
	note := func() {
		t.Helper()
		shipped(t, c, a)
		want.States = append(want.States, goldenState{Index: c.Node(0).Applied()})
	}
	note()
	for i := range 12 {
		put(t, super, fmt.Sprintf("a/%d", i%8), fmt.Sprint("value ", i))
	}
	_, err := super.PutPolicy(ctx, client.Policy{Name: "readers", SPIFFEID: exact("spiffe://" + nodetest.Domain + "/workload/a"), Path: prefix("a"), Permissions: []string{"read"}})
	must(err)
	note()
	_, err = super.Delete(ctx, "a/1")
	must(err)
	_, err = super.Purge(ctx, "a/2")
	must(err)
	nodetest.Eventually(t, "keys are rotated", func() error { return super.RotateKeys(ctx) })
	put(t, super, "a/3", "after the rotation")
	note()
	must(super.Rekey(ctx, client.RekeyRequest{}))
	settled(t, c, super)
	put(t, super, "a/4", "after the rekey")
	note()
	want.Shares = recovered(t, c)[:2]
	for i, s := range want.States {
		report, err := node.VerifyArchive(ctx, node.ArchiveReading{Archive: a, Shares: sharesOf(want.Shares), Index: s.Index})
		must(err)
		want.States[i] = goldenState{s.Index, report.Secrets, report.Versions, report.Policies, fmt.Sprintf("%x", report.Data)}
	}
	b, err := json.MarshalIndent(want, "", "  ")
	must(err)
	must(os.RemoveAll(dir))
	must(os.MkdirAll(dir, 0o755))
	must(os.CopyFS(filepath.Join(dir, "archive"), os.DirFS(work)))
	must(os.WriteFile(filepath.Join(dir, "expected.json"), append(b, '\n'), 0o644))
}
