// Package report is what a run found, for people and for machines.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Verdict is how a run ended.
type Verdict string

// The verdicts. An invalid run says nothing of the cluster: its faults did not bite, or too little happened.
const (
	Passed   Verdict = "passed"
	Violated Verdict = "VIOLATED"
	Invalid  Verdict = "invalid"
)

// Fault is one fault of a run, in times since the run began.
type Fault struct {
	Nemesis   string
	What      string
	Begin     time.Duration // it began to be done
	Done      time.Duration // it was
	End       time.Duration // it began to be undone
	Recovered time.Duration // every peer answers again
	Gap       time.Duration // the longest part of Begin to Recovered in which no client that asks any peer was answered
	RPO       time.Duration `json:",omitempty"` // the largest lag of the archive from Begin to Recovered
}

// Lag is how old the oldest change was, at a moment, that was not archived: what would have been lost with the cluster.
type Lag struct{ At, Behind time.Duration }

// Drawing is a history that no order explains.
type Drawing struct {
	Name string
	HTML string // a page of its own
}

// Run is one run.
type Run struct {
	Name, Nemesis, Build string
	Config               string // what else was asked for
	Seed                 uint64
	When                 time.Time
	Peers                int
	Length               time.Duration
	Verdict              Verdict
	Violations, Invalid  []string
	Faults               []Fault
	OK, Failed, Unknown  int
	LongestGap           time.Duration // in which no client that asks any peer was answered
	RPO                  time.Duration `json:",omitempty"` // the largest lag of the archive; 0 when there is none
	Rows                 []int         `json:",omitempty"` // that it is of
	Terms                [2]uint64     // of Raft, at the begin and at the end; 0 when nobody told
	LogBytes             []int64       // of each peer's Raft log at the end, as a file; -1: there is none

	Ops      []history.Op `json:"-"`
	Lags     []Lag        `json:"-"`
	Drawings []Drawing    `json:"-"`
}

// Decide comes to the verdict.
func (r *Run) Decide() {
	var answers []time.Duration
	for _, op := range r.Ops {
		switch op.Outcome {
		case history.OK:
			r.OK++
			if op.Peer == history.Anybody && !op.Final {
				answers = append(answers, op.Return)
			}
		case history.Failed:
			r.Failed++
		default:
			r.Unknown++
		}
	}
	slices.Sort(answers)
	for i := 1; i < len(answers); i++ {
		r.LongestGap = max(r.LongestGap, answers[i]-answers[i-1])
	}
	for i := range r.Faults {
		f := &r.Faults[i]
		last := f.Begin
		for _, at := range answers {
			if at > f.Begin && at < f.Recovered {
				f.Gap = max(f.Gap, at-last)
				last = at
			}
		}
		f.Gap = max(f.Gap, f.Recovered-last)
		for _, l := range r.Lags {
			if l.At >= f.Begin && l.At <= f.Recovered {
				f.RPO = max(f.RPO, l.Behind)
			}
		}
	}
	for _, l := range r.Lags {
		r.RPO = max(r.RPO, l.Behind)
	}
	switch {
	case len(r.Violations) > 0:
		r.Verdict = Violated
	case len(r.Invalid) > 0:
		r.Verdict = Invalid
	default:
		r.Verdict = Passed
	}
}

// Elections is by how much the term grew, as text: elections that nobody won count, too.
func (r *Run) Elections() string {
	if r.Terms[0] == 0 || r.Terms[1] < r.Terms[0] {
		return "unknown"
	}
	return fmt.Sprint(r.Terms[1] - r.Terms[0])
}

// Line is a run in one line.
func (r *Run) Line() string {
	line := fmt.Sprintf("%-36s %-8s %3d faults in %3.0f s; %6d operations answered, %5d failed, %4d of unknown outcome; elections: %s; longest gap %.1f s",
		r.Name, r.Verdict, len(r.Faults), r.Length.Seconds(), r.OK, r.Failed, r.Unknown, r.Elections(), r.LongestGap.Seconds())
	if r.RPO > 0 {
		line += fmt.Sprintf("; RPO %.1f s", r.RPO.Seconds())
	}
	return line
}

// Text is a run in one line, and below it its faults, in seconds since the run began, and what was found.
func (r *Run) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.Line())
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "    %5.1f to %5.1f, all answer at %5.1f: %s\n", f.Begin.Seconds(), f.End.Seconds(), f.Recovered.Seconds(), f.What)
	}
	for _, v := range slices.Concat(r.Violations, r.Invalid) {
		fmt.Fprintln(&b, "    "+v)
	}
	return b.String()
}

// Table is runs as Markdown.
func Table(runs []*Run) string {
	var b strings.Builder
	b.WriteString("\n| Nemesis | Rows | Seed | Verdict | Faults | Answered | Failed | Unknown | Elections | Longest gap | RPO |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range runs {
		rpo := ""
		if r.RPO > 0 {
			rpo = fmt.Sprintf("%.1f s", r.RPO.Seconds())
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %d | %d | %d | %d | %s | %.1f s | %s |\n", r.Nemesis, strings.Trim(fmt.Sprint(r.Rows), "[]"), r.Seed, r.Verdict, len(r.Faults), r.OK, r.Failed, r.Unknown, r.Elections(), r.LongestGap.Seconds(), rpo)
	}
	return b.String()
}

// Save writes the report, and of a run that did not pass its history, too.
func (r *Run) Save(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	page, err := r.page()
	if err != nil {
		return err
	}
	files := map[string][]byte{".json": append(b, '\n'), ".html": page}
	if r.Verdict != Passed {
		var ops bytes.Buffer
		if err := history.Write(&ops, r.Ops); err != nil {
			return err
		}
		files[".history.jsonl"] = ops.Bytes()
	}
	for suffix, b := range files {
		if err := os.WriteFile(filepath.Join(dir, r.Name+suffix), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
