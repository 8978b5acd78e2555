package check

import "github.com/spike-ha/spike-ha/tests/jepsen/history"

// Sessions checks reads that ask no other peer, of level "index": each process sees what it has written itself, and of each secret,
// whoever writes it, never an older version than it has seen; a version has the value that was written with it.
func Sessions(ops []history.Op) Result {
	r := Result{Checker: "sessions"}
	type version struct {
		key    string
		number int
	}
	type value struct{ key, value string }
	written, by := map[version]string{}, map[value]history.Op{}
	for _, op := range ops {
		if op.F != "write" {
			continue
		}
		by[value{op.Key, op.In}] = op
		if op.Outcome == history.OK {
			written[version{op.Key, op.Version}] = op.In
		}
	}
	type session struct {
		process int
		key     string
	}
	newest := map[session]history.Op{}
	for _, op := range ops { // of a process, one after the other
		if op.Outcome != history.OK {
			continue
		}
		r.Checked++
		s := session{op.Process, op.Key}
		if last := newest[s]; op.Version < last.Version {
			r.violate("%s, after %s", show(op), show(last))
		} else {
			newest[s] = op
		}
		if op.F != "read" || op.Version == 0 {
			continue
		}
		if was, known := written[version{op.Key, op.Version}]; known && was != op.Out {
			r.violate("%s, but %q was written with that version", show(op), was)
		}
		if w, there := by[value{op.Key, op.Out}]; !there || w.Outcome == history.Failed || w.Call > op.Return {
			r.violate("%s has what nobody had written", show(op))
		}
	}
	return r
}
