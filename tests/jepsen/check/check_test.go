package check_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// op is an operation from one moment to another, in milliseconds; to 0: its outcome is unknown.
func op(from, to int, f, in, out string, version int, more ...func(*history.Op)) history.Op {
	o := history.Op{F: f, Key: "k", In: in, Out: out, Version: version, Expect: history.AnyVersion, Outcome: history.OK,
		Call: time.Duration(from) * time.Millisecond, Return: time.Duration(to) * time.Millisecond, Process: from}
	if to == 0 {
		o.Outcome, o.Return = history.Unknown, history.Forever
	}
	for _, m := range more {
		m(&o)
	}
	return o
}

func failed(o *history.Op)             { o.Outcome = history.Failed }
func final(o *history.Op)              { o.Final = true }
func element(o *history.Op)            { o.Key = o.In }
func at(i uint64) func(*history.Op)    { return func(o *history.Op) { o.Index = i } }
func codes(c string) func(*history.Op) { return func(o *history.Op) { o.Codes = c } }
func mine(o *history.Op)               { o.Process = -5 }
func key(k string) func(*history.Op)   { return func(o *history.Op) { o.Key = k } }
func expect(v int) func(*history.Op)   { return func(o *history.Op) { o.Expect = v } }

// writes makes so many versions of a secret.
func writes(n int) (ops []history.Op) {
	for i := range n {
		ops = append(ops, op(2*i, 2*i+1, "write", strconv.Itoa(i+1), "", i+1))
	}
	return ops
}

func peer(i int) func(*history.Op) { return func(o *history.Op) { o.Peer = i } }

// restored is a history in which a restore takes y back and nothing else; u is of unknown outcome.
func restored(reads ...history.Op) []history.Op {
	return append(reads, op(0, 1, "add", "x", "", 1, element, at(5)), op(2, 3, "add", "y", "", 1, element, at(8)), op(4, 0, "add", "u", "", 0, element),
		op(10, 20, "restore", "6", "", 0, at(20)), op(30, 31, "add", "z", "", 1, element, at(30)))
}

// What says nothing is no success: a restore that nobody knows the place of, one that took nothing back, and one that nobody looked at afterwards.
func TestRestoredUndecided(t *testing.T) {
	t.Parallel()
	last := op(42, 43, "list", "", "x", 0, final)
	for says, ops := range map[string][]history.Op{
		"not known where": append(restored(last), op(34, 0, "restore", "21", "", 0)),
		"took an":         {last, op(0, 1, "add", "x", "", 1, element, at(5)), op(10, 20, "restore", "6", "", 0, at(20))},
		"no final":        restored(op(32, 33, "list", "", "x,z", 0)),
	} {
		if r := check.Restored(ops); !strings.Contains(r.Undecided, says) {
			t.Errorf("%q, not %q (%s)", r.Undecided, says, r.Violations)
		}
	}
}

