package keeper

import (
	"sort"
	"sync"
	"time"
)

// maxAskers bounds what is remembered of who asked: one entry for each identity and operation. Whoever asked least
// recently is forgotten first, with what was counted of them.
const maxAskers = 128

// pace is how often one identity may have one thing: so many at once, and so many a second on and on.
type pace struct{ burst, rate float64 }

var (
	// requests of one kind, whatever becomes of them.
	requestLimit = pace{100, 20}
	// shares that go out. A peer that unseals itself fetches one per attempt, and its attempts are 5 s apart after the
	// first few; and one after it was placed. Peers with one identity for all of them share a limit, and five
	// still fit. To be told that there is no share is no share: who looks after the Keepers hears of an empty one
	// however often others ask in its name.
	shareLimit = pace{10, 1}
)

// bucket is from where each request takes a token.
type bucket struct {
	tokens float64
	at     time.Time // of the last look; zero: it is full
}

func (b *bucket) take(p pace, now time.Time) bool {
	if b.at.IsZero() {
		b.tokens = p.burst
	} else if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(p.burst, b.tokens+passed*p.rate)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Asking is what a Keeper remembers of one identity and operation.
type Asking struct {
	Peer    string    `json:"peer"` // SPIFFE id
	Op      string    `json:"op"`
	Count   uint64    `json:"count"`             // requests, those refused for being too many included
	Refused uint64    `json:"refused,omitempty"` // for being too many
	Last    time.Time `json:"last"`
}

type asker struct{ peer, route string }

// quietFor is how long nothing was refused when a refusal is worth a word in the log again.
const quietFor = time.Minute

// asking is what is counted of one asker.
type asking struct {
	count, refused   uint64
	last             time.Time
	requests, shares bucket
	refusedAt        time.Time // when one was refused last
}

// askers limits who asks, and remembers them. Safe for concurrent use.
type askers struct {
	now func() time.Time

	mu sync.Mutex // guards by
	by map[asker]*asking
}

func newAskers(now func() time.Time) *askers {
	return &askers{now: now, by: make(map[asker]*asking)}
}

// admit counts a request and says whether it is within the limit of requests; first says that none
// was refused for a while before it.
func (a *askers) admit(peer, route string) (ok, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, e := a.now(), a.of(peer, route)
	e.count++
	e.last = now
	return e.judge(e.requests.take(requestLimit, now))
}

// give says whether a request that was admitted may have the share that it asks for; first as admit.
func (a *askers) give(peer, route string) (ok, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, e := a.now(), a.of(peer, route)
	e.last = now // of may have made it anew
	return e.judge(e.shares.take(shareLimit, now))
}

func (e *asking) judge(ok bool) (_, first bool) {
	if !ok {
		e.refused++
		first = e.refusedAt.IsZero() || e.last.Sub(e.refusedAt) > quietFor
		e.refusedAt = e.last
	}
	return ok, first
}

// of finds what is remembered of an asker, or begins with it. The caller holds mu.
func (a *askers) of(peer, route string) *asking {
	key := asker{peer, route}
	e := a.by[key]
	if e == nil {
		a.makeRoom()
		e = &asking{}
		a.by[key] = e
	}
	return e
}

// makeRoom forgets whoever asked least recently when there is no room. The caller holds mu.
func (a *askers) makeRoom() {
	if len(a.by) < maxAskers {
		return
	}
	var oldest asker
	var at time.Time
	for key, e := range a.by {
		if at.IsZero() || e.last.Before(at) {
			oldest, at = key, e.last
		}
	}
	delete(a.by, oldest)
}

// list is what is remembered, the newest first.
func (a *askers) list() []Asking {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Asking, 0, len(a.by))
	for key, e := range a.by {
		list = append(list, Asking{Peer: clip(key.peer), Op: operations[key.route], Count: e.count, Refused: e.refused, Last: e.last})
	}
	sort.Slice(list, func(i, j int) bool {
		x, y := list[i], list[j]
		if !x.Last.Equal(y.Last) {
			return x.Last.After(y.Last)
		}
		return x.Peer+" "+x.Op < y.Peer+" "+y.Op
	})
	return list
}

// clip bounds what one asker takes up in an answer: a SPIFFE id may have 2,048 bytes.
func clip(peer string) string {
	const most = 200
	if len(peer) <= most {
		return peer
	}
	return peer[:most] + "..."
}
