package cli

import (
	"slices"
	"testing"

	"github.com/spike-ha/spike-ha/cluster"
)

// What --force loses, or may lose, is said for each survivor that is listed.
func TestForcedLosses(t *testing.T) {
	t.Parallel()
	at := func(id string, incarnation, term, index uint64) cluster.Report {
		return cluster.Report{ID: id, Incarnation: incarnation, LastTerm: term, LastIndex: index}
	}
	others := []cluster.Report{at("b", 5, 11, 293), at("c", 5, 12, 290), at("d", 5, 11, 291), at("e", 4, 20, 999), at("g", 5, 11, 292)}
	got := forcedLosses(at("a", 5, 11, 291), others, []string{"a", "b", "c", "d", "e", "f", "g"})
	want := []string{
		"LOST by --force: b holds 2 entries more (up to 293 of term 11).",
		"LOST by --force: c holds newer entries (up to 290 of term 12).",
		"Not known what f holds: it may be more, and would be lost.",
		"LOST by --force: g holds 1 entry more (up to 292 of term 11).",
	}
	if !slices.Equal(got, want) {
		t.Errorf("it says %q", got)
	}
}
