// Command jepsen attacks clusters of the real programs and judges what clients
// saw: see README.md.
//
// It exits with 0 when every run passed, 1 when one found a violation, 2 when
// one was invalid (its faults did not bite, or too little happened), 3 when the
// suite itself failed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/nemesis"
	"github.com/spike-ha/spike-ha/tests/jepsen/report"
)

// smoke are the nemeses of the short tier.
var smoke = []string{"partition-leader-learner", "partition-mute-leader", "kill-leader", "kill-all", "freeze-leader", "transfer-storm", "keepers-lost", "seal"}

func main() { os.Exit(attackAll()) }

func attackAll() int {
	var (
		tier      = flag.String("tier", "smoke", "`smoke` (5 minutes), full (every nemesis) or soak (random ones until -for is over)")
		nemeses   = flag.String("nemesis", "", "`NAMES` of nemeses to run instead of a tier's, separated by commas")
		workloads = flag.String("workload", "", "`NAMES` of workloads; all when empty")
		seed      = flag.Uint64("seed", 0, "`SEED` of everything that is drawn; 0 draws one")
		length    = flag.Duration("length", 20*time.Second, "how long each run is attacked")
		forHours  = flag.Duration("for", time.Hour, "how long a soak goes on")
		out       = flag.String("out", "jepsen-results", "`DIRECTORY` for reports and, of runs that did not pass, data, logs and history")
		binaries  = flag.String("binaries", "bin", "`DIRECTORY` of nexus and keeper")
		resume    = flag.Bool("resume", false, "pass over runs that have a report of this build in -out")
		mustfail  = flag.Bool("must-fail", false, "run programs with defects on purpose (-binaries built with the tag planted), and fail unless each is caught")
		defects   = flag.String("defects", "", "`NAMES` of defects for -must-fail; all when empty")
		list      = flag.Bool("list", false, "list the nemeses")
	)
	flag.Parse()
	if *list {
		for _, n := range nemesis.All() {
			fmt.Printf("%-26s %s\n", n.Name, n.About)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(filepath.Join(*out, "must-fail"), 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	given := *seed
	if given == 0 {
		given = rand.Uint64N(1 << 32)
	}
	if *mustfail {
		return mustFail(ctx, strings.Split(*defects, ","), given, *length, *binaries, *out)
	}
	var all []string
	for _, n := range nemesis.All() {
		all = append(all, n.Name)
	}
	var names []string
	switch {
	case *nemeses != "":
		names = strings.Split(*nemeses, ",")
	case *tier == "smoke":
		names = smoke
	default:
		names = all
	}
	var loads []string
	if *workloads != "" {
		loads = strings.Split(*workloads, ",")
	}
	worst := 0
	var runs []*report.Run
	begin := time.Now()
	draw := rand.New(rand.NewPCG(given, 7))
	for i := 0; ctx.Err() == nil; i++ {
		if *tier == "soak" && *nemeses == "" {
			if time.Since(begin) > *forHours {
				break
			}
			names = []string{all[draw.IntN(len(all))]}
		} else if i == len(names) {
			break
		}
		cell := Cell{Nemesis: names[i%len(names)], Workloads: loads, Seed: given + uint64(i), Length: *length, Voters: 3, Learners: 1, Keepers: 3}
		file := filepath.Join(*out, cell.Name()+".json")
		if *resume && passed(file) {
			continue
		}
		r, err := execute(ctx, cell, *binaries, *out)
		if err != nil {
			fmt.Printf("%-40s could not be run: %v\n", cell.Name(), err)
			worst = 3
			continue
		}
		runs = append(runs, r)
		fmt.Println(r.Line())
		for _, v := range slices.Concat(r.Violations, r.Invalid) {
			fmt.Println("    " + v)
		}
		if err := r.Save(*out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 3
		}
		worst = max(worst, map[report.Verdict]int{report.Passed: 0, report.Violated: 1, report.Invalid: 2}[r.Verdict])
	}
	fmt.Print(report.Table(runs))
	return worst
}

// passed says whether a report says that its run passed, of this build.
func passed(file string) bool {
	b, err := os.ReadFile(file)
	var r report.Run
	return err == nil && json.Unmarshal(b, &r) == nil && r.Verdict == report.Passed && r.Build == build()
}
