package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/tests/jepsen/report"
)

// catches says what brings a defect to light, and what the violation says of it.
var catches = map[planted.Defect]struct{ nemesis, says string }{
	planted.ReadWithoutRound: {"partition-leader-learner", "linearizable"},
	planted.LeaderUnasked:    {"freeze-leader", "linearizable"},
	planted.CachedDecision:   {"none", "grants and revocations"},
	planted.NoWriteIDs:       {"kill-leader", "linearizable"},
	planted.LostWrite:        {"none", "linearizable"},
	planted.KeysStay:         {"seal", "while the cluster was sealed"},
}

// tries is how often a defect may hide; which interleavings a run meets is chance.
const tries = 4

// mustFail runs builds with a defect, and fails unless each is caught for what it is.
func mustFail(ctx context.Context, only []string, seed uint64, common Cell, binaries, out string) int {
	worst := 0
	for i, d := range planted.All {
		if only[0] != "" && !slices.Contains(only, string(d)) {
			continue
		}
		caught := false
		for try := range tries {
			cell := common
			cell.Nemesis, cell.Seed, cell.Defect = catches[d].nemesis, seed+uint64(i*tries+try), d
			r, err := execute(ctx, cell, binaries, filepath.Join(out, "must-fail"))
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", d, err)
				return 3
			}
			if err := r.Save(filepath.Join(out, "must-fail")); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 3
			}
			if caught = r.Verdict == report.Violated && strings.Contains(strings.Join(r.Violations, "\n"), catches[d].says); caught {
				fmt.Printf("%-20s caught by %s, seed %d, run %d: %.150s\n", d, cell.Nemesis, cell.Seed, try+1, r.Violations[0])
				break
			}
			fmt.Printf("%-20s not caught by %s, seed %d, run %d: %s %v %v\n", d, cell.Nemesis, cell.Seed, try+1, r.Verdict, r.Violations, r.Invalid)
		}
		if !caught {
			worst = 1
		}
	}
	return worst
}
