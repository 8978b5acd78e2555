package harness

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// Links are the ways between the peers, one for each ordered pair of them. What is
// done to a link is a rule; how rules take effect is the matter of wires, of which
// there are two kinds: a proxy on loopback, which any user may run, and network
// namespaces, which need root and where nothing stands between the two ends of a
// connection but packets that arrive or do not.
//
// A method that returns nothing keeps its error for Err.
type Links struct {
	wires wires

	mu      sync.Mutex // guards what follows
	rules   [][]rule   // from, to
	traffic [][]Traffic
	free    [][]time.Time // when a narrow link has sent what was given to it
	failed  error
}

// rule is what is done to what one peer sends to another. The zero rule is a link
// that nothing is done to.
type rule struct {
	cut           bool
	refused       bool          // and told so
	delay, jitter time.Duration // each part arrives this much later, more or less
	loss          int           // percent
	rate          int           // bytes a second; 0 is without limit
}

// slows tells whether bytes have to be looked at one by one.
func (r rule) slows() bool { return r.delay > 0 || r.loss > 0 || r.rate > 0 }

// Traffic is what the rules of a link did to what was sent over it, from the start
// on. It counts packets, or the parts in which a proxy reads a stream.
type Traffic struct {
	Stopped int           // by a cut
	Slowed  int           // that a delay or a limit held back
	Lost    int           // by a loss
	Bytes   int64         // of those that were slowed
	Waited  time.Duration // by all that were slowed together
}

// wires put rules into effect.
type wires interface {
	// apply is called with every change of the rules, one call at a time.
	apply(rules [][]rule) error
	// stopped is how much cuts have stopped of what from sent to to.
	stopped(from, to int) (int, error)
	close()
}

func newLinks(peers int) *Links {
	l := &Links{}
	for range peers {
		l.rules = append(l.rules, make([]rule, peers))
		l.traffic = append(l.traffic, make([]Traffic, peers))
		l.free = append(l.free, make([]time.Time, peers))
	}
	return l
}

// Cut has nothing arrive of what from sends to to.
func (l *Links) Cut(from, to int) { l.link(from, to, func(r *rule) { r.cut = true }) }

// Refuse has connections from from to to end, and new ones fail at once, as where a host answers that it does not know
// them: unlike with a cut, both sides know. Of the two kinds of wires the proxy alone does it.
func (l *Links) Refuse(from, to int) { l.link(from, to, func(r *rule) { r.refused = true }) }

// Slow has what from sends to to arrive later by delay, more or less jitter, in order.
func (l *Links) Slow(from, to int, delay, jitter time.Duration) {
	l.link(from, to, func(r *rule) { r.delay, r.jitter = delay, jitter })
}

// Lose has so many of a hundred packets from from to to never arrive.
func (l *Links) Lose(from, to, percent int) { l.link(from, to, func(r *rule) { r.loss = percent }) }

// Narrow lets no more than so many bytes a second pass from from to to.
func (l *Links) Narrow(from, to, bytesPerSecond int) {
	l.link(from, to, func(r *rule) { r.rate = bytesPerSecond })
}

// Partition lets peers talk only within their group; a peer in no group is alone.
func (l *Links) Partition(groups ...[]int) {
	of := map[int]int{}
	for g, group := range groups {
		for _, i := range group {
			of[i] = g + 1
		}
	}
	l.set(func(f, t int, r *rule) { r.cut = of[f] != of[t] || of[f] == 0 })
}

// Heal takes all rules back.
func (l *Links) Heal() { l.set(func(_, _ int, r *rule) { *r = rule{} }) }

// Err says that a rule, at any time, did not take effect.
func (l *Links) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Traffic is what came of the rules from one peer to another.
func (l *Links) Traffic(from, to int) (Traffic, error) {
	stopped, err := l.wires.stopped(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.traffic[from][to]
	t.Stopped = stopped
	return t, err
}

func (l *Links) link(from, to int, change func(*rule)) {
	l.set(func(f, t int, r *rule) {
		if f == from && t == to {
			change(r)
		}
	})
}

func (l *Links) set(change func(from, to int, r *rule)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.rules {
		for t := range l.rules[f] {
			if f != t {
				change(f, t, &l.rules[f][t])
			}
		}
	}
	l.failed = errors.Join(l.failed, l.wires.apply(l.rules))
}

// send decides what becomes of n bytes: when they arrive, or that they are lost.
func (l *Links) send(from, to, n int) (due time.Time, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, t := l.rules[from][to], &l.traffic[from][to]
	now := time.Now()
	if !r.slows() {
		return now, false
	}
	if rand.IntN(100) < r.loss {
		t.Lost++
		return now, true
	}
	due = now
	if r.rate > 0 {
		if free := l.free[from][to]; free.After(now) {
			due = free
		}
		due = due.Add(time.Duration(n) * time.Second / time.Duration(r.rate))
		l.free[from][to] = due
	}
	if r.delay > 0 {
		due = due.Add(r.delay - r.jitter + rand.N(2*r.jitter+1))
	}
	if due.After(now) {
		t.Slowed++
		t.Bytes += int64(n)
		t.Waited += due.Sub(now)
	}
	return due, false
}
