package check

import (
	"strconv"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Bank checks accounts, each in a secret that begins with version 1, between which money is moved: each read of all of them at once adds
// up to the same, and is of its time. A transfer adds one to two versions: the sum of all is what those have made that were
// acknowledged before the read was called, at least, and all that were called before it returned, at most; and no read has less than
// one that had returned when it was called.
func Bank(accounts, total int) Checker {
	return func(ops []history.Op) Result {
		r := Result{Checker: "bank"}
		finals := 0
		var reads []event
		for _, op := range ops {
			if op.F != "read" || op.Outcome != history.OK {
				continue
			}
			r.Checked++
			if op.Final {
				finals++
			}
			r.balances(op, total)
			low, high := accounts, accounts
			for _, t := range ops {
				switch {
				case t.F != "transfer" || t.Outcome == history.Failed:
				case t.Outcome == history.OK && t.Return < op.Call:
					low, high = low+2, high+2
				case t.Call < op.Return:
					high += 2
				}
			}
			if op.Version < low || op.Version > high || (op.Version-accounts)%2 != 0 {
				r.violate("%s: the versions of all accounts add up to %d; by what was transferred it is %d to %d, in steps of 2", show(op), op.Version, low, high)
			}
			reads = append(reads, event{op, op.Version, false})
		}
		r.inTime(reads)
		if finals == 0 {
			r.Undecided = "no final read of the accounts succeeded"
		}
		return r
	}
}

func (r *Result) balances(op history.Op, total int) {
	sum := 0
	for _, b := range elements(op.Out) {
		n, err := strconv.Atoi(b)
		if err != nil || n < 0 {
			r.violate("%s: a balance of %q", show(op), b)
		}
		sum += n
	}
	if sum != total {
		r.violate("%s: %d in all, it must be %d", show(op), sum, total)
	}
}
