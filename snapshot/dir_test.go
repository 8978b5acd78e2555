package snapshot_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/buckettest"
)

func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "archive")
	b, err := snapshot.NewDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	buckettest.Run(t, b)
	for _, bad := range []string{"", "/", "a//b", "../x", "a/../b", ".hidden", "a/.b", "a b", "a\x00"} {
		if err := b.Create(ctx, bad, 1, strings.NewReader("x")); err == nil {
			t.Errorf("%q is the name of an object", bad)
		}
		if _, _, err := b.Open(ctx, bad); err == nil {
			t.Errorf("%q opens", bad)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "b"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	left := 0
	filepath.WalkDir(dir, func(name string, _ os.DirEntry, _ error) error {
		if strings.HasPrefix(filepath.Base(name), ".new-") {
			left++
		}
		return nil
	})
	if left > 0 {
		t.Errorf("%d unfinished files are left", left)
	}
}
