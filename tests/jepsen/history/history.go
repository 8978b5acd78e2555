// Package history is what clients saw of a cluster: one record per operation,
// with what was asked, of whom, what came back, and when. It is all that the
// checkers know. It imports nothing of ours.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// Outcome is what a client knows of an operation.
type Outcome string

// The outcomes. What certainly had no effect is Failed; of a read that got no
// answer nothing is known and nothing matters, so that it is Failed too.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "fail"
	Unknown Outcome = "info" // it may take effect at any time from its call on, or never
)

// Forever is the return of an operation of unknown outcome.
const Forever = time.Duration(math.MaxInt64)

// Anybody is the peer of a client that asks whom it likes.
const Anybody = -1

// Op is one operation. Which fields beyond the first ones mean something depends on the workload.
type Op struct {
	Workload string        `json:"workload"`
	Process  int           `json:"process"` // one operation at a time
	Peer     int           `json:"peer"`    // that was asked
	Call     time.Duration `json:"call"`    // since the run began, by a monotonic clock
	Return   time.Duration `json:"return"`
	Outcome  Outcome       `json:"outcome"`
	Error    string        `json:"error,omitempty"`
	Codes    string        `json:"codes,omitempty"` // of the error and of its causes

	F       string `json:"f"`             // what was asked: read, write, …
	Key     string `json:"key,omitempty"` // of what
	In      string `json:"in,omitempty"`
	Expect  int    `json:"expect,omitempty"` // version of a compare-and-set; AnyVersion: whatever is there
	Out     string `json:"out,omitempty"`
	Version int    `json:"version,omitempty"`
	Index   uint64 `json:"index,omitempty"` // of the log, as acknowledged
	Local   bool   `json:"local,omitempty"` // the peer need not ask any other
	Final   bool   `json:"final,omitempty"` // made after the last fault was over
}

// Undone is an error unless it succeeded.
func (o Op) Undone() error {
	if o.Outcome != OK {
		return errors.New(o.Error)
	}
	return nil
}

// AnyVersion expects none.
const AnyVersion = -1

// Recorder collects a history. Safe for concurrent use.
type Recorder struct {
	begin time.Time
	mu    sync.Mutex
	ops   []Op
}

// NewRecorder begins a run.
func NewRecorder() *Recorder { return &Recorder{begin: time.Now()} }

// Now is the time since the run began.
func (r *Recorder) Now() time.Duration { return time.Since(r.begin) }

// Do makes an operation and records it: do fills in what came of it.
func (r *Recorder) Do(op Op, do func(*Op)) Op {
	op.Call = r.Now()
	do(&op)
	op.Return = r.Now()
	if op.Outcome == Unknown {
		op.Return = Forever
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
	return op
}

// Ops are all operations until now, in the order of their calls.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := slices.Clone(r.ops)
	slices.SortStableFunc(ops, func(a, b Op) int { return int(a.Call - b.Call) })
	return ops
}

// OKs counts successful operations by peer since a moment, but for those that a peer may answer though it is cut off.
func (r *Recorder) OKs(since time.Duration) map[int]int {
	return r.count(since, func(op Op) bool { return op.Outcome == OK })
}

// Changes counts those that changed something.
func (r *Recorder) Changes(since time.Duration) map[int]int {
	return r.count(since, func(op Op) bool { return op.Outcome == OK && op.Index > 0 })
}

func (r *Recorder) count(since time.Duration, what func(Op) bool) map[int]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[int]int{}
	for i := len(r.ops) - 1; i >= 0 && r.ops[i].Return >= since; i-- { // appended at their return, but for unknown ones
		if op := r.ops[i]; op.Call >= since && !op.Local && what(op) {
			n[op.Peer]++
		}
	}
	return n
}

// Write writes operations, a line of JSON each; Read reads them back.
func Write(w io.Writer, ops []Op) error {
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	for _, op := range ops {
		if err := enc.Encode(op); err != nil {
			return err
		}
	}
	return out.Flush()
}

// Read reads what Write wrote.
func Read(r io.Reader) (ops []Op, err error) {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var op Op
		switch err := dec.Decode(&op); err {
		case nil:
			ops = append(ops, op)
		case io.EOF:
			return ops, nil
		default:
			return nil, fmt.Errorf("operation %d: %w", len(ops)+1, err)
		}
	}
}

// Of are the operations of some workloads.
func Of(ops []Op, workloads ...string) []Op {
	return slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return !slices.Contains(workloads, op.Workload) })
}
