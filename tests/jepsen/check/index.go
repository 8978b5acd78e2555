package check

import (
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Indices checks the places in the log that acknowledgements name: a change that was asked for after another was acknowledged has a
// later one. Changes that were asked for at the same time may share one.
func Indices(ops []history.Op) Result {
	r := Result{Checker: "order of changes"}
	var byCall []history.Op
	for _, op := range ops {
		if op.Outcome == history.OK && op.Index > 0 {
			byCall = append(byCall, op)
		}
	}
	r.Checked = len(byCall)
	byReturn := slices.Clone(byCall)
	slices.SortFunc(byCall, func(a, b history.Op) int { return int(a.Call - b.Call) })
	slices.SortFunc(byReturn, func(a, b history.Op) int { return int(a.Return - b.Return) })
	var latest history.Op // of those acknowledged before the call, the one with the highest index
	before := func(t time.Duration) bool { return len(byReturn) > 0 && byReturn[0].Return < t }
	for _, op := range byCall {
		for ; before(op.Call); byReturn = byReturn[1:] {
			if byReturn[0].Index > latest.Index {
				latest = byReturn[0]
			}
		}
		if op.Index <= latest.Index {
			r.violate("%s is at index %d, and was called after %s was acknowledged at %d", show(op), op.Index, show(latest), latest.Index)
		}
	}
	return r
}
