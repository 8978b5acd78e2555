package keeper

import (
	"sort"
	"sync"
	"time"
)

// maxAskers bounds what is remembered of who asked: one entry for each identity and operation. Whoever asked least
// recently is forgotten first, with what was counted of them.
const maxAskers = 128

// limit is how often one identity may ask for one thing: so many at once, and so many a second on and on.
type limitOf struct {
	burst, rate float64
}

// A share is fetched by a peer that unseals itself, once per attempt, and its attempts are 5 s apart after the first
// few; and once after it was placed. Peers with one identity for all of them share a limit, and five of them
// still fit. Everything else moves no share out of here.
var (
	sharesOut = limitOf{10, 1}
	others    = limitOf{100, 20}
	limits    = map[string]limitOf{routeFetch: sharesOut, routeShard: sharesOut}
)

// Asking is what a Keeper remembers of one identity and operation.
type Asking struct {
	Peer    string    `json:"peer"` // SPIFFE id
	Op      string    `json:"op"`
	Count   uint64    `json:"count"`             // requests, those refused for being too many included
	Refused uint64    `json:"refused,omitempty"` // for being too many
	Last    time.Time `json:"last"`
}

type asker struct{ peer, route string }

// asking counts, and is the bucket from which each request takes a token.
type asking struct {
	count, refused uint64
	last           time.Time
	tokens         float64
	refusing       bool // the last request was refused
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

// admit counts a request and says whether it is within the limit; first says that it is the first one that is not.
func (a *askers) admit(peer, route string) (ok, first bool) {
	limit, known := limits[route]
	if !known {
		limit = others
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now, key := a.now(), asker{peer, route}
	e := a.by[key]
	if e == nil {
		a.makeRoom()
		e = &asking{last: now, tokens: limit.burst}
		a.by[key] = e
	}
	if passed := now.Sub(e.last).Seconds(); passed > 0 {
		e.tokens = min(limit.burst, e.tokens+passed*limit.rate)
	}
	e.last = now
	e.count++
	if e.tokens < 1 {
		e.refused++
		first, e.refusing = !e.refusing, true
		return false, first
	}
	e.tokens--
	e.refusing = false
	return true, false
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
	return peer[:most] + "…"
}
