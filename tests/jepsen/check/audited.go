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

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// audited is how audit logs name what workloads do.
var audited = map[string]string{"write": "secret.put", "append": "secret.put", "add": "secret.put", "put": "secret.put",
	"delete": "secret.delete", "undelete": "secret.undelete", "destroy": "secret.destroy", "grant": "policy.put", "revoke": "policy.delete"}

// Audited holds the changes that clients know of against the audit logs, each in a directory of its own, of all peers:
//
//   - each acknowledged change has an outcome on record, with its index, its kind and its version, of a secret of its
//     own: one entry of the Raft log may make many changes, and several requests may have been made for one (a
//     removal, which has no version, may find that another one at that index has been there before);
//   - no outcome is on record without its intent before it, and none twice. That a client was told that nothing is known
//     may follow what was done: the record of that, or what came after, was not durable.
//
// Whether the logs are whole is for audit.Verify. When some have been lost, complete is false, and nothing is missed.
func Audited(ops []history.Op, complete bool, dirs ...string) Result {
	r := Result{Checker: "audit"}
	type recorded struct {
		index   uint64
		op      string
		version uint64
	}
	made := map[recorded]map[string]bool{} // of which secrets, whose names are hashed
	for _, dir := range dirs {
		type request struct{ id, op string }
		intended, done := map[request]int{}, map[request]int{} // one for each thing that is changed
		err := records(dir, func(a audit.Record) {
			of := request{a.Request, a.Op}
			switch a.Phase {
			case audit.PhaseIntent:
				intended[of]++
			case audit.PhaseOutcome:
				if a.Result == "ok" {
					done[of]++
				}
				if complete && (intended[of] == 0 || done[of] > intended[of]) {
					r.violate("%s: record %d is an outcome of request %s (%s) that was not intended before, or one more than was", dir, a.Seq, a.Request, a.Op)
				}
				if c := (recorded{a.Index, a.Op, a.Version}); a.Result == "ok" {
					if made[c] == nil {
						made[c] = map[string]bool{}
					}
					made[c][cmp.Or(a.Path, "of request "+a.Request)] = true // a sealed peer cannot hash names
				}
			}
		})
		if err != nil {
			r.Undecided = err.Error()
		}
	}
	known := map[recorded]int{}
	for _, op := range ops {
		kind := audited[op.F]
		if op.Outcome != history.OK || op.Index == 0 || kind == "" {
			continue
		}
		r.Checked++
		c := recorded{op.Index, kind, 0}
		if kind == "secret.put" {
			c.version = uint64(op.Version)
		}
		if c.version == 0 {
			known[c] = 1
		} else {
			known[c]++
		}
		if complete && known[c] > len(made[c]) {
			r.violate("%s was made at index %d, where the audit logs have %d such changes and clients know of %d", show(op), op.Index, len(made[c]), known[c])
		}
	}
	return r
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
