package store

import (
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/secret"
)

// Event is one change of a secret. It holds no value.
type Event struct {
	Index    uint64 // Raft index at which it took effect
	Time     time.Time
	Kind     EventKind
	Path     secret.Path
	Versions []secret.Version // that were changed, ascending; none of a purge
}

// EventKind is what happened to a secret.
type EventKind string

// The kinds.
const (
	EventPut       EventKind = "put"
	EventDeleted   EventKind = "deleted"
	EventUndeleted EventKind = "undeleted"
	EventDestroyed EventKind = "destroyed"
	EventPurged    EventKind = "purged"
)

var eventKinds = map[fsm.ActKind]EventKind{fsm.ActPut: EventPut, fsm.ActDelete: EventDeleted, fsm.ActUndelete: EventUndeleted,
	fsm.ActDestroy: EventDestroyed, fsm.ActPurge: EventPurged}

// Bounds of the events that a peer keeps: at 5,000 writes a second 13 s of them.
// The memory may be twice the bytes while the oldest are given up.
const (
	feedEvents = 1 << 16
	feedBytes  = 16 << 20
)

// feed is the newest events of one peer, part of a publication: copies never
// change. All copies share one array, which the observer appends to behind what
// they see, and gives up for a new one when it is full.
type feed struct {
	events []Event // by index; those of one entry in the order of its commands
	floor  uint64  // every event after this index is in events
	bytes  int
}

func (e *Event) size() int { return 96 + len(e.Path) + 8*len(e.Versions) }

// add appends the events of one entry and forgets the oldest over the bounds.
// What is left of an entry that lost one is behind the floor, where nobody looks.
func (f *feed) add(entry []Event) {
	for i := range entry {
		f.bytes += entry[i].size()
	}
	f.events = append(f.events, entry...)
	for len(f.events) > feedEvents || f.bytes > feedBytes {
		f.floor = f.events[0].Index
		f.bytes -= f.events[0].size()
		f.events = f.events[1:]
	}
}

// after returns the events after an index.
func (f *feed) after(index uint64) []Event {
	return f.events[sort.Search(len(f.events), func(i int) bool { return f.events[i].Index > index }):]
}

// events makes the events of one entry. What was done to a secret whose name
// cannot be read is left out, as the secret itself is.
func (o *observer) events(d fsm.Delta) (entry []Event) {
	for _, a := range d.Acts {
		plain, err := o.store.cfg.Keys.Decrypt(KindName, fsm.Token(a.Secret.Token), 0, a.Secret.Name)
		if err != nil {
			continue
		}
		entry = append(entry, Event{d.View.Index(), instant(a.Time), eventKinds[a.Kind], secret.Path(plain), numbered(a.Versions)})
	}
	return entry
}

// scope is what a watch is about: one path, or all that begin with a prefix.
type scope struct {
	text   string
	prefix bool
}

func (s scope) covers(path secret.Path) bool {
	if s.prefix {
		return strings.HasPrefix(string(path), s.text)
	}
	return string(path) == s.text
}

// watchers are the watches that wait for something to happen.
type watchers struct {
	mu      sync.Mutex // guards what follows
	scanned uint64     // index of the last publication that waiters were told of
	waiting map[scope]map[*waiter]struct{}
	lengths map[int]int // of the prefixes waited for, and how many there are
}

// waiter is one of them. Its fields but woken are guarded by watchers.mu.
type waiter struct {
	scope
	woken chan struct{} // receives once or more when there may be something
	from  uint64        // nothing in scope happened up to this index
	hit   uint64        // the first index at which something may have; 0: none
}

// wait enters a waiter that has seen all up to p, unless something has happened
// since: then ok is false, and it is time to look again.
func (s *Store) wait(sc scope, p *published) (w *waiter, ok bool) {
	g := &s.watchers
	g.mu.Lock()
	defer g.mu.Unlock()
	// Whatever is published after this is told once we give up the lock.
	now := s.public.Load()
	if now == nil || now.view.PolicyRevision() != p.view.PolicyRevision() || now.feed.floor > p.view.Index() {
		return nil, false
	}
	for _, e := range now.feed.after(p.view.Index()) {
		if sc.covers(e.Path) {
			return nil, false
		}
	}
	w = &waiter{scope: sc, woken: make(chan struct{}, 1), from: now.view.Index()}
	if g.waiting == nil {
		g.waiting, g.lengths = map[scope]map[*waiter]struct{}{}, map[int]int{}
	}
	if g.waiting[sc] == nil {
		g.waiting[sc] = map[*waiter]struct{}{}
		if sc.prefix {
			g.lengths[len(sc.text)]++
		}
	}
	g.waiting[sc][w] = struct{}{}
	return w, true
}

// leave takes a waiter out and returns the index up to which nothing in its
// scope happened.
func (g *watchers) leave(w *waiter) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.waiting[w.scope], w)
	if len(g.waiting[w.scope]) == 0 {
		delete(g.waiting, w.scope)
		if n := len(w.text); w.prefix {
			if g.lengths[n]--; g.lengths[n] == 0 {
				delete(g.lengths, n)
			}
		}
	}
	if w.hit > 0 {
		return max(w.from, w.hit-1)
	}
	return max(w.from, g.scanned)
}

// tell wakes who waits for one of the events of the publication at index. The
// cost grows with the events and the different lengths of prefixes, not with
// the number of waiters.
func (g *watchers) tell(index uint64, events []Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.scanned = index
	if len(g.waiting) == 0 {
		return
	}
	for _, e := range events {
		g.wake(scope{string(e.Path), false}, index)
		for n := range g.lengths {
			if n <= len(e.Path) {
				g.wake(scope{string(e.Path[:n]), true}, index)
			}
		}
	}
}

// tellAll wakes all: the rights may have changed, or the keys are gone. lost says
// that nobody will be told what happened after the last publication.
func (g *watchers) tellAll(lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	hit := uint64(0)
	if lost {
		hit = g.scanned + 1
	}
	for sc := range g.waiting {
		g.wake(sc, hit)
	}
}

// wake needs g.mu.
func (g *watchers) wake(sc scope, hit uint64) {
	for w := range g.waiting[sc] {
		if w.hit == 0 {
			w.hit = hit
		}
		select {
		case w.woken <- struct{}{}:
		default:
		}
	}
}
