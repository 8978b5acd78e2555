package check

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// least is how many operations of a workload each peer that it asks must have answered. Few: when all peers are killed again and
// again, on two processors with a load of thirty, a peer
// answered five operations of the bank in thirty seconds.
const least = 3

// kind is what an answered operation shows: what was asked, and the answer where it is one of a few. The same write is
// another thing with an expectation, and when that is disappointed.
func kind(op history.Op) string {
	f := op.F
	if f == "write" && op.Expect != history.AnyVersion {
		f = "compare-and-set"
	}
	if slices.Contains([]string{"allowed", "denied", "conflict", "not found"}, op.Out) {
		return f + " " + op.Out
	}
	return f
}

// Enough looks whether the operations of a workload say anything: each kind that it rests on was answered somewhere, each
// of the peers that it asks by name answered a few, and the last look, if it takes one (final is what that asks), was answered at each of
// them. A peer that hangs for one workload and serves the others has to be seen.
func Enough(ops []history.Op, kinds []string, final string, peers int) Result {
	r := Result{Checker: "enough answers"}
	seen, answered, finals := map[string]bool{}, map[int]int{}, map[int]bool{}
	for _, op := range ops {
		if op.Codes == string(secret.CodeConflict) { // an answer, too
			answered[op.Peer]++
		}
		if op.Outcome != history.OK {
			continue
		}
		r.Checked++
		seen[kind(op)] = true
		answered[op.Peer]++
		if op.Final && op.F == final {
			finals[op.Peer] = true
		}
	}
	var missing []string
	for _, k := range kinds {
		if !seen[k] {
			missing = append(missing, "none was answered that is \""+k+"\"")
		}
	}
	for i := range peers {
		if answered[i] < least {
			missing = append(missing, fmt.Sprintf("peer %d answered %d operations", i, answered[i]))
		}
		if final != "" && !finals[i] {
			missing = append(missing, fmt.Sprintf("no last look at peer %d was answered", i))
		}
	}
	r.Undecided = strings.Join(missing, "; ")
	return r
}
