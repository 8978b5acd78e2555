package check

import (
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Sets checks a set that only grows: each final read, at whatever peer, has every acknowledged element and none that
// failed or was never added; any other read has every element that was acknowledged before it was called.
func Sets(ops []history.Op) Result {
	r := Result{Checker: "sets", Checked: len(ops)}
	added := map[string]history.Op{}
	for _, op := range ops {
		if op.F == "add" {
			added[op.Key] = op
		}
	}
	finals := 0
	for _, read := range ops {
		if read.F != "list" || read.Outcome != history.OK {
			continue
		}
		if read.Final {
			finals++
		}
		seen := map[string]bool{}
		for _, e := range elements(read.Out) {
			seen[e] = true
			if op, there := added[e]; !there || op.Outcome == history.Failed || op.Call > read.Return {
				r.violate("%s was never added, and is in a read at peer %d", e, read.Peer)
			}
		}
		for e, op := range added {
			if op.Outcome == history.OK && op.Return < read.Call && !seen[e] {
				r.violate("%s is not in a read at peer %d called at %s", show(op), read.Peer, read.Call)
			}
		}
	}
	if finals == 0 {
		r.Undecided = "no final read of the set succeeded"
	}
	return r
}

// Sealed checks that between the acknowledgement of a seal and the call of the next unseal no operation
// that was called in between is answered with data, at whatever peer; but for reads of level "index", which a peer that is
// cut off and has not heard of the seal may answer.
func Sealed(ops []history.Op) Result {
	r := Result{Checker: "sealed"}
	type span struct{ from, to history.Op }
	var spans []span
	for _, op := range ops {
		switch {
		case op.F == "seal" && op.Outcome == history.OK:
			spans = append(spans, span{from: op, to: history.Op{Call: history.Forever}})
		case op.F == "unseal" && len(spans) > 0 && spans[len(spans)-1].to.Call == history.Forever:
			spans[len(spans)-1].to = op
		}
	}
	for _, op := range ops {
		if op.F == "seal" || op.F == "unseal" || op.Outcome != history.OK || op.Local {
			continue
		}
		r.Checked++
		for _, s := range spans {
			if op.Call > s.from.Return && op.Return < s.to.Call {
				r.violate("%s was answered while the cluster was sealed, from %s to %s", show(op), s.from.Return, s.to.Call)
			}
		}
	}
	return r
}
