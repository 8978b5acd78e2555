package forged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Count is what tries of one scenario with one handler came to.
type Count struct {
	Scenario Scenario       `json:"scenario"`
	Handler  Handler        `json:"handler"`
	Tries    int            `json:"tries"`
	Void     int            `json:"void"`   // tries that mean nothing, not among Tries
	Caught   int            `json:"caught"` // tries with a violation
	Kinds    map[string]int `json:"kinds,omitempty"`
	First    []string       `json:"first,omitempty"` // the violations of the first one
}

// Counts are kept in a file, so that a long run can go on where it was.
type Counts struct {
	Build  string   `json:"build"`
	List   []*Count `json:"counts"`
	Stalls []Stalls `json:"stalls"`

	file string
	mu   sync.Mutex // guards List's elements while tries run
}

// Open begins with what the file has of a build, or afresh.
func Open(file, build string, resume bool) (*Counts, error) {
	c := &Counts{}
	raw, err := os.ReadFile(file)
	if resume && err == nil {
		err = json.Unmarshal(raw, c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c.Build != build {
		c = &Counts{Build: build}
	}
	c.file = file
	return c, nil
}

func (c *Counts) save() error {
	raw, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(c.file+".new", raw, 0o644); err != nil {
		return err
	}
	return os.Rename(c.file+".new", c.file) // whole at once
}

// Of is the count of a scenario and a handler.
func (c *Counts) Of(s Scenario, h Handler) *Count {
	for _, n := range c.List {
		if n.Scenario == s && n.Handler == h {
			return n
		}
	}
	n := &Count{Scenario: s, Handler: h, Kinds: map[string]int{}}
	c.List = append(c.List, n)
	return n
}

// enough is how often the library's handler is to be caught, and times how many tries
// of ours follow for each of its.
const (
	enough = 5
	times  = 10
)

// Run makes tries, so many at a time, until the library's handler was caught
// often enough or had all its tries, then ten times as many with the product's;
// in both scenarios. Then it has followers' disks stall under each handler.
func (c *Counts) Run(ctx context.Context, tries, parallel int) error {
	for _, s := range []Scenario{Frozen, Stalled} {
		stock := c.Of(s, Stock)
		if err := c.make(ctx, stock, parallel, func() bool { return stock.Caught >= enough || stock.Tries >= tries }); err != nil {
			return err
		}
		ours := c.Of(s, Ours)
		if err := c.make(ctx, ours, parallel, func() bool { return ours.Caught > 0 || ours.Tries >= times*stock.Tries }); err != nil {
			return err
		}
		if ours.Caught > 0 {
			return nil // there is nothing more to learn
		}
	}
	if len(c.Stalls) > 0 {
		return nil
	}
	var stalls []Stalls
	for _, s := range stallings {
		for _, h := range []Handler{Stock, Ours, Loop} {
			result, err := stall(ctx, h, s, 21*time.Second)
			if err != nil {
				return err
			}
			stalls = append(stalls, result)
		}
	}
	c.Stalls = stalls
	return c.save()
}

// make makes tries until there are enough. Mostly void tries are an error.
func (c *Counts) make(ctx context.Context, n *Count, parallel int, done func() bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for range parallel {
		wait.Go(func() {
			for {
				c.mu.Lock()
				over := done() || ctx.Err() != nil
				c.mu.Unlock()
				if over {
					return
				}
				violations, err := Try(ctx, n.Scenario, n.Handler)
				if ctx.Err() != nil {
					return
				}
				if err := c.Note(n, violations, err); err != nil {
					cancel(err)
				}
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

// Note counts a try, and keeps the file.
func (c *Counts) Note(n *Count, violations []string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, ErrVoid):
		if n.Void++; n.Void > 50+3*n.Tries {
			return fmt.Errorf("%s with %s: most tries do not bring it about, the last because %w", n.Scenario, n.Handler, err)
		}
	case err != nil:
		return err
	default:
		n.Tries++
	}
	if len(violations) > 0 {
		n.Caught++
		if n.First == nil {
			n.First = violations
		}
		for _, v := range violations {
			kind, _, _ := strings.Cut(v, ":")
			n.Kinds[kind]++
		}
	}
	return c.save()
}

// Verdict is nil when the library's handler was caught in each scenario and the
// product's never, and the product lost no leader to stalling disks.
func (c *Counts) Verdict() error {
	var failed error
	for _, n := range c.List {
		switch {
		case n.Handler == Ours && n.Caught > 0:
			failed = errors.Join(failed, fmt.Errorf("%s: the product's handler lets entries be forged: %d of %d tries", n.Scenario, n.Caught, n.Tries))
		case n.Handler == Stock && n.Caught == 0:
			failed = errors.Join(failed, fmt.Errorf("%s: %d tries did not catch the library's handler: the reproducer cannot fail", n.Scenario, n.Tries))
		}
	}
	for _, s := range c.Stalls {
		if s.Handler == Ours && s.Changes > 0 {
			failed = errors.Join(failed, fmt.Errorf("stalling disks of followers cost %d leaders", s.Changes))
		}
	}
	return failed
}

// Table is Markdown.
func (c *Counts) Table() string {
	var b strings.Builder
	b.WriteString("| Scenario | Handler | Tries | Caught | What |\n|---|---|---|---|---|\n")
	for _, n := range c.List {
		var kinds []string
		for _, k := range slices.Sorted(maps.Keys(n.Kinds)) {
			kinds = append(kinds, fmt.Sprintf("%s: %d", k, n.Kinds[k]))
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d (%.1f %%) | %s |\n", n.Scenario, n.Handler, n.Tries, n.Caught, 100*float64(n.Caught)/float64(max(n.Tries, 1)), strings.Join(kinds, "; "))
	}
	b.WriteString("\n| Disks of both followers hang every 5 s | Handler | Leader changes | Writes/s |\n|---|---|---|---|\n")
	for _, s := range c.Stalls {
		fmt.Fprintf(&b, "| %s | %s | %d | %.0f |\n", s.Setting, s.Handler, s.Changes, s.Rate)
	}
	return b.String()
}