// Each checker finds what it is there for, and nothing in histories that are right.
func TestCheckers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		checker check.Checker
		ops     []history.Op
		finds   string // part of the violation; empty: none
	}{
		"reads of concurrent writes": {check.Secrets, []history.Op{
			op(0, 10, "write", "a", "", 1), op(5, 20, "write", "b", "", 2), op(6, 8, "read", "", "a", 1), op(21, 22, "read", "", "b", 2)}, ""},
		"a stale read": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "read", "", "a", 1)}, "no order"},
		"a read that goes back": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 0, "write", "b", "", 0), op(3, 4, "read", "", "b", 2), op(5, 6, "read", "", "a", 1)}, "no order"},
		"an unknown write that came late": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 0, "write", "b", "", 0), op(3, 4, "read", "", "a", 1), op(5, 6, "read", "", "b", 2)}, ""},
		"a write that was lost": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 1)}, "no order"},
		"two compare-and-sets of one version": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1, expect(0)), op(0, 2, "write", "b", "", 1, expect(0))}, "no order"},
		"a conflict for nothing": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "conflict", 0, expect(1))}, "no order"},
		"a deleted one read": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "delete", "", "", 0), op(4, 5, "read", "", "a", 1)}, "no order"},
		"a deletion taken back": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "delete", "", "", 0), op(4, 5, "read", "", "", 0), op(6, 7, "undelete", "1", "", 0), op(8, 9, "read", "", "a", 1)}, ""},
		"the number of a deleted version used again": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "delete", "", "", 0), op(6, 7, "write", "c", "", 2), op(8, 9, "read", "", "c", 2)}, ""},
		"a destroyed one read": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "destroy", "1", "", 0), op(4, 5, "read", "", "a", 1)}, "no order"},
		"a destroyed one that came back": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "destroy", "1", "", 0), op(4, 5, "undelete", "1", "", 0)}, "no order"},
		"the number of a destroyed one used again": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "destroy", "2", "", 0), op(6, 7, "write", "c", "", 2)}, "no order"},
		"a version above a destroyed one": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "destroy", "2", "", 0), op(6, 7, "read", "", "a", 1), op(8, 9, "write", "c", "", 3), op(10, 11, "read", "", "c", 3)}, ""},
		"a destroyed one read by its version": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "destroy", "1", "", 0), op(6, 7, "read-version", "1", "a", 1)}, "no order"},
		"versions read by their numbers": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "read-version", "1", "a", 1), op(6, 7, "delete", "", "", 2), op(8, 9, "read-version", "2", "", 0),
			op(10, 11, "read-version", "3", "", 0), op(12, 13, "write", "c", "", 2), op(14, 15, "read-version", "2", "c", 2), op(16, 17, "destroy", "2", "", 0),
			op(18, 19, "read-version", "2", "", 0), op(20, 21, "read-version", "1", "a", 1)}, ""},
		"another version than the one that was asked for": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "read-version", "1", "b", 2)}, "no order"},
		"a version that is there and not found": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "read-version", "1", "", 0)}, "no order"},
		"a version that was dropped": {check.Secrets, append(writes(11), op(30, 31, "read-version", "1", "", 0), op(32, 33, "read-version", "2", "2", 2)), ""},
		"a dropped version read":     {check.Secrets, append(writes(11), op(30, 31, "read-version", "1", "1", 1)), "no order"},
		"a deleted one not found to be undeleted": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "delete", "", "", 1), op(4, 5, "undelete", "1", "not found", 0)}, "no order"},
		"nothing to undelete": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(4, 5, "undelete", "1", "not found", 0), op(6, 7, "destroy", "1", "", 0), op(8, 9, "undelete", "1", "not found", 0)}, ""},
		"one that is there and not found to be destroyed": {check.Secrets, []history.Op{
			op(0, 1, "write", "a", "", 1), op(4, 5, "destroy", "1", "not found", 0)}, "no order"},
		"allowed after a revocation": {check.Grants, []history.Op{
			op(0, 1, "grant", "", "", 0), op(2, 3, "revoke", "", "", 0), op(4, 5, "read", "", "allowed", 0)}, "no order"},
		"denied after a grant": {check.Grants, []history.Op{
			op(0, 1, "grant", "", "", 0), op(2, 3, "read", "", "denied", 0)}, "no order"},
		"allowed while it is revoked": {check.Grants, []history.Op{
			op(0, 1, "grant", "", "", 0), op(2, 5, "revoke", "", "", 0), op(3, 4, "read", "", "allowed", 0), op(6, 7, "read", "", "denied", 0)}, ""},
		"a list": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(2, 0, "append", "b", "", 0), op(3, 4, "append", "c", "", 3), op(5, 6, "read", "", "a,b,c", 3), op(1, 7, "read", "", "a", 1)}, ""},
		"an element that was lost": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(2, 3, "append", "b", "", 2), op(4, 5, "read", "", "b", 1)}, "is not in the list"},
		"an element that nobody read later": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(2, 3, "read", "", "a", 1), op(4, 5, "append", "b", "", 2)}, ""},
		"an element at the end that was lost": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(2, 3, "append", "b", "", 2), op(4, 5, "read", "", "a", 1)}, "was called after"},
		"two elements at one place": {check.Lists, []history.Op{
			op(0, 3, "append", "a", "", 1), op(0, 3, "append", "b", "", 1)}, "one place"},
		"an element twice":       {check.Lists, []history.Op{op(0, 1, "append", "a", "", 1), op(4, 5, "read", "", "a,a", 2)}, "twice"},
		"an element that failed": {check.Lists, []history.Op{op(0, 1, "append", "a", "", 0, failed), op(4, 5, "read", "", "a", 1)}, "failed, and"},
		"two lists": {check.Lists, []history.Op{
			op(0, 0, "append", "a", "", 0), op(0, 0, "append", "b", "", 0), op(4, 5, "read", "", "a", 1), op(4, 5, "read", "", "b,a", 2)}, "no prefix"},
		"a list that is read shorter later": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(0, 2, "append", "b", "", 2), op(3, 4, "read", "", "a,b", 2), op(5, 6, "read", "", "a", 1)}, "was called after"},
		"a list that was short while it grew": {check.Lists, []history.Op{
			op(0, 1, "append", "a", "", 1), op(2, 9, "append", "b", "", 2), op(3, 4, "read", "", "a,b", 2), op(3, 5, "read", "", "a", 1)}, ""},
		"a set": {check.Sets, []history.Op{
			op(0, 1, "add", "x", "", 1, element), op(2, 0, "add", "y", "", 0, element), op(3, 4, "list", "", "x", 0, final)}, ""},
		"a set that lost something": {check.Sets, []history.Op{
			op(0, 1, "add", "x", "", 1, element), op(3, 4, "list", "", "", 0, final)}, "is not in a read"},
		"a set that has what failed": {check.Sets, []history.Op{
			op(0, 1, "add", "x", "", 0, element, failed), op(3, 4, "list", "", "x", 0, final)}, "never added"},
		"a restore": {check.Restored, restored(
			op(32, 33, "list", "", "x,z,u", 0, final), op(32, 33, "read", "y", "", 0, element), op(32, 33, "read", "z", "z", 1, element)), ""},
		"reads around a restore": {check.Restored, restored(
			op(6, 7, "list", "", "x,y", 0), op(12, 13, "list", "", "x,y", 0), op(12, 18, "list", "", "x", 0), op(19, 25, "list", "", "x,u", 0), op(32, 33, "list", "", "x,z", 0, final)), ""},
		"an element that a restore took back, and came back": {check.Restored, restored(
			op(22, 23, "list", "", "x", 0), op(32, 33, "list", "", "x,y,z", 0, final)), "taken back by a restore"},
		"an element that a restore took back, read": {check.Restored, restored(
			op(22, 23, "read", "y", "y", 1, element), op(32, 33, "list", "", "x,z", 0, final)), "taken back by a restore"},
		"an element that a restore did not take back at one peer": {check.Restored, restored(
			op(22, 23, "list", "", "x", 0), op(22, 23, "list", "", "x,y", 0, peer(2)), op(32, 33, "list", "", "x,z", 0, final)), "peer 2"},
		"an element that a restore lost": {check.Restored, restored(
			op(32, 33, "list", "", "z", 0, final)), "is missing"},
		"an element that a restore lost at one peer": {check.Restored, restored(
			op(32, 33, "list", "", "x,z", 0, final), op(32, 33, "list", "", "z", 0, final, peer(2))), "peer 2"},
		"an element added after a restore that is missing": {check.Restored, restored(
			op(32, 33, "list", "", "x", 0, final)), "is missing"},
		"a restore seen before it was asked for": {check.Restored, restored(
			op(6, 7, "list", "", "x", 0), op(32, 33, "list", "", "x,z", 0, final)), "is missing"},
		"half a restore": {check.Restored, append(restored(op(32, 33, "list", "", "x,z", 0, final)),
			op(2, 3, "add", "w", "", 1, element, at(7)), op(12, 13, "list", "", "x,w", 0)), "as of index"},
		"a restore to what an earlier one took back": {check.Restored, append(restored(op(42, 43, "list", "", "x,y", 0, final)),
			op(34, 35, "restore", "8", "", 0, at(40))), ""},
		"a restore to what an earlier one left": {check.Restored, append(restored(op(42, 43, "list", "", "x", 0, final)),
			op(34, 35, "restore", "21", "", 0, at(40))), ""},
		"a restore that is seen, and then not any more": {check.Restored, restored(
			op(12, 13, "list", "", "x", 0), op(15, 16, "list", "", "x,y", 0, peer(2)), op(32, 33, "list", "", "x,z", 0, final)), "peer 2"},
		"another value than was added": {check.Restored, restored(
			op(22, 23, "read", "x", "y", 1, element), op(32, 33, "list", "", "x,z", 0, final)), "it shows"},
		"a bank": {check.Bank(2, 200), []history.Op{
			op(0, 1, "read", "", "100,100", 2), op(2, 5, "transfer", "", "", 0), op(3, 4, "read", "", "90,110", 4), op(6, 0, "transfer", "", "", 0),
			op(7, 8, "transfer", "", "", 0, failed), op(9, 10, "read", "", "90,110", 4), op(11, 12, "read", "", "80,120", 6, final)}, ""},
		"money from nowhere":                 {check.Bank(2, 200), []history.Op{op(0, 1, "read", "", "100,110", 2, final)}, "210 in all"},
		"a bank before a transfer":           {check.Bank(2, 200), []history.Op{op(0, 1, "transfer", "", "", 0), op(2, 3, "read", "", "100,100", 2, final)}, "it is 4 to 4"},
		"a bank after a transfer to come":    {check.Bank(2, 200), []history.Op{op(0, 1, "read", "", "90,110", 4, final), op(2, 3, "transfer", "", "", 0)}, "it is 2 to 2"},
		"a transfer that failed":             {check.Bank(2, 200), []history.Op{op(0, 1, "transfer", "", "", 0, failed), op(2, 3, "read", "", "90,110", 4, final)}, "it is 2 to 2"},
		"half a transfer":                    {check.Bank(2, 200), []history.Op{op(0, 0, "transfer", "", "", 0), op(2, 3, "read", "", "100,100", 3, final)}, "in steps of 2"},
		"a bank that goes back in time":      {check.Bank(2, 200), []history.Op{op(0, 0, "transfer", "", "", 0), op(2, 3, "read", "", "90,110", 4), op(4, 5, "read", "", "100,100", 2, final)}, "was called after"},
		"an element that nobody appended":    {check.Lists, []history.Op{op(0, 1, "append", "a", "", 1), op(2, 3, "read", "", "a,x", 2)}, "nobody had appended"},
		"an element before it was appended":  {check.Lists, []history.Op{op(0, 1, "read", "", "a", 1), op(2, 3, "append", "a", "", 1)}, "nobody had appended"},
		"refusals of a cluster under attack": {check.Refusals, []history.Op{op(0, 1, "read", "", "", 0, failed, codes("unavailable")), op(2, 0, "write", "", "", 0, codes("unknown sealed"))}, ""},
		"an internal error":                  {check.Refusals, []history.Op{op(0, 1, "read", "", "", 0, failed, codes("internal"))}, "internal"},
		"a denial of the superuser":          {check.Refusals, []history.Op{op(0, 0, "write", "", "", 0, codes("unknown denied"))}, "denied"},
		"a session": {check.Sessions, []history.Op{
			op(0, 1, "write", "a", "", 1, mine), op(2, 0, "write", "b", "", 0, mine), op(3, 4, "read", "", "a", 1, mine), op(5, 6, "read", "", "b", 2, mine), op(7, 8, "read", "", "a", 1)}, ""},
		"a session that misses its own write": {check.Sessions, []history.Op{op(0, 1, "write", "a", "", 1, mine), op(2, 3, "read", "", "", 0, mine)}, ", after"},
		"a session that goes back": {check.Sessions, []history.Op{
			op(0, 1, "write", "a", "", 1), op(2, 3, "write", "b", "", 2), op(4, 5, "read", "", "b", 2, mine), op(6, 7, "read", "", "a", 1, mine)}, ", after"},
		"a session that reads another value": {check.Sessions, []history.Op{op(0, 1, "write", "a", "", 1), op(0, 0, "write", "b", "", 0), op(4, 5, "read", "", "b", 1, mine)}, "was written with that version"},
		"a session that reads what failed":   {check.Sessions, []history.Op{op(0, 1, "write", "a", "", 0, failed), op(4, 5, "read", "", "a", 1, mine)}, "nobody had written"},
		"changes and watches": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(1, 2, "write", "", "", 1, at(5)), op(1, 2, "write", "", "", 2, at(5)), op(3, 0, "delete", "", "", 0),
			op(3, 6, "watch", "", "5 put k [1],5 put k [2],7 deleted k [2]", 7), op(4, 5, "write", "", "", 3, at(8)), op(6, 9, "watch", "", "8 put k [3]", 8, final)}, ""},
		"a change that a watch missed": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(1, 2, "write", "", "", 1, at(5)), op(3, 4, "write", "", "", 2, at(6)), op(5, 6, "watch", "", "6 put k [2]", 6, final)}, "not told of"},
		"a change that one of two watches missed": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(0, 1, "begin", "", "", 4, key("other")), op(1, 0, "write", "", "", 0),
			op(3, 4, "watch", "", "5 put k [1]", 6), op(5, 6, "watch", "", "", 6, final, key("other"))}, "as another watch was"},
		"a change told twice": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(1, 2, "write", "", "", 1, at(5)), op(3, 4, "watch", "", "5 put k [1],5 put k [1]", 6, final)}, "twice"},
		"a change told again later": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(1, 2, "write", "", "", 1, at(5)), op(3, 4, "watch", "", "5 put k [1]", 5), op(5, 6, "watch", "", "5 put k [1]", 6, final)}, "twice"},
		"changes told in another order": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(1, 2, "write", "", "", 1, at(5)), op(1, 2, "write", "", "", 2, at(6)), op(3, 4, "watch", "", "6 put k [2],5 put k [1]", 6, final)}, "out of order"},
		"a change that was not made": {check.Watches, []history.Op{
			op(0, 1, "begin", "", "", 4), op(3, 4, "watch", "", "5 put k [1]", 6, final)}, "not done"},
		"places in the log": {check.Indices, []history.Op{
			op(0, 3, "write", "a", "", 1, at(5)), op(1, 2, "write", "b", "", 2, at(5)), op(4, 6, "write", "c", "", 3, at(8)), op(4, 7, "write", "d", "", 4, at(7))}, ""},
		"a later change at an earlier place": {check.Indices, []history.Op{
			op(0, 3, "write", "a", "", 1, at(5)), op(1, 2, "write", "b", "", 2, at(9)), op(4, 6, "write", "c", "", 3, at(8))}, "was called after"},
		"answers of a sealed cluster": {check.Sealed, []history.Op{
			op(0, 1, "seal", "", "", 0), op(2, 3, "read", "", "x", 1), op(9, 10, "unseal", "", "", 0)}, "while the cluster was sealed"},
		"answers around a seal": {check.Sealed, []history.Op{
			op(0, 5, "seal", "", "", 0), op(2, 7, "read", "", "x", 1), op(8, 0, "unseal", "", "", 0), op(8, 10, "read", "", "x", 1), op(11, 12, "unseal", "", "", 0), op(13, 14, "read", "", "x", 1)}, ""},
	} {
		r := c.checker(c.ops)
		if c.finds == "" && (len(r.Violations) > 0 || r.Undecided != "") || c.finds != "" && !strings.Contains(strings.Join(r.Violations, "\n"), c.finds) {
			t.Errorf("%s: found %q (%s)", name, r.Violations, r.Undecided)
		}
	}
}

