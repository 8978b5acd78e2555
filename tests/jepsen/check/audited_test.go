package check_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

func TestAudited(t *testing.T) {
	t.Parallel()
	intent := func(request string) audit.Record {
		return audit.Record{Request: request, Op: "secret.put", Phase: audit.PhaseIntent, Path: "hmac:a"}
	}
	outcome := func(request string, index, version uint64, more ...func(*audit.Record)) audit.Record {
		r := audit.Record{Request: request, Op: "secret.put", Phase: audit.PhaseOutcome, Path: "hmac:a", Result: "ok", Index: index, Version: version}
		for _, m := range more {
			m(&r)
		}
		return r
	}
	unknown := func(r *audit.Record) { r.Result = "unknown" }
	unnamed := func(r *audit.Record) { r.Path = "" }
	other := func(r *audit.Record) { r.Path = "hmac:b" }
	one := []history.Op{op(0, 1, "write", "a", "", 1, at(5))}
	two := []history.Op{op(0, 1, "write", "a", "", 1, at(5)), op(0, 1, "add", "b", "", 1, at(5), element)}
	for name, c := range map[string]struct {
		ops   []history.Op
		logs  [][]audit.Record
		finds string
		lost  bool // some of the logs
	}{
		"one change":                            {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "", false},
		"one change, asked for twice":           {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {intent("y"), outcome("y", 5, 1)}}, "", false},
		"two changes in one entry":              {two, [][]audit.Record{{intent("x"), outcome("x", 5, 1), intent("y"), outcome("y", 5, 1, other)}, {}}, "", false},
		"two changes recorded by a sealed peer": {two, [][]audit.Record{{intent("x"), intent("y"), outcome("x", 5, 1, unnamed), outcome("y", 5, 1, unnamed)}, {}}, "", false},
		"a change that is not on record":        {one, [][]audit.Record{{intent("x")}, {}}, "clients know of 1", false},
		"one of two that is not":                {two, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "clients know of 2", false},
		"one in a log that was lost":            {one, [][]audit.Record{{}}, "", true},
		"another version":                       {one, [][]audit.Record{{intent("x"), outcome("x", 5, 2)}, {}}, "clients know of 1", false},
		"another place":                         {one, [][]audit.Record{{intent("x"), outcome("x", 6, 1)}, {}}, "clients know of 1", false},
		"an outcome, and one that was told":     {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1), outcome("x", 0, 0, unknown)}}, "", false},
		"an outcome that was not intended":      {one, [][]audit.Record{{outcome("x", 5, 1)}, {intent("x")}}, "not intended", false},
		"an outcome that is on record twice":    {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1), outcome("x", 5, 1)}, {}}, "one more", false},
	} {
		var dirs []string
		for _, log := range c.logs {
			var text []byte
			for _, r := range log {
				line, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				text = append(append(text, line...), '\n')
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "audit-1.jsonl"), text, 0o600); err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, dir)
		}
		r := check.Audited(c.ops, !c.lost, dirs...)
		if c.finds == "" && (len(r.Violations) > 0 || r.Undecided != "") || c.finds != "" && !strings.Contains(strings.Join(r.Violations, "\n"), c.finds) {
			t.Errorf("%s: found %q (%s)", name, r.Violations, r.Undecided)
		}
	}
	if r := check.Audited(one, true, t.TempDir()); r.Undecided == "" {
		t.Error("no log at all is taken for one")
	}
}
