package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCrashes(t *testing.T) {
	t.Parallel()
	for said, crashed := range map[string]bool{
		`level=INFO msg="panic: is a word"` + "\n":                        false,
		"level=INFO msg=well\npanic: runtime error: index out of range\n": true,
		"fatal error: concurrent map writes\n":                            true,
		"WARNING: DATA RACE\n":                                            true,
		strings.Repeat("x", 100_000) + "\n":                               false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nexus-1.log"), []byte(said), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := Crashes(dir); (len(r.Violations) > 0) != crashed || r.Undecided != "" {
			t.Errorf("%.60q: %v %q", said, r.Violations, r.Undecided)
		}
	}
}
