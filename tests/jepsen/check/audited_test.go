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
	seq := func(n uint64) func(*audit.Record) { return func(r *audit.Record) { r.Seq = n } }
	unknown := func(r *audit.Record) { r.Result = "unknown" }
	unnamed := func(r *audit.Record) { r.Path = "" }
	other := func(r *audit.Record) { r.Path = "hmac:b" }
	anybody := func(o *history.Op) { o.Peer = history.Anybody }
	peer1 := func(o *history.Op) { o.Peer = 1 }
	free := []history.Op{op(0, 1, "write", "a", "", 1, at(5), anybody)}
	moved := []history.Op{op(0, 1, "transfer", "", "3,7", 0, at(5))}
	later := []history.Op{op(0, 1, "write", "a", "", 1, at(5)), op(2, 3, "write", "a", "", 2, at(6))}
	swapped := []audit.Record{intent("x"), outcome("x", 6, 2), intent("y"), outcome("y", 5, 1)}
	one := []history.Op{op(0, 1, "write", "a", "", 1, at(5))}
	two := []history.Op{op(0, 1, "write", "a", "", 1, at(5)), op(0, 1, "add", "b", "", 1, at(5), element)}
	for name, c := range map[string]struct {
		ops   []history.Op
		logs  [][]audit.Record
		finds string
		lost  bool // the first of the logs
	}{
		"one change":                              {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "", false},
		"one change, asked for twice":             {free, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {intent("y"), outcome("y", 5, 1)}}, "", false},
		"two changes in one entry":                {two, [][]audit.Record{{intent("x"), outcome("x", 5, 1), intent("y"), outcome("y", 5, 1, other)}, {}}, "", false},
		"two changes recorded by a sealed peer":   {two, [][]audit.Record{{intent("x"), intent("y"), outcome("x", 5, 1, unnamed, seq(3)), outcome("y", 5, 1, unnamed, seq(4))}, {}}, "", false},
		"a change that is not on record":          {one, [][]audit.Record{{intent("x")}, {}}, "clients know of 1", false},
		"one of two that is not":                  {two, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "clients know of 2", false},
		"one in a log that was lost":              {one, [][]audit.Record{{}}, "", true},
		"another version":                         {one, [][]audit.Record{{intent("x"), outcome("x", 5, 2)}, {}}, "clients know of 1", false},
		"another place":                           {one, [][]audit.Record{{intent("x"), outcome("x", 6, 1)}, {}}, "clients know of 1", false},
		"a transaction":                           {moved, [][]audit.Record{{intent("x"), intent("x"), outcome("x", 5, 3), outcome("x", 5, 7, other)}, {}}, "", false},
		"a transaction recorded by a sealed peer": {[]history.Op{op(0, 1, "transfer", "", "3,3", 0, at(5))}, [][]audit.Record{{intent("x"), intent("x"), outcome("x", 5, 3, unnamed, seq(7)), outcome("x", 5, 3, unnamed, seq(8))}, {}}, "", false},
		"half a transaction":                      {moved, [][]audit.Record{{intent("x"), intent("x"), outcome("x", 5, 3)}, {}}, "clients know of 1", false},
		"one at another peer than was asked":      {[]history.Op{op(0, 1, "write", "a", "", 1, at(5), peer1)}, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "of peer 1", false},
		"one of a peer, another log lost":         {[]history.Op{op(0, 1, "write", "a", "", 1, at(5), peer1)}, [][]audit.Record{{}, {}}, "of peer 1", true},
		"one of anybody":                          {[]history.Op{op(0, 1, "write", "a", "", 1, at(5), anybody)}, [][]audit.Record{{}, {intent("x"), outcome("x", 5, 1)}}, "", false},
		"a change that nobody asked for":          {nil, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "1 more", false},
		"a change that was refused":               {[]history.Op{op(0, 1, "write", "a", "", 0, failed)}, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "1 more", false},
		"one of unknown outcome":                  {[]history.Op{op(0, 0, "write", "a", "", 0)}, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "", false},
		"one of unknown outcome, elsewhere":       {[]history.Op{op(0, 0, "write", "a", "", 0, peer1)}, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {}}, "1 more", false},
		"one of unknown outcome, made twice":      {[]history.Op{op(0, 0, "write", "a", "", 0)}, [][]audit.Record{{intent("x"), outcome("x", 5, 1), intent("y"), outcome("y", 6, 2)}, {}}, "2 more", false},
		"one too early for an unknown outcome":    {append(later[1:2:2], op(4, 0, "write", "a", "", 0)), [][]audit.Record{{intent("x"), outcome("x", 5, 1), intent("y"), outcome("y", 6, 2)}, {}}, "0 at most", false},
		"one named under two keys":                {free, [][]audit.Record{{intent("x"), outcome("x", 5, 1)}, {intent("y"), outcome("y", 5, 1, func(r *audit.Record) { r.Path = "new.a" })}}, "", false},
		"two, one after the other":                {later, [][]audit.Record{{intent("x"), outcome("x", 5, 1), intent("y"), outcome("y", 6, 2)}, {}}, "", false},
		"two in the wrong order":                  {later, [][]audit.Record{swapped, {}}, "was intended after", false},
		"two that overlap":                        {later, [][]audit.Record{{intent("x"), intent("y"), outcome("x", 6, 2), outcome("y", 5, 1)}, {}}, "", false},
		"one that repeats another":                {later, [][]audit.Record{swapped, {intent("z")}}, "", false},
		"an outcome, and one that was told":       {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1), outcome("x", 0, 0, unknown)}}, "", false},
		"an outcome that was not intended":        {one, [][]audit.Record{{outcome("x", 5, 1)}, {intent("x")}}, "not intended", false},
		"an outcome that is on record twice":      {one, [][]audit.Record{{intent("x"), outcome("x", 5, 1), outcome("x", 5, 1)}, {}}, "one more", false},
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
		r := check.Audited(c.ops, map[int]bool{0: c.lost}, dirs...)
		if c.finds == "" && (len(r.Violations) > 0 || r.Undecided != "") || c.finds != "" && !strings.Contains(strings.Join(r.Violations, "\n"), c.finds) {
			t.Errorf("%s: found %q (%s)", name, r.Violations, r.Undecided)
		}
	}
	if r := check.Audited(one, nil, t.TempDir()); r.Undecided == "" {
		t.Error("no log at all is taken for one")
	}
}
