// Command jepsen attacks clusters of the real programs and judges what clients
// saw: see README.md.
//
// It exits with 0 when every run passed, 1 when one found a violation, 2 when
// one was invalid (its faults did not bite, or too little happened), 3 when the
// suite itself failed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/tests/jepsen/forged"
	"github.com/spike-ha/spike-ha/tests/jepsen/nemesis"
	"github.com/spike-ha/spike-ha/tests/jepsen/report"
)

// smoke are the nemeses of the short tier.
var smoke = []string{"partition-leader-learner", "partition-mute-leader", "kill-leader", "kill-all", "freeze-leader", "transfer-storm", "keepers-lost", "seal"}

func main() { os.Exit(attackAll()) }

func attackAll() int {
	var (
		s         suite
		tier      = flag.String("tier", "smoke", "`smoke` (5 minutes), full (every row) or soak (two harms at a time, drawn, until -for is over)")
		nemeses   = flag.String("nemesis", "", "`NAMES` of nemeses to run instead of a tier's, separated by commas; a+b does b on top of a")
		number    = flag.Int("row", 0, "`NUMBER` of a row to run instead of a tier")
		workloads = flag.String("workload", "", "`NAMES` of workloads; all when empty")
		soak      = flag.Duration("for", time.Hour, "how long a soak goes on")
		mustfail  = flag.Bool("must-fail", false, "run programs with defects on purpose (-binaries built with the tag planted), and fail unless each is caught")
		defects   = flag.String("defects", "", "`NAMES` of defects for -must-fail; all when empty")
		entries   = flag.Bool("forged", false, "attack Raft alone, in this process: see package forged")
		tries     = flag.Int("tries", 300, "how many times -forged tries to catch the library's handler of heartbeats")
		procs     = flag.Bool("processes", false, "-forged attacks clusters of the real programs, which may have one of -defects")
		scenario  = flag.String("scenario", "", "the `SCENARIO` of -processes, S1 or U1; both when empty")
		list      = flag.Bool("list", false, "list the nemeses")
		listRows  = flag.Bool("rows", false, "list the rows, as Markdown")
	)
	flag.Uint64Var(&s.seed, "seed", 0, "`SEED` of everything that is drawn; 0 draws one")
	flag.DurationVar(&s.cell.Length, "length", 20*time.Second, "how long each run is attacked")
	flag.DurationVar(&s.cell.Pace, "pace", 8*time.Millisecond, "pause of each of the clients between two operations")
	flag.BoolVar(&s.cell.Namespaces, "namespaces", false, "give each process a network of its own, instead of a proxy to the others; needs root, ip, tc and nft")
	flag.StringVar(&s.out, "out", "jepsen-results", "`DIRECTORY` for reports and, of runs that did not pass, data, logs and history")
	flag.StringVar(&s.binaries, "binaries", "bin", "`DIRECTORY` of nexus and keeper")
	flag.BoolVar(&s.resume, "resume", false, "go on with what -out has of this build: with its seed, and without the runs that have a verdict")
	flag.Parse()
	switch {
	case *list:
		for _, n := range nemesis.All() {
			fmt.Printf("%-26s %s\n", n.Name, n.About)
		}
		return 0
	case *listRows:
		fmt.Print(table())
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(filepath.Join(s.out, "must-fail"), 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	if err := s.draw(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	s.cell.Voters, s.cell.Learners, s.cell.Keepers = 3, 1, 3
	if *workloads != "" {
		s.cell.Workloads = strings.Split(*workloads, ",")
	}
	switch {
	case *entries && *procs:
		return forgeProcesses(ctx, forged.Scenario(*scenario), *tries, s.resume, planted.Defect(*defects), s.binaries, s.out)
	case *entries:
		return forge(ctx, *tries, s.resume, s.out)
	case *mustfail:
		return mustFail(ctx, *defects, s.seed, s.cell, s.binaries, s.out)
	}
	fmt.Printf("build %s, seed %d; %s\n", revision, s.seed, s.cell.config())
	switch {
	case *nemeses != "":
		s.each(ctx, strings.Split(*nemeses, ","))
	case *number != 0:
		i := slices.IndexFunc(rows, func(r row) bool { return r.number == *number })
		if i < 0 {
			fmt.Fprintf(os.Stderr, "there is no row %d; -rows lists them\n", *number)
			return 3
		}
		s.each(ctx, rows[i].nemeses)
		s.test(ctx, rows[i].tests)
	case *tier == "smoke":
		s.each(ctx, smoke)
	case *tier == "full":
		s.each(ctx, full())
		s.test(ctx, tests())
	default:
		s.soak(ctx, *soak)
	}
	fmt.Print(report.Table(s.runs))
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "interrupted: -resume goes on")
		return 3
	}
	return s.exit()
}

// suite runs cells one after the other.
type suite struct {
	cell          Cell // what all have in common
	seed          uint64
	binaries, out string
	resume        bool

	runs   []*report.Run
	failed int // runs that could not be made
}

// draw draws the seed, or takes the one of the runs that it goes on with.
func (s *suite) draw() error {
	file := filepath.Join(s.out, "seed")
	if raw, err := os.ReadFile(file); s.seed == 0 && s.resume && err == nil {
		if s.seed, err = strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if s.seed == 0 {
		s.seed = 1 + rand.Uint64N(1<<32)
	}
	return os.WriteFile(file, fmt.Appendln(nil, s.seed), 0o644)
}

// exit is the exit code.
func (s *suite) exit() int {
	has := func(v report.Verdict) bool {
		return slices.ContainsFunc(s.runs, func(r *report.Run) bool { return r.Verdict == v })
	}
	switch {
	case s.failed > 0:
		return 3
	case has(report.Violated):
		return 1
	case has(report.Invalid):
		return 2
	}
	return 0
}

func (s *suite) each(ctx context.Context, names []string) {
	for i, name := range names {
		if ctx.Err() == nil {
			s.run(ctx, name, s.seed+uint64(i))
		}
	}
}

// test runs end-to-end tests, each a run of its own.
func (s *suite) test(ctx context.Context, list []string) {
	for _, line := range list {
		pkg, name, _ := strings.Cut(line, " ")
		r := s.earlier(name, "")
		if r == nil {
			r = &report.Run{Name: name, Nemesis: name, Build: revision, When: time.Now().UTC()}
			out, err := exec.CommandContext(ctx, "go", "test", "-v", "-count", "1", "-timeout", "10m", "-run", "^"+name+"$", pkg).CombinedOutput()
			if ctx.Err() != nil {
				return
			}
			r.Length = time.Since(r.When)
			if err == nil && (!bytes.Contains(out, []byte("--- PASS: "+name+" ")) || bytes.Contains(out, []byte("--- SKIP: "))) {
				err = errors.New("it was not run, or skipped something")
			}
			if err != nil {
				r.Violations = []string{fmt.Sprintf("%v; %s", err, filepath.Join(s.out, name+".log"))}
				_ = os.WriteFile(filepath.Join(s.out, name+".log"), out, 0o644)
			}
			r.Decide()
			fmt.Printf("%-36s %-8s end-to-end test, %3.0f s\n", name, r.Verdict, r.Length.Seconds())
			if err := r.Save(s.out); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		s.runs = append(s.runs, r)
	}
}

// soak draws pairs of nemeses until they attacked for long enough, those of an earlier start included when it goes on.
func (s *suite) soak(ctx context.Context, long time.Duration) {
	var all []string
	for _, n := range nemesis.All() {
		if n.Name != "none" && !(n.Privileged && os.Geteuid() != 0) {
			all = append(all, n.Name)
		}
	}
	draw := rand.New(rand.NewPCG(s.seed, 7))
	var done time.Duration
	s.cell.Drawn = true
	for i := uint64(0); done < long && ctx.Err() == nil && s.failed < 5; i++ {
		r := s.run(ctx, all[draw.IntN(len(all))]+"+"+all[draw.IntN(len(all))], s.seed+i)
		if r != nil {
			done += r.Length
		}
	}
	fmt.Printf("\nattacked for %s\n", done.Round(time.Second))
}

// run runs a cell, or finds that it was run; nil when it could not be run.
func (s *suite) run(ctx context.Context, name string, seed uint64) *report.Run {
	cell := s.cell
	cell.Nemesis, cell.Seed = name, seed
	if r := s.earlier(cell.Name(), cell.config()); r != nil {
		s.runs = append(s.runs, r)
		return r
	}
	r, err := execute(ctx, cell, s.binaries, s.out)
	if ctx.Err() != nil {
		return nil // it was cut short: what is missing at its end says nothing
	}
	if err == nil {
		fmt.Print(r.Text())
		err = r.Save(s.out)
	}
	if err != nil {
		fmt.Printf("%-36s could not be run: %v\n", cell.Name(), err)
		s.failed++
		return nil
	}
	s.runs = append(s.runs, r)
	return r
}

// earlier is the report of the same run of this build, if there is one that came to a verdict and this goes on. A violation stays one: it
// is looked into, not tried again.
func (s *suite) earlier(name, config string) *report.Run {
	var r report.Run
	b, err := os.ReadFile(filepath.Join(s.out, name+".json"))
	if !s.resume || err != nil || json.Unmarshal(b, &r) != nil || r.Build != revision || r.Config != config || r.Verdict == report.Invalid {
		return nil
	}
	return &r
}