// Histories that say too little are found out.
func TestEnough(t *testing.T) {
	t.Parallel()
	by := func(peer int) func(*history.Op) { return func(o *history.Op) { o.Peer = peer } }
	var ops []history.Op
	for i := range 3 {
		ops = append(ops, op(i, i+1, "read", "", "denied", 0, by(0)), op(i, i+1, "write", "", "", 1, by(1)))
	}
	last := []history.Op{op(8, 9, "read", "", "allowed", 0, by(0), final), op(8, 9, "read", "", "allowed", 0, by(1), final)}
	for name, c := range map[string]struct {
		ops   []history.Op
		kinds []string
		final string
		peers int
		finds string
	}{
		"enough":                         {append(last, ops...), []string{"write", "read denied", "read allowed"}, "read", 2, ""},
		"without a last look":            {ops, []string{"write"}, "", 2, ""},
		"no compare-and-set":             {ops, []string{"write", "compare-and-set"}, "", 2, "\"compare-and-set\""},
		"nobody was allowed":             {ops, []string{"read allowed"}, "", 2, "\"read allowed\""},
		"a last look at one peer":        {append(last[:1:1], ops...), nil, "read", 2, "no last look at peer 1"},
		"a peer that answered nothing":   {ops, nil, "", 3, "peer 2 answered 0"},
		"a last look that got no answer": {append(ops, op(8, 9, "read", "", "", 0, failed, final)), nil, "read", 1, "no last look at peer 0"},
	} {
		r := check.Enough(c.ops, c.kinds, c.final, c.peers)
		if (r.Undecided != "") != (c.finds != "") || !strings.Contains(r.Undecided, c.finds) || len(r.Violations) > 0 {
			t.Errorf("%s: %q", name, r.Undecided)
		}
	}
}
