package check

import (
	"fmt"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// kinds are what a watch calls what was done.
var kinds = map[string]string{"write": "put", "delete": "deleted"}

// change is what a watch tells of. One entry of the log, which has the index, may make many.
type change struct {
	index     uint64
	kind, key string
	version   int
}

// anywhere is what is known of it when its outcome is not.
func (e change) anywhere() change { return change{kind: e.kind, key: e.key} }

// Watches checks what watches were told: each acknowledged change between the index at which a watch began and the one to which it has
// come, once, in the order of the log, and nothing that was not done or only later. All watches, at whatever peers, are told the same.
func Watches(ops []history.Op) Result {
	r := Result{Checker: "watches"}
	done, maybe := map[change]history.Op{}, map[change]bool{}
	for _, op := range ops {
		e := change{op.Index, kinds[op.F], op.Key, op.Version}
		switch {
		case e.kind == "":
		case op.Outcome == history.Unknown:
			maybe[e.anywhere()] = true
		case op.Outcome == history.OK && op.Version > 0: // else there was nothing to delete
			done[e] = op
		}
	}
	type stream struct {
		begin, at uint64
		told      map[change]bool
	}
	streams, finals := map[string]*stream{}, 0
	for _, op := range ops {
		if op.Outcome != history.OK || op.F != "begin" && op.F != "watch" {
			continue
		}
		r.Checked++
		to := uint64(op.Version)
		if op.F == "begin" {
			streams[op.Key] = &stream{begin: to, at: to, told: map[change]bool{}}
			continue
		}
		s := streams[op.Key]
		if op.Final {
			finals++
		}
		last := s.at + 1
		for _, text := range elements(op.Out) {
			var e change
			if n, _ := fmt.Sscanf(text, "%d %s %s [%d]", &e.index, &e.kind, &e.key, &e.version); n != 4 {
				r.violate("%s: %q is no event", show(op), text)
				continue
			}
			if s.told[e] {
				r.violate("%s was told %q twice", show(op), text)
			}
			if e.index < last || e.index > to {
				r.violate("%s was told %q, out of order", show(op), text)
			}
			last, s.told[e] = e.index, true
			switch made, acknowledged := done[e]; {
			case acknowledged && made.Call > op.Return:
				r.violate("%s was told %q before it was asked for: %s", show(op), text, show(made))
			case !acknowledged && !maybe[e.anywhere()]:
				r.violate("%s was told %q, which was not done", show(op), text)
			}
		}
		s.at = to
	}
	told := map[change]bool{} // to any
	for _, s := range streams {
		for e := range s.told {
			told[e] = true
		}
	}
	for name, s := range streams {
		missed := func(e change, why string) {
			if e.index > s.begin && e.index <= s.at && !s.told[e] {
				r.violate("watch %s came from index %d to %d and was not told of %v, %s", name, s.begin, s.at, e, why)
			}
		}
		for e, op := range done {
			missed(e, show(op))
		}
		for e := range told {
			missed(e, "as another watch was")
		}
	}
	if finals == 0 {
		r.Undecided = "no watch came to the end"
	}
	return r
}
