package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/tests/jepsen/nemesis"
)

// Every row is attacked or says why it is not, and every nemesis has its place.
func TestRows(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	last := 0
	for _, r := range rows {
		if r.number <= last {
			t.Errorf("row %d stands after row %d", r.number, last)
		}
		last, seen[r.number] = r.number, true
		if attacked := len(r.nemeses)+len(r.tests) > 0; attacked == (r.without != "") {
			t.Errorf("row %d is attacked: %v; and left out: %q", r.number, attacked, r.without)
		}
		for _, name := range r.nemeses {
			if _, err := nemesis.Find(name, false); err != nil {
				t.Errorf("row %d: %v", r.number, err)
			}
		}
	}
	for _, n := range nemesis.All() {
		if len(rowsOf(n.Name)) == 0 {
			t.Errorf("%s is in no row, so the full tier leaves it out", n.Name)
		}
	}
	for _, name := range smoke {
		if _, err := nemesis.Find(name, false); err != nil {
			t.Error(err)
		}
	}
}

func TestReadmeHasTheRows(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), table()) {
		t.Errorf("README.md has not the rows as they are; `bin/jepsen -rows` prints them:\n%s", table())
	}
}
