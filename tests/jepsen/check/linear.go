package check

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// patience is how long the history of one key is searched for an order, and all how long those of all keys are. The
// search is exponential in the operations of unknown outcome, in memory too, so one key is searched at a time.
const (
	patience = 20 * time.Second
	all      = 2 * time.Minute
)

// linearizable searches an order of the operations of each key that its model allows: which that is, and of what of its operations, of is asked.
func linearizable(name string, of func([]history.Op) (porcupine.Model, []history.Op), ops []history.Op) Result {
	r := Result{Checker: name}
	byKey := map[string][]history.Op{}
	for _, op := range ops {
		if op.Outcome != history.Failed {
			byKey[op.Key] = append(byKey[op.Key], op)
			r.Checked++
		}
	}
	begun, undecided := time.Now(), 0
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		left := min(patience, all-time.Since(begun))
		if left <= 0 {
			undecided++
			continue
		}
		model, list := of(byKey[key])
		model.DescribeOperation = func(in, _ any) string {
			op := in.(history.Op)
			return fmt.Sprintf("%s %s → %s %s v%d", op.F, op.In, op.Outcome, op.Out, op.Version)
		}
		var history []porcupine.Operation
		for _, op := range list {
			history = append(history, porcupine.Operation{ClientId: op.Process, Input: op, Output: op, Call: int64(op.Call), Return: int64(op.Return)})
		}
		result, info := porcupine.CheckOperationsVerbose(model, history, left)
		switch result {
		case porcupine.Illegal:
			r.violate("no order of the %d operations on %s explains their answers", len(byKey[key]), key)
			var drawing bytes.Buffer
			if r.Drawing == nil && porcupine.Visualize(model, info, &drawing) == nil {
				r.Drawing = drawing.Bytes()
			}
		case porcupine.Unknown:
			undecided++
		}
	}
	if undecided > 0 {
		r.Undecided = fmt.Sprintf("for %d of %d keys no order of the operations was found in time, and none excluded", undecided, len(byKey))
	}
	return r
}

// secretState is a secret: its versions, the oldest first, of which the newest that is not deleted is current.
type secretState struct {
	first    int // version of versions[0]
	versions []versionState
}

type versionState struct {
	value     string
	deleted   bool
	destroyed bool // deleted, for good
}

// maxVersions is how many a secret keeps.
const maxVersions = 10

// current is the number and value of the current version; 0 when there is none.
func (s secretState) current() (int, string) {
	for i, v := range slices.Backward(s.versions) {
		if !v.deleted {
			return s.first + i, v.value
		}
	}
	return 0, ""
}

// next is the number of the next version: one above the current one, which may be that of a deleted one and takes its
// place then; above all when none is current, and always above what was destroyed.
func (s secretState) next() int {
	next := s.first + len(s.versions)
	if current, _ := s.current(); current > 0 {
		next = current + 1
	}
	for i, v := range s.versions {
		if v.destroyed {
			next = max(next, s.first+i+1)
		}
	}
	return next
}

func (s secretState) write(value string) secretState {
	at := s.next() - s.first
	s.versions = slices.Clone(s.versions)
	if at == len(s.versions) {
		s.versions = append(s.versions, versionState{})
	}
	s.versions[at] = versionState{value: value}
	if len(s.versions) > maxVersions {
		s.first, s.versions = s.first+1, s.versions[1:]
	}
	return s
}

// at is the version of a number, if the secret has it.
func (s secretState) at(version int) (versionState, bool) {
	if i := version - s.first; version > 0 && i >= 0 && i < len(s.versions) {
		return s.versions[i], true
	}
	return versionState{}, false
}

// number is the version that an operation names.
func number(op history.Op) int {
	n, _ := strconv.Atoi(op.In)
	return n
}

// set changes a version, if there is one of that number.
func (s secretState) set(version int, change func(*versionState)) secretState {
	if i := version - s.first; version > 0 && i >= 0 && i < len(s.versions) {
		s.versions = slices.Clone(s.versions)
		change(&s.versions[i])
	}
	return s
}

func remove(v *versionState)  { v.deleted = true }
func restore(v *versionState) { v.deleted = v.destroyed }
func destroy(v *versionState) { *v = versionState{deleted: true, destroyed: true} }

var secretModel = porcupine.Model{
	Init: func() any { return secretState{first: 1} },
	Equal: func(a, b any) bool {
		x, y := a.(secretState), b.(secretState)
		return x.first == y.first && slices.Equal(x.versions, y.versions)
	},
	Step: func(state, input, _ any) (bool, any) {
		s, op := state.(secretState), input.(history.Op)
		unknown := op.Outcome == history.Unknown
		current, value := s.current()
		switch op.F {
		case "read": // of a secret that is not there: version 0
			return op.Version == current && (current == 0 || op.Out == value), s
		case "write":
			fits := op.Expect == history.AnyVersion || op.Expect == current
			switch {
			case op.Out == "conflict":
				return !fits, s
			case !fits:
				return unknown, s
			}
			return unknown || op.Version == s.next(), s.write(op.In)
		case "delete":
			there := len(s.versions) > 0 // of one that has no current version nothing is deleted, and that succeeds
			return unknown || there == (op.Out != "not found"), s.set(current, remove)
		case "read-version": // of version In: one that is deleted, destroyed, dropped or not yet there is version 0
			v, there := s.at(number(op))
			if !there || v.deleted {
				return op.Version == 0, s
			}
			return op.Version == number(op) && op.Out == v.value, s
		case "undelete": // of version In; one that is not deleted, or was destroyed, is not found
			v, there := s.at(number(op))
			possible := there && v.deleted && !v.destroyed
			return unknown || possible == (op.Out != "not found"), s.set(number(op), restore)
		case "destroy": // of version In, whether it is there or not, of a secret that is
			return unknown || len(s.versions) > 0 == (op.Out != "not found"), s.set(number(op), destroy)
		}
		return false, s
	},
}

// Secrets checks reads, writes, compare-and-set, deletions and undeletions of single secrets for linearizability.
func Secrets(ops []history.Op) Result {
	return linearizable("linearizable", func(ops []history.Op) (porcupine.Model, []history.Op) {
		if simple(ops) {
			return registerModel, settled(ops)
		}
		return secretModel, ops
	}, ops)
}

var grantModel = porcupine.Model{
	Init: func() any { return false },
	Step: func(state, input, _ any) (bool, any) {
		granted, op := state.(bool), input.(history.Op)
		switch op.F {
		case "grant":
			return true, true
		case "revoke":
			if op.Out == "not found" {
				return !granted, false
			}
			return granted || op.Outcome == history.Unknown, false
		case "read":
			return (op.Out == "allowed") == granted, granted
		case "setup": // of the secret that is read
			return true, granted
		}
		return false, granted
	},
}

// Grants checks that whoever asks is allowed or denied as the policy in force then says: at every peer, from the
// acknowledgement of a grant or a revocation on.
func Grants(ops []history.Op) Result {
	return linearizable("grants and revocations", func(ops []history.Op) (porcupine.Model, []history.Op) { return grantModel, ops }, ops)
}
