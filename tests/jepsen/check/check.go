// Package check judges histories. Each checker is a function of a history
// alone and takes nothing on trust that clients did not see; what it calls a
// violation no interleaving of the operations explains.
package check

import (
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Result is a checker's judgement.
type Result struct {
	Checker    string
	Violations []string // empty: none found
	Undecided  string   // why it could not be decided; then it is no success
	Checked    int      // operations that were looked at
	Drawing    []byte   // HTML of the history that has no order, if there is one
}

func (r *Result) violate(format string, args ...any) {
	if len(r.Violations) < 20 { // the first ones tell
		r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
	}
}

// Checker judges a history.
type Checker func([]history.Op) Result

func show(op history.Op) string {
	until := "…"
	if op.Return != history.Forever {
		until = op.Return.Round(time.Microsecond).String()
	}
	return fmt.Sprintf("[%s–%s, process %d at peer %d: %s %s %s → %s %s v%d]", op.Call.Round(time.Microsecond), until, op.Process, op.Peer, op.F, op.Key, op.In, op.Outcome, op.Out, op.Version)
}
