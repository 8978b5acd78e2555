package check

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Restored checks a set of secrets that the whole cluster takes back, now and then, to what it was at an earlier index. Acknowledgements and
// restores have places in the log, so that what must be there at any place is known: each read, of one element or of all, at whatever peer, shows
// it as it was at one place, no earlier than whatever was acknowledged or shown before the read was called, and before whatever was called after
// it returned. A restore that is half done, or done at one peer only, has no such place. Elements of unknown outcome may be there or not.
func Restored(ops []history.Op) Result {
	r := Result{Checker: "restores"}
	l := timeline{added: map[string]history.Op{}}
	for _, op := range ops {
		switch {
		case op.F == "restore" && op.Outcome == history.Unknown:
			r.Undecided = "it is not known where in the log a restore was done: " + op.Error
			return r
		case op.F == "restore" && op.Outcome == history.OK:
			to, err := strconv.ParseUint(op.In, 10, 64)
			if err != nil || to >= op.Index {
				r.violate("%s at index %d does not go back", show(op), op.Index)
				return r
			}
			l.restores = append(l.restores, takenBack{at: op.Index, to: to})
		case op.F == "add":
			l.added[op.Key] = op
		}
	}
	l.arrange(ops)
	finals := 0
	for _, read := range slices.SortedStableFunc(slices.Values(ops), byReturn) {
		if read.Outcome != history.OK || read.F != "list" && read.F != "read" {
			continue
		}
		r.Checked++
		if read.Final && read.F == "list" {
			finals++
		}
		if wrong := l.judge(read); wrong != "" {
			r.violate("a %s at peer %d, process %d, called at %s: %s", read.F, read.Peer, read.Process, read.Call.Round(time.Microsecond), wrong)
		}
	}
	switch {
	case finals == 0:
		r.Undecided = "no final read of the set succeeded"
	case !l.bitten():
		r.Undecided = "no restore took an acknowledged element back"
	}
	return r
}

// takenBack is a restore, which at index at makes everything what it was at index to.
type takenBack struct{ at, to uint64 }

// timeline is what is known of the log.
type timeline struct {
	added    map[string]history.Op
	known    []history.Op // elements with a place, by it
	restores []takenBack  // by their places
	places   []uint64     // at which something changes
	returned []history.Op // all with a place, by their return; each with the highest index until then
	called   []history.Op // the same by their call; each with the lowest index from then on
	shown    []history.Op // reads, by their return; each with the highest place until then
}

func byReturn(a, b history.Op) int { return cmp.Compare(a.Return, b.Return) }

// until is the index of the last of some operations that had returned before a moment.
func until(list []history.Op, t time.Duration) uint64 {
	i, _ := slices.BinarySearchFunc(list, t, func(op history.Op, t time.Duration) int { return cmp.Compare(op.Return, t) })
	if i == 0 {
		return 0
	}
	return list[i-1].Index
}

func (l *timeline) arrange(ops []history.Op) {
	for _, op := range ops {
		if op.Outcome != history.OK || op.Index == 0 || op.F != "add" && op.F != "restore" {
			continue
		}
		l.places, l.returned = append(l.places, op.Index), append(l.returned, op)
		if op.F == "add" {
			l.known = append(l.known, op)
		}
	}
	l.called = slices.Clone(l.returned)
	slices.Sort(l.places)
	l.places = slices.Compact(l.places)
	slices.SortFunc(l.known, func(a, b history.Op) int { return cmp.Compare(a.Index, b.Index) })
	slices.SortFunc(l.restores, func(a, b takenBack) int { return cmp.Compare(a.at, b.at) })
	slices.SortFunc(l.returned, byReturn)
	slices.SortFunc(l.called, func(a, b history.Op) int { return cmp.Compare(a.Call, b.Call) })
	for i := 1; i < len(l.returned); i++ {
		l.returned[i].Index = max(l.returned[i].Index, l.returned[i-1].Index)
	}
	for i := len(l.called) - 2; i >= 0; i-- {
		l.called[i].Index = min(l.called[i].Index, l.called[i+1].Index)
	}
}

// there says whether the element that was added at index is in the state after place: a restore leaves what there was at the
// place that it goes back to, where an earlier restore may have been before.
func (l *timeline) there(index, place uint64) bool {
	if index > place {
		return false
	}
	for _, r := range slices.Backward(l.restores) {
		if r.at <= place && index <= r.at {
			return l.there(index, r.to)
		}
	}
	return true
}

// window are the places that a read may have been at: after all that had returned when it was called, before all that was called when it had returned.
func (l *timeline) window(read history.Op) []uint64 {
	from := max(until(l.returned, read.Call), until(l.shown, read.Call))
	i, _ := slices.BinarySearchFunc(l.called, read.Return, func(op history.Op, t time.Duration) int { return cmp.Compare(op.Call, t+1) })
	begin, _ := slices.BinarySearch(l.places, from+1)
	end := len(l.places)
	if i < len(l.called) {
		end, _ = slices.BinarySearch(l.places, l.called[i].Index)
	}
	return append([]uint64{from}, l.places[begin:max(begin, end)]...)
}

// judge says what is wrong with a read at the place that explains it best; nothing when one explains it. Reads are judged by their return.
func (l *timeline) judge(read history.Op) string {
	seen, among := map[string]bool{}, l.known
	if read.F == "list" {
		for _, e := range elements(read.Out) {
			seen[e] = true
		}
	} else {
		among = nil
		if op, asked := l.added[read.Key]; asked && op.Outcome == history.OK {
			among = []history.Op{op}
		}
		if read.Version > 0 {
			seen[read.Key] = true
		}
	}
	for e := range seen {
		if op, asked := l.added[e]; !asked || op.Outcome == history.Failed || op.Call > read.Return {
			return e + " was never added"
		}
		if read.F == "read" && read.Out != l.added[e].In {
			return fmt.Sprintf("it shows %q, and %s", read.Out, show(l.added[e]))
		}
	}
	var best []history.Op
	at := uint64(0)
	for i, place := range l.window(read) {
		var wrong []history.Op
		for _, op := range among {
			if l.there(op.Index, place) != seen[op.Key] {
				wrong = append(wrong, op)
			}
			if i > 0 && len(wrong) >= len(best) {
				break
			}
		}
		if i == 0 || len(wrong) < len(best) {
			best, at = wrong, place
		}
		if len(best) == 0 {
			read.Index = max(at, until(l.shown, history.Forever))
			l.shown = append(l.shown, read)
			return ""
		}
	}
	return l.describe(best, at)
}

// describe says of the first of some elements what is wrong with it at a place.
func (l *timeline) describe(wrong []history.Op, place uint64) string {
	first, what := wrong[0], "is missing"
	switch {
	case first.Index > place:
		what = "came later, and is there"
	case !l.there(first.Index, place):
		what = "was taken back by a restore, and is there"
	}
	return fmt.Sprintf("%s, at index %d, %s, the first of %d such elements, as of index %d", show(first), first.Index, what, len(wrong), place)
}

// bitten says whether a restore took something back.
func (l *timeline) bitten() bool {
	return slices.ContainsFunc(l.restores, func(r takenBack) bool {
		return slices.ContainsFunc(l.known, func(op history.Op) bool { return l.there(op.Index, r.at-1) && !l.there(op.Index, r.at) })
	})
}
