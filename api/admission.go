package api

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

// admission lets a bounded number of requests run at once, and lets the others
// wait their turn: each identity in its own line, and the lines served in rounds
// (fair queueing: Nagle, RFC 970). However many requests one identity sends,
// another's waits for one of each line at most, and then shares the peer with no
// more than limits.each of them. HTTP/2 lets one connection carry many requests,
// each of which may hold a body and wait for a leader: without bounds a burst
// would end in collapse.
type admission struct {
	limits limits

	mu      sync.Mutex // guards what follows
	running int
	waiting int
	callers map[string]*line // of those with requests running or waiting
	turns   []*line          // of those waiting, whose turn is next first

	refused atomic.Uint64 // so far, for want of a place
}

// limits bound requests of one peer. One that would have to wait beyond them is
// refused at once.
type limits struct {
	all, each       int // running, and of one identity
	waiting, ofEach int // waiting, and of one identity
	patience        time.Duration
}

// Requests that run are enough to keep two hundred writers' entries full; a
// quarter of them is what one identity gets. Those of operators have places of
// their own: who looks what is wrong must not stand in the line that is it.
var (
	requestLimits  = limits{all: 256, each: 64, waiting: 2048, ofEach: 512, patience: 2 * time.Second}
	operatorLimits = limits{all: 128, each: 8, waiting: 64, ofEach: 16, patience: 2 * time.Second}
)

var errOverloaded = secret.Errorf(secret.CodeOverloaded, "too many requests are under way; try again later or ask another peer")

// line is one identity's part.
type line struct {
	who     string
	running int
	tickets []*ticket
}

// ticket is a request that waits; its channel is closed when it may run.
type ticket struct{ granted chan struct{} }

func newAdmission(l limits) *admission {
	return &admission{limits: l, callers: map[string]*line{}}
}

// enter returns when a request of who may run; who got true calls leave
// afterwards. It is false when there are too many, or when ctx ends.
func (a *admission) enter(ctx context.Context, who string) bool {
	t, ok := a.request(who)
	if t == nil {
		return ok
	}
	timer := time.NewTimer(a.limits.patience)
	defer timer.Stop()
	select {
	case <-t.granted:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return !a.withdraw(who, t) && a.keep(ctx, who)
}

// request lets a request run (true), makes it wait (a ticket) or refuses it.
func (a *admission) request(who string) (*ticket, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.callers[who]
	if l == nil {
		l = &line{who: who}
	}
	switch {
	case a.running < a.limits.all && l.running < a.limits.each:
		// Who waits now has as many running as one may: see grant.
		a.callers[who] = l
		a.running++
		l.running++
		return nil, true
	case a.waiting >= a.limits.waiting || len(l.tickets) >= a.limits.ofEach:
		return nil, false
	}
	a.callers[who] = l
	if len(l.tickets) == 0 {
		a.turns = append(a.turns, l)
	}
	t := &ticket{make(chan struct{})}
	l.tickets = append(l.tickets, t)
	a.waiting++
	return t, true
}

// withdraw takes t out of its line; false when it was granted just now.
func (a *admission) withdraw(who string, t *ticket) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.callers[who]
	if l == nil {
		return false
	}
	for i, other := range l.tickets {
		if other == t {
			l.tickets = append(l.tickets[:i], l.tickets[i+1:]...)
			a.waiting--
			if len(l.tickets) == 0 {
				a.forgetTurn(l)
			}
			a.forget(l)
			return true
		}
	}
	return false
}

// keep decides on a place that was granted to a request at its last moment.
func (a *admission) keep(ctx context.Context, who string) bool {
	if ctx.Err() == nil {
		return true
	}
	a.leave(who)
	return false
}

// leave ends a request that ran, and gives its place away.
func (a *admission) leave(who string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.callers[who]
	a.running--
	l.running--
	a.grant()
	a.forget(l)
}

// grant lets run who may, line after line. Afterwards there is no free place, or
// each line that waits has as many running as it may.
func (a *admission) grant() {
	for skipped := 0; a.running < a.limits.all && skipped < len(a.turns); {
		l := a.turns[0]
		a.turns = a.turns[1:]
		if l.running >= a.limits.each {
			a.turns = append(a.turns, l)
			skipped++
			continue
		}
		skipped = 0
		t := l.tickets[0]
		l.tickets = l.tickets[1:]
		a.waiting--
		a.running++
		l.running++
		close(t.granted)
		if len(l.tickets) > 0 {
			a.turns = append(a.turns, l)
		}
	}
}

func (a *admission) forgetTurn(l *line) {
	for i, other := range a.turns {
		if other == l {
			a.turns = append(a.turns[:i], a.turns[i+1:]...)
			return
		}
	}
}

func (a *admission) forget(l *line) {
	if l.running == 0 && len(l.tickets) == 0 {
		delete(a.callers, l.who)
	}
}

// load is how many requests run and wait.
func (a *admission) load() (running, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running, a.waiting
}

// admit finds a place for r; leave must be called when it is over, unless there
// was none.
func (s *Server) admit(r *http.Request) (leave func(), ok bool) {
	a, who := s.requests, caller(r)
	switch {
	case forOperators(r):
		a = s.operators
	case r.URL.EscapedPath() == client.RouteSecretWatch:
		a = s.watches.admission
	case isStream(r):
		a = s.streams
	}
	if ok = a.enter(r.Context(), who); !ok {
		a.refused.Add(1)
	}
	return func() { a.leave(who) }, ok
}

// forOperators tells the routes that must answer when the others do not.
func forOperators(r *http.Request) bool {
	return strings.HasPrefix(r.URL.EscapedPath(), client.RoutesOfOperators)
}

// caller names who is counted: the identity in the certificate that the
// handshake has verified.
func caller(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.PeerCertificates[0].URIs) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].URIs[0].String()
}
