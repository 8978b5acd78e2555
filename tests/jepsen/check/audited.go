package check

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// audited is how audit logs name what workloads do.
var audited = map[string]string{"write": "secret.put", "append": "secret.put", "add": "secret.put", "put": "secret.put",
	"delete": "secret.delete", "undelete": "secret.undelete", "destroy": "secret.destroy", "grant": "policy.put", "revoke": "policy.delete",
	"transfer": "secret.put", "setup": "secret.put"}

// transactions are how many secrets those change, at most, that may change several: Out has their versions.
var transactions = map[string]int{"transfer": 2, "setup": 5}

// changes are what their outcomes are held against.
var changes = func() map[string]bool {
	kinds := map[string]bool{}
	for _, kind := range audited {
		kinds[kind] = true
	}
	return kinds
}()

// Audited holds the changes that clients know of against the audit logs of all peers, each in a directory of its own. lost says of
// whose log something is gone: then nothing is missed in it.
//
//   - Each acknowledged change has an outcome on record, with its index, its kind and its version, of a secret of its
//     own, at the peer that was asked, when that is known: one entry of the Raft log may make many changes, and several requests may
//     have been made for one (a removal, which has no version, may find that another one at that index has been there before).
//   - No more is on record at a peer than was acknowledged to who may have asked it, and than what had an unknown outcome can have made there.
//   - No outcome is on record without its intent before it, and none twice. That a client was told that nothing is known
//     may follow what was done: the record of that, or what came after, was not durable.
//   - In one log, a change that is intended after the outcome of another has a later index.
//
// Whether the logs are whole is for audit.Verify.
func Audited(ops []history.Op, lost map[int]bool, dirs ...string) Result {
	r := Result{Checker: "audit"}
	l := ledger{at: make([]map[entry]map[string]bool, len(dirs)), all: map[entry]map[string]bool{}, asked: map[request]*asked{}}
	whole := true
	for i, dir := range dirs {
		whole = whole && !lost[i]
		if err := l.read(&r, i, dir, lost[i]); err != nil {
			r.Undecided = err.Error()
		}
	}
	l.missing(&r, ops, lost, whole)
	l.invented(&r, ops)
	if whole {
		l.disordered(&r)
	}
	return r
}

// entry is a change as the logs name it, but for its secret.
type entry struct {
	index   uint64
	op      string
	version uint64
}

type request struct{ id, op string }

// asked is what is on record of a request.
type asked struct {
	intended, done int             // one for each thing that is changed
	paths          map[string]bool // hashed; a sealed peer has none
	index          uint64          // 0: no outcome, or another than success
	floor          uint64          // the latest index in this log before the first intent
}

type ledger struct {
	at    []map[entry]map[string]bool // by peer: of which secrets, whose names are hashed
	all   map[entry]map[string]bool   // at any
	asked map[request]*asked
}

func (l *ledger) read(r *Result, peer int, dir string, lost bool) error {
	latest := uint64(0)
	l.at[peer] = map[entry]map[string]bool{}
	return records(dir, func(a audit.Record) {
		if a.Phase != audit.PhaseIntent && a.Phase != audit.PhaseOutcome {
			return
		}
		of := request{a.Request, a.Op}
		q := l.asked[of]
		if q == nil {
			q = &asked{paths: map[string]bool{}, floor: latest}
			l.asked[of] = q
		}
		switch {
		case a.Phase == audit.PhaseIntent:
			q.intended++
			q.paths[a.Path] = true
		case a.Result == "ok":
			q.done++
		}
		if a.Phase == audit.PhaseIntent {
			return
		}
		if !lost && (q.intended == 0 || q.done > q.intended) {
			r.violate("%s: record %d is an outcome of request %s (%s) that was not intended before, or one more than was", dir, a.Seq, a.Request, a.Op)
		}
		if a.Result != "ok" || !changes[a.Op] {
			return
		}
		latest, q.index = max(latest, a.Index), a.Index
		e := entry{a.Index, a.Op, a.Version}
		for _, made := range []map[entry]map[string]bool{l.at[peer], l.all} {
			if made[e] == nil {
				made[e] = map[string]bool{}
			}
			made[e][cmp.Or(a.Path, fmt.Sprintf("%s%d of peer %d", unnamed, a.Seq, peer))] = true // a transaction has several
		}
	})
}

// unnamed begins what stands for the name of a secret that a sealed peer could not hash.
const unnamed = "of record "

// missing finds acknowledged changes that are not on record.
func (l *ledger) missing(r *Result, ops []history.Op, lost map[int]bool, whole bool) {
	type place struct {
		peer int
		entry
	}
	known := map[place]int{}
	for _, op := range ops {
		for _, e := range acknowledged(op) {
			r.Checked++
			for _, peer := range slices.Compact([]int{history.Anybody, op.Peer}) {
				made, judged := l.all, whole
				if peer != history.Anybody {
					made, judged = l.at[peer], !lost[peer]
				}
				p := place{peer, e}
				if known[p]++; e.version == 0 {
					known[p] = 1
				}
				if judged && known[p] > len(made[e]) {
					r.violate("%s was made at index %d, where the audit logs (of peer %d; -1: of all) have %d such changes and clients know of %d", show(op), e.index, peer, len(made[e]), known[p])
				}
			}
		}
	}
}

