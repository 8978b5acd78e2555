package store

import (
	"strings"

	"github.com/spike-ha/spike-ha/secret"
)

// For the tests, which are outside the package.

// FeedEvents is how many events a peer keeps.
const FeedEvents = feedEvents

// FeedBytes is how many bytes of them, as it counts.
const FeedBytes = feedBytes

// Waiting is how many watches wait at s.
func Waiting(s *Store) (n int) {
	s.watchers.mu.Lock()
	defer s.watchers.mu.Unlock()
	for _, set := range s.watchers.waiting {
		n += len(set)
	}
	return n
}

// Undisturbed is how many watches wait at s since index, and were not woken.
func Undisturbed(s *Store, index uint64) (n int) {
	s.watchers.mu.Lock()
	defer s.watchers.mu.Unlock()
	for _, set := range s.watchers.waiting {
		for w := range set {
			if w.from == index && len(w.woken) == 0 {
				n++
			}
		}
	}
	return n
}

// WaitAfter enters a waiter for path that has seen what is published now, after
// meanwhile; it tells whether the waiter would wait, and up to which index nothing
// of path happened.
func WaitAfter(s *Store, path string, meanwhile func()) (waits bool, index uint64) {
	sc, p := scope{path, false}, s.public.Load()
	meanwhile()
	w, ok := s.wait(sc, p)
	if !ok {
		return false, p.view.Index()
	}
	return true, s.watchers.leave(w)
}

// FeedOf is how many events of n with paths of so many bytes a peer keeps, the
// bytes that it takes them for, and whether all after its floor are there.
func FeedOf(n, path int) (kept, bytes int, whole bool) {
	f := feed{}
	for i := range n {
		f.add([]Event{{Index: uint64(i + 1), Path: secret.Path(strings.Repeat("p", path))}})
	}
	return len(f.events), f.bytes, uint64(len(f.after(f.floor))) == uint64(n)-f.floor
}
