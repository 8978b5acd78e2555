package forged

import (
	"fmt"
	"maps"
	"slices"
)

// The kinds of violations.
const (
	TwoEntries  = "different entries of one index and term" // in two logs
	TwoCommands = "different committed entries at one index"
	Lost        = "acknowledged write missing"
)

// judge compares all that the nodes ever stored, what their state machines were
// given, and what was acknowledged. It returns each kind of violation once.
func (c *cluster) judge() (violations []string) {
	found := map[string]string{}
	note := func(kind, format string, args ...any) {
		if found[kind] == "" {
			found[kind] = kind + ": " + fmt.Sprintf(format, args...)
		}
	}
	type place struct{ index, term uint64 }
	stored := map[place]entry{}
	applied := map[uint64]entry{}
	for _, n := range c.nodes {
		n.disk.mu.Lock()
		for index, list := range n.disk.stored {
			for _, e := range list {
				p := place{index, e.term}
				if first, ok := stored[p]; ok && !first.same(e) {
					note(TwoEntries, "index %d, term %d: %v %q and %v %q", index, e.term, first.kind, first.data, e.kind, e.data)
				}
				stored[p] = e
			}
		}
		n.disk.mu.Unlock()
		n.machine.mu.Lock()
		for index, e := range n.machine.applied {
			if first, ok := applied[index]; ok && !first.same(e) {
				note(TwoCommands, "index %d: %q and %q", index, first.data, e.data)
			}
			applied[index] = e
		}
		c.mu.Lock()
		for index, data := range c.acked {
			if e, ok := n.machine.applied[index]; n.machine.last >= index && (!ok || e.data != data) {
				note(Lost, "%q at index %d, of node %d", data, index, n.number)
			}
		}
		c.mu.Unlock()
		n.machine.mu.Unlock()
	}
	for _, kind := range slices.Sorted(maps.Keys(found)) {
		violations = append(violations, found[kind])
	}
	return violations
}
