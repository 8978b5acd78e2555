package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/tests/jepsen/report"
)

// order is what is said of answers that contradict one another.
var order = regexp.MustCompile("linearizable|append-only|was not done")

// catches says what brings a defect to light, and what the violation says of it.
var catches = map[planted.Defect]struct {
	nemesis string
	says    *regexp.Regexp
	attempt time.Duration // of the cell
}{
	planted.ReadWithoutRound:  {"partition-leader-learner", order, 0},
	planted.LeaderUnasked:     {"freeze-leader", order, 0},
	planted.VerifyLeader:      {"slow-clock-leader", order, 0},
	planted.HeartbeatFastPath: {inProcess, regexp.MustCompile("lets entries be forged"), 0},
	planted.CachedDecision:    {"none", regexp.MustCompile("grants and revocations"), 0},
	planted.OlderPolicies:     {"none", regexp.MustCompile("grants and revocations"), 0},
	planted.NoWriteIDs:        {"kill-leader", order, 5 * time.Second}, // enough for another try once there is another leader
	planted.LostWrite:         {"none", order, 0},
	planted.KeysStay:          {"seal", regexp.MustCompile("while the cluster was sealed"), 0},
	planted.NoFsync:           {"power-loss-all", regexp.MustCompile("sets: "), 0},
}

// inProcess stands for package forged, which attacks the product's transport without a cluster of processes.
const inProcess = "-forged"

// tries is how often a defect may hide; which interleavings a run meets is chance.
const tries = 8

// mustFail runs builds with a defect, and fails unless each is caught for what it is.
func mustFail(ctx context.Context, only string, seed uint64, common Cell, binaries, out string) int {
	worst, list := 0, planted.All
	if only != "" {
		list = nil
		for _, name := range strings.Split(only, ",") {
			if !slices.Contains(planted.All, planted.Defect(name)) {
				fmt.Fprintf(os.Stderr, "there is no defect %q\n", name)
				return 3
			}
			list = append(list, planted.Defect(name))
		}
	}
	for i, d := range list {
		caught := false
		if catches[d].nemesis == inProcess {
			said, err := forgedBy(ctx, d, binaries, out)
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n%s", d, err, said)
				return 3
			}
			if !catches[d].says.MatchString(said) {
				worst = 1
			}
			fmt.Printf("%-20s %s\n", d, said)
			continue
		}
		for try := range tries {
			cell := common
			cell.Nemesis, cell.Seed, cell.Defect, cell.Attempt = catches[d].nemesis, seed+uint64(i*tries+try), d, catches[d].attempt
			r, err := execute(ctx, cell, binaries, filepath.Join(out, "must-fail"))
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", d, err)
				return 3
			}
			if err := r.Save(filepath.Join(out, "must-fail")); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 3
			}
			if caught = r.Verdict == report.Violated && catches[d].says.MatchString(strings.Join(r.Violations, "\n")); caught {
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

// forgedBy runs -forged as a program with a defect, and returns the last line of what it says, which is what was caught. The error is of the machine.
func forgedBy(ctx context.Context, d planted.Defect, binaries, out string) (said string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "jepsen"), "-forged", "-out", filepath.Join(out, "must-fail"))
	cmd.Env = append(os.Environ(), "SPIKE_PLANTED="+string(d))
	raw, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() <= 1 {
		err = nil
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return lines[len(lines)-1], err
}
