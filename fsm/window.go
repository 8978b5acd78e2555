package fsm

import (
	"bytes"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// windowEntry is the result of an applied command, kept for retries that carry
// the same write id. Immutable.
type windowEntry struct {
	id         [16]byte
	request    [32]byte
	requestLen uint8
	index      uint64 // that the id carries
	applied    uint64 // Raft index of the result
	version    uint64
	revision   uint64
	versions   []uint64
	operations []*fsmpb.OperationResult // of a transaction
}

func (e *windowEntry) requestBytes() []byte { return e.request[:e.requestLen] }

func (e *windowEntry) size() uint64 {
	n := windowOverhead + uint64(e.requestLen) + 8*uint64(len(e.versions))
	for _, o := range e.operations {
		n += operationOverhead + 8*uint64(len(o.Versions))
	}
	return n
}

func (e *windowEntry) result() *fsmpb.Result {
	return &fsmpb.Result{Code: fsmpb.Code_OK, Index: e.applied, Replayed: true,
		Version: e.version, Revision: e.revision, Versions: e.versions, Operations: e.operations}
}

// window holds the results of the last commands that carried a write id, first
// in, first out. Views share the slice: it is only appended to and cut at the
// front, so that what a view holds of it never changes.
type window struct {
	entries []*windowEntry
	byID    map[[16]byte]*windowEntry // looked up, never ranged over
}

func newWindow() window { return window{byID: map[[16]byte]*windowEntry{}} }

func (w *window) frozen() []*windowEntry { return w.entries[:len(w.entries):len(w.entries)] }

// Replay returns what Apply would answer to a command with the write id because
// of the window: the result of the change that was applied under it, or
// WRITE_ID_REUSED when that was for another request; nil when it is not there.
// It is for a writer that would not propose at all, because what its own change
// did stands in the way of another. after is the index that the id carries: no
// result of it is older.
func (v *View) Replay(id [16]byte, request []byte, after uint64) *fsmpb.Result {
	for i := len(v.window) - 1; i >= 0 && v.window[i].applied > after; i-- {
		if e := v.window[i]; e.id == id {
			if !bytes.Equal(e.requestBytes(), request) {
				return &fsmpb.Result{Code: fsmpb.Code_WRITE_ID_REUSED, Index: v.index}
			}
			return e.result()
		}
	}
	return nil
}

// remember adds a result to the window.
func (s *state) remember(h *hasher, e *windowEntry) {
	s.window.entries = append(s.window.entries, e)
	s.window.byID[e.id] = e
	s.windowBytes += e.size()
	s.sums.window = s.sums.window.plus(h.window(e))
	s.trimWindow(h)
}

// trimWindow evicts the oldest results until the window is within its bounds.
//
// The floor: an id that carries index i was made when i was published, so its
// result, if it has one, has a Raft index above i. After all results up to index
// r, r itself included, may have been evicted, an id with i < r may have been
// applied and forgotten, and is refused; one with i >= r can only have a result
// above r, and nothing above r was evicted. So the floor is r.
func (s *state) trimWindow(h *hasher) {
	w := &s.window
	for len(w.entries) > 0 &&
		(uint64(len(w.entries)) > s.settings.WindowEntries || s.windowBytes > s.settings.WindowBytes) {
		e := w.entries[0]
		w.entries = w.entries[1:]
		delete(w.byID, e.id)
		s.windowBytes -= e.size()
		s.sums.window = s.sums.window.minus(h.window(e))
		s.windowFloor = e.applied
	}
}
