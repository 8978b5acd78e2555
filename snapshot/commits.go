package snapshot

import (
	"context"
	"sync"
	"time"
)

const (
	// lookEvery is how often Commits looks at what is committed, and so about how much too old it says that something is.
	lookEvery = 250 * time.Millisecond
	// maxSightings bounds what Commits remembers.
	maxSightings = 4096
)

// Commits remembers when how much of the log was committed, which the log itself does not say: it tells how old the oldest change
// is that an archive lacks. Every peer of a cluster runs one all the time, so that whoever ships next knows it too. Safe for
// concurrent use.
type Commits struct {
	committed func() uint64
	now       func() time.Time

	mu        sync.Mutex
	sightings []sighting // in order of both
}

// sighting: at that time, not more than index was committed.
type sighting struct {
	index uint64
	last  time.Time
}

// NewCommits makes a Commits of what tells the index that is committed now, as far as this peer knows.
func NewCommits(committed func() uint64, now func() time.Time) *Commits {
	c := &Commits{committed: committed, now: now}
	c.look()
	return c
}

// Run looks until ctx ends.
func (c *Commits) Run(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.look()
		}
	}
}

func (c *Commits) look() {
	now, index := c.now(), c.committed() // in this order, so that no more was committed at that time
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.sightings); n > 0 && c.sightings[n-1].index >= index {
		c.sightings[n-1].last = now
		return
	}
	if len(c.sightings) == maxSightings { // what is left out makes changes look older, not younger
		kept := c.sightings[:0]
		for i := 0; i < maxSightings; i += 2 {
			kept = append(kept, c.sightings[i])
		}
		c.sightings = kept
	}
	c.sightings = append(c.sightings, sighting{index, now})
}

// Behind is how old the oldest change after an index can be; 0 when there is none. It is not more than the
// time since NewCommits.
func (c *Commits) Behind(index uint64) time.Duration {
	if c.committed() <= index {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	since := c.sightings[0].last
	for _, s := range c.sightings {
		if s.index > index {
			break
		}
		since = s.last
	}
	return max(c.now().Sub(since), 1)
}
