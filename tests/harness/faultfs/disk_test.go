package faultfs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// What a power loss leaves is what was synced, whatever else it leaves.
func TestPowerLoss(t *testing.T) {
	seen := map[string]bool{} // what became of bytes that were not synced
	for seed := range uint64(32) {
		d, err := newDisk(t.TempDir())
		must(t, err)
		at := func(name string) string { return filepath.Join(d.live, name) }
		make := func(name, synced, then string) *os.File {
			f, err := d.create(at(name), os.O_EXCL, 0o600)
			must(t, err)
			t.Cleanup(func() { f.Close() })
			if synced != "" {
				_, err = d.write(f, []byte(synced), 0)
				must(t, err)
				must(t, d.sync(f, name))
			}
			_, err = d.write(f, []byte(then), int64(len(synced)))
			must(t, err)
			return f
		}
		must(t, d.mkdir(at("sub"), 0o700))
		must(t, d.mkdir(at("gone"), 0o700))
		make("kept", "synced", " and not")
		make("sub/kept", "below", "")
		make("renamed", "renamed", "")
		must(t, os.Rename(at("renamed"), at("other")))
		make("removed", "removed", "")
		must(t, d.syncDir(d.live))
		make("nameless", "", "never synced")
		must(t, os.Remove(at("removed")))
		must(t, os.Rename(at("other"), at("another")))
		cut := make("cut", "cut to nothing", "")
		must(t, d.truncate(cut, 3))
		must(t, d.sync(cut, "cut"))
		must(t, d.truncate(cut, 9)) // what was cut off does not come back
		must(t, d.sync(cut, "cut"))
		late := make("late", "", "")
		_, err = d.write(late, []byte("x"), 0)
		must(t, err)
		d.giveUp(late)
		must(t, d.sync(late, "late")) // an fsync after one that failed saves nothing
		must(t, d.losePower(rand.New(rand.NewPCG(seed, 0))))

		content := func(name string) string {
			b, err := os.ReadFile(at(name))
			if err != nil {
				return "absent"
			}
			return string(b)
		}
		seen[content("kept")] = true
		for name, want := range map[string]string{"sub/kept": "below", "nameless": "absent", "renamed": "absent", "other": "renamed", "another": "absent",
			"removed": "removed", "cut": "cut\x00\x00\x00\x00\x00\x00", "late": "\x00"} {
			if got := content(name); got != want {
				t.Errorf("seed %d: %s is %q, want %q", seed, name, got, want)
			}
		}
		if got := content("kept"); got[:min(6, len(got))] != "synced" {
			t.Errorf("seed %d: synced bytes became %q", seed, got)
		}
	}
	if !seen["synced"] || !seen["synced and not"] {
		t.Errorf("of unsynced bytes some are kept and some are lost, but these are %v", seen)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
