package check

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Lists checks lists, one in each secret, that grow by compare-and-set: every read is a prefix of the same list, which has
// every acknowledged element once and no failed one, and reads and appends follow one another in real time. For
// such lists that is linearizability, and it takes no search: the version of a secret is the length of its list.
func Lists(ops []history.Op) Result {
	r := Result{Checker: "append-only lists"}
	byKey := map[string][]history.Op{}
	for _, op := range ops {
		byKey[op.Key] = append(byKey[op.Key], op)
	}
	for _, key := range byKey {
		r.list(key)
	}
	return r
}

func elements(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// event is an operation with its place: a read of n elements is at n, an append at the length that it made.
type event struct {
	history.Op
	at     int
	append bool
}

func (r *Result) list(ops []history.Op) {
	var longest []string
	for _, op := range ops {
		if l := elements(op.Out); op.F == "read" && op.Outcome == history.OK && len(l) > len(longest) {
			longest = l
		}
	}
	place := map[string]int{}
	for i, e := range longest {
		if _, twice := place[e]; twice {
			r.violate("element %s is in the list twice", e)
		}
		place[e] = i + 1
	}
	appended := map[string]history.Op{}
	for _, op := range ops {
		if op.F == "append" {
			appended[op.In] = op
		}
	}
	var events []event
	taken := map[int]history.Op{}
	for _, op := range ops {
		r.Checked++
		if op.F == "append" && op.Outcome == history.OK {
			if other, twice := taken[op.Version]; twice {
				r.violate("%s and %s were acknowledged for one place", show(op), show(other))
			}
			taken[op.Version] = op
		}
		switch {
		case op.F == "read" && op.Outcome == history.OK:
			l := elements(op.Out)
			if !slices.Equal(l, longest[:min(len(l), len(longest))]) {
				r.violate("%s is no prefix of %v", show(op), longest)
			}
			if len(l) != op.Version {
				r.violate("%s: a list of %d elements after %d appends", show(op), len(l), op.Version)
			}
			for _, e := range l {
				if a, there := appended[e]; !there || a.Call > op.Return {
					r.violate("%s has %s, which nobody had appended", show(op), e)
				}
			}
			events = append(events, event{op, len(l), false})
		case op.F == "append":
			at, there := place[op.In]
			switch {
			case op.Outcome == history.OK && !there && op.Version <= len(longest):
				r.violate("%s was acknowledged, and is not in the list", show(op))
			case op.Outcome == history.OK && !there: // nobody read as much of the list; who reads less later breaks the order
				events = append(events, event{op, op.Version, true})
			case op.Outcome == history.Failed && there:
				r.violate("%s failed, and is in the list", show(op))
			case op.Outcome == history.OK && op.Version != at:
				r.violate("%s is at place %d", show(op), at)
			}
			if there {
				events = append(events, event{op, at, true})
			}
		}
	}
	r.inTime(events)
}

// inTime finds an operation that is placed before one that had returned when it was called.
func (r *Result) inTime(events []event) {
	called, returned := slices.Clone(events), slices.Clone(events)
	slices.SortFunc(called, func(a, b event) int { return cmp.Compare(a.Call, b.Call) })
	slices.SortFunc(returned, func(a, b event) int { return cmp.Compare(a.Return, b.Return) })
	var farthest event
	next := 0
	for _, e := range called {
		for ; next < len(returned) && returned[next].Return < e.Call; next++ {
			if returned[next].at > farthest.at {
				farthest = returned[next]
			}
		}
		if e.at < farthest.at || e.append && e.at == farthest.at && farthest.at > 0 {
			r.violate("%s is at place %d, and was called after %s, at place %d", show(e.Op), e.at, show(farthest.Op), farthest.at)
		}
	}
}
