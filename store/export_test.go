package store

// For the tests, which are outside the package.

// FeedEvents is how many events a peer keeps.
const FeedEvents = feedEvents

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
