package check

import (
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// register is a secret that is only read and written: older versions do not matter, so that what led to a state does not
// tell it from another, and the search for an order is short.
type register struct {
	version int
	value   string
}

var registerModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		s, op := state.(register), input.(history.Op)
		if op.F == "read" { // of a secret that is not there: version 0
			return op.Version == s.version && (s.version == 0 || op.Out == s.value), s
		}
		fits := op.Expect == history.AnyVersion || op.Expect == s.version
		switch {
		case op.Out == "conflict":
			return !fits, s
		case !fits:
			return op.Outcome == history.Unknown && op.Version == 0, s
		}
		next := register{s.version + 1, op.In}
		return op.Version == next.version || op.Version == 0, next // 0: not known, see settled
	},
}

// simple tells whether a secret was only read and written.
func simple(ops []history.Op) bool {
	return !slices.ContainsFunc(ops, func(op history.Op) bool { return op.F != "read" && op.F != "write" })
}

// settled is the history of a register with less that is unknown. A write of unknown outcome whose value was read made the version that was
// read. One whose value nobody read may have made a version that nobody knows who made; when there is none it came after all others, and
// shows in nothing but a conflict with the last version; where it does not, the history is the same without it. One that expects a
// version made the next, unless that is another's.
func settled(ops []history.Op) (rest []history.Op) {
	written, read := map[string]int{}, map[string]int{}
	last := 0
	for _, op := range ops {
		if op.F == "write" {
			written[op.In]++
		} else if op.Version > 0 {
			read[op.Out] = op.Version
		}
		last = max(last, op.Version)
	}
	made := map[int]bool{}
	ops = slices.Clone(ops)
	for i, op := range ops {
		if op.F == "write" && op.Outcome == history.Unknown && written[op.In] == 1 {
			ops[i].Version = read[op.In]
		}
		if op.F == "write" && ops[i].Version > 0 {
			made[ops[i].Version] = true
		}
	}
	needed := slices.ContainsFunc(ops, func(op history.Op) bool { return op.Out == "conflict" && op.Expect == last })
	for v := 1; v <= last; v++ {
		needed = needed || !made[v]
	}
	for _, op := range ops {
		unseen := op.F == "write" && op.Outcome == history.Unknown && op.Version == 0 && written[op.In] == 1
		if unseen && (!needed || op.Expect != history.AnyVersion && made[op.Expect+1]) {
			continue
		}
		rest = append(rest, op)
	}
	return rest
}
