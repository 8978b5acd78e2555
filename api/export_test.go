package api

import (
	"context"
	"time"
)

// For the tests, which are outside the package.
var (
	Decode       = decode
	ParseWriteID = parseWriteID
	ParseKey     = parseKey
	HealthStatus = healthStatus
)

// SetLimits replaces the bounds on requests that run at once and that wait, in
// all and of each identity, before Serve.
func (s *Server) SetLimits(all, each, waiting, ofEach int) {
	s.requests = newAdmission(limits{all, each, waiting, ofEach, time.Minute})
}

// Line is an admission by itself.
type Line struct{ a *admission }

func NewLine(all, each, waiting, ofEach int) Line {
	return Line{newAdmission(limits{all, each, waiting, ofEach, time.Hour})}
}

// Request lets who's request run (true), makes it wait (a channel) or refuses it.
func (l Line) Request(who string) (<-chan struct{}, bool) {
	t, ok := l.a.request(who)
	if t != nil {
		return t.granted, true
	}
	return nil, ok
}
func (l Line) Leave(who string)             { l.a.leave(who) }
func (l Line) Load() (running, waiting int) { return l.a.load() }

// GiveUp withdraws who's request that waits for granted.
func (l Line) GiveUp(who string, granted <-chan struct{}) bool {
	l.a.mu.Lock()
	var found *ticket
	if line := l.a.callers[who]; line != nil {
		for _, t := range line.tickets {
			if t.granted == granted {
				found = t
			}
		}
	}
	l.a.mu.Unlock()
	return l.a.withdraw(who, found)
}

// Keep is what a request does that was granted its place when it gave up.
func (l Line) Keep(ctx context.Context, who string) bool { return l.a.keep(ctx, who) }

// Lines is how many identities it knows, and how many of them wait for their turn.
func (l Line) Lines() (callers, turns int) {
	l.a.mu.Lock()
	defer l.a.mu.Unlock()
	return len(l.a.callers), len(l.a.turns)
}

// SetWatchLimits replaces the bounds on watches, before Serve.
func (s *Server) SetWatchLimits(all, each int) { s.watches = newWatches(limits{all: all, each: each}) }

// SetStreamDefaults replaces the bounds on streams, how long a client may take for a
// chunk, and for any other request, at servers made until undo is called.
func SetStreamDefaults(all, each int, patience, others time.Duration) (undo func()) {
	l, p, r, w := streamLimits, streamPatience, readTimeout, writeTimeout
	streamLimits, streamPatience, readTimeout, writeTimeout = limits{all: all, each: each}, patience, others, others
	return func() { streamLimits, streamPatience, readTimeout, writeTimeout = l, p, r, w }
}

// SetTimeouts replaces the server's patience, before Serve.
func (s *Server) SetTimeouts(header, read, write, idle time.Duration) {
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.WriteTimeout, s.http.IdleTimeout = header, read, write, idle
}
