// Package measure counts how long things take, cheaply enough for every request:
// a few atomic additions, no lock and no allocation. Who shows the figures reads
// them from time to time.
//
// Decision: one set of bounds for everything, from what memory answers to what
// people give up on. Cost: a histogram of disks and one of requests have buckets
// that they never fill.
package measure

import (
	"sync/atomic"
	"time"
)

// Bounds are the upper ends of the buckets; one more holds what took longer.
var Bounds = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Histogram counts durations by bucket. The zero value is ready; it is safe for
// concurrent use and must not be copied.
type Histogram struct {
	buckets [len(Bounds) + 1]atomic.Uint64
	nanos   atomic.Int64
}

// Observe counts d, which counts as 0 when it is negative.
func (h *Histogram) Observe(d time.Duration) {
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.nanos.Add(int64(max(d, 0)))
}

// Since counts the time from start until now.
func (h *Histogram) Since(start time.Time) { h.Observe(time.Since(start)) }

// Distribution is what a Histogram held at some moment.
type Distribution struct {
	Counts [len(Bounds) + 1]uint64 // by bucket, not added up
	Sum    time.Duration           // may be a moment newer than Counts
}

// Read returns what was observed so far.
func (h *Histogram) Read() (d Distribution) {
	for i := range h.buckets {
		d.Counts[i] = h.buckets[i].Load()
	}
	d.Sum = time.Duration(h.nanos.Load())
	return d
}

// Count is how many durations were observed.
func (d Distribution) Count() (n uint64) {
	for _, c := range d.Counts {
		n += c
	}
	return n
}
