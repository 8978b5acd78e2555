package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/store"
)

// Watches have places of their own, because waiting is what they do: they must
// not take those of requests that work.
var watchLimits = limits{all: 1024, each: 256}

// watchBodyLimit is room for the longest path, each byte of it escaped: many
// requests wait for long, and hold what they were sent meanwhile.
const watchBodyLimit = 8 << 10

// watches bounds the watches under way, and ends them together.
type watches struct {
	admission *admission

	mu  sync.Mutex // guards what follows
	all context.Context
	end context.CancelCauseFunc // of all
}

func newWatches(l limits) *watches {
	w := &watches{admission: newAdmission(l)}
	w.all, w.end = context.WithCancelCause(context.Background())
	return w
}

// begin makes the context of one watch; the caller runs done at its end.
func (w *watches) begin(ctx context.Context) (_ context.Context, done func()) {
	w.mu.Lock()
	all := w.all
	w.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(all, func() { cancel(context.Cause(all)) })
	return ctx, func() { stop(); cancel(nil) }
}

// close ends all watches, for good.
func (w *watches) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(errDraining)
}

// EndWatches sends the clients that wait here to another peer. While the server
// is draining it begins no watch either.
func (s *Server) EndWatches() {
	w := s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(errDraining)
	w.all, w.end = context.WithCancelCause(context.Background())
}

// Watches is how many watches are under way.
func (s *Server) Watches() int {
	running, _ := s.watches.admission.load()
	return running
}

// watch is a long poll: it answers with the next changes, or with none when the
// wait is over. It keeps nothing between two requests, so that the next one may
// go to any peer.
func (s *Server) watch() http.HandlerFunc {
	return postUpTo(s, watchBodyLimit, func(ctx context.Context, r store.Request, q client.WatchRequest) (client.WatchAnswer, error) {
		ctx, done := s.watches.begin(ctx)
		defer done()
		if leaving, _ := s.draining(); leaving { // asked after begin, so that EndWatches finds it, or this does
			return client.WatchAnswer{}, errDraining
		}
		batch, err := s.cfg.Store.Watch(ctx, r, store.WatchQuery{Path: q.Path, Prefix: q.Prefix, After: q.After, Incarnation: q.Incarnation,
			Wait: time.Duration(q.WaitSeconds) * time.Second})
		answer := client.WatchAnswer{Events: make([]client.Event, len(batch.Events)), Index: batch.Index, Incarnation: batch.Incarnation}
		for i, e := range batch.Events {
			answer.Events[i] = client.Event{Index: e.Index, Time: e.Time, Kind: string(e.Kind), Path: string(e.Path), Versions: e.Versions}
		}
		return answer, err
	})
}