// acknowledged are the changes that an operation was told of.
func acknowledged(op history.Op) (list []entry) {
	kind := audited[op.F]
	if op.Outcome != history.OK || op.Index == 0 || kind == "" {
		return nil
	}
	versions := []string{"0"}
	switch {
	case transactions[op.F] > 0:
		versions = elements(op.Out)
	case kind == "secret.put":
		versions[0] = strconv.Itoa(op.Version)
	}
	for _, v := range versions {
		n, _ := strconv.ParseUint(v, 10, 64)
		list = append(list, entry{op.Index, kind, n})
	}
	return list
}

// invented finds changes on record at a peer that nobody can have made there.
func (l *ledger) invented(r *Result, ops []history.Op) {
	for peer, made := range l.at {
		there := slices.DeleteFunc(slices.Clone(ops), func(op history.Op) bool {
			return audited[op.F] == "" || op.Peer != peer && op.Peer != history.Anybody
		})
		r.invented(peer, made, there, ops)
	}
}

// invented holds what is on record at a peer against what it was asked: what was not acknowledged at an index must be of unknown
// outcome, and called before anything at that index or behind it was acknowledged to anybody.
func (r *Result) invented(peer int, made map[entry]map[string]bool, there, ops []history.Op) {
	known, maybe := map[entry]int{}, map[string][]history.Op{}
	for _, op := range there {
		if op.Outcome == history.Unknown {
			for range max(1, transactions[op.F]) {
				maybe[audited[op.F]] = append(maybe[audited[op.F]], op)
			}
		}
		for _, e := range acknowledged(op) {
			known[e]++
		}
	}
	acknowledgedAt := firstReturns(ops)
	more := map[string]int{}
	for e, names := range made {
		excess := distinct(names) - known[e]
		if excess <= 0 {
			continue
		}
		until, possible := acknowledgedAt(e.index), 0
		for _, op := range maybe[e.op] {
			if op.Call <= until {
				possible++
			}
		}
		if excess > possible {
			r.violate("the audit log of peer %d has %d more changes %s at index %d, of version %d, than its clients know of, and %d at most are of unknown outcome", peer, excess, e.op, e.index, e.version, possible)
		}
		more[e.op] += excess
	}
	for kind, n := range more {
		if n > len(maybe[kind]) {
			r.violate("the audit log of peer %d has %d more changes %s than its clients know of, and %d are of unknown outcome", peer, n, kind, len(maybe[kind]))
		}
	}
}

// firstReturns tells when a change at an index or behind it was first acknowledged: by then what is at the index was made.
func firstReturns(ops []history.Op) func(index uint64) time.Duration {
	list := slices.DeleteFunc(slices.Clone(ops), func(op history.Op) bool { return op.Outcome != history.OK || op.Index == 0 })
	slices.SortFunc(list, func(a, b history.Op) int { return cmp.Compare(a.Index, b.Index) })
	first := make([]time.Duration, len(list)+1)
	first[len(list)] = history.Forever
	for i := len(list) - 1; i >= 0; i-- {
		first[i] = min(first[i+1], list[i].Return)
	}
	return func(index uint64) time.Duration {
		at, _ := slices.BinarySearchFunc(list, index, func(op history.Op, index uint64) int { return cmp.Compare(op.Index, index) })
		return first[at]
	}
}

// distinct is how many secrets there are at least: one may be named by hashes under several keys, and by none.
func distinct(names map[string]bool) (most int) {
	by := map[string]int{}
	for name := range names {
		if !strings.HasPrefix(name, unnamed) {
			by[hashedWith(name)]++
			most = max(most, by[hashedWith(name)])
		}
	}
	return most
}

func hashedWith(path string) string { key, _, _ := strings.Cut(path, "."); return key }

// disordered finds a request that was intended after the outcome of another was on record in the same log, and whose change lies not
// behind that one's; but for one that may have repeated an earlier request, which is answered with what that has made.
func (l *ledger) disordered(r *Result) {
	for of, q := range l.asked {
		if q.index == 0 || q.index > q.floor {
			continue
		}
		repeated := false
		for other, o := range l.asked {
			repeated = repeated || other.op == of.op && other.id != of.id && o.intended > 0 && (o.index == 0 || o.index == q.index) && alike(o.paths, q.paths)
		}
		if !repeated {
			r.violate("request %s (%s) was intended after an outcome at index %d was on record, and was made at index %d", of.id, of.op, q.floor, q.index)
		}
	}
}

// alike tells whether there may be one secret among both.
func alike(a, b map[string]bool) bool {
	for x := range a {
		for y := range b {
			if x == y || x == "" || y == "" || hashedWith(x) != hashedWith(y) {
				return true
			}
		}
	}
	return false
}

// records reads an audit log in its order; an unfinished last line is not a record yet.
func records(dir string, each func(audit.Record)) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s holds no audit log", dir)
	}
	slices.Sort(files)
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			var a audit.Record
			if json.Unmarshal(lines.Bytes(), &a) == nil {
				each(a)
			}
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return err
		}
	}
	return nil
}
