package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
)

// Bounds of one call of Watch. A batch ends with the first entry that makes it
// as long as that: an entry is never parted.
const (
	MaxWatchWait = 20 * time.Second
	batchEvents  = 1000
	batchBytes   = 256 << 10
)

// WatchQuery asks for the changes of one secret (Path), or of all whose paths
// begin with Prefix, "" for all of them.
type WatchQuery struct {
	Path, Prefix string
	// After is the index after which changes are wanted: that of an answer; 0: from
	// now on.
	After uint64
	// Incarnation is that of the cluster when it gave out After; 0: not checked.
	Incarnation uint64
	// Wait is how long to wait for a change, at most MaxWatchWait.
	Wait time.Duration
}

func (q WatchQuery) scope() scope {
	if q.Path != "" {
		return scope{q.Path, false}
	}
	return scope{q.Prefix, true}
}

// Batch is all that happened after WatchQuery.After up to Index, as far as the
// caller may see it: whole entries, in the order of the log, the same on all
// peers. The next watch goes on after Index.
type Batch struct {
	Events      []Event
	Index       uint64
	Incarnation uint64
}

// Watch returns the next changes, waiting for one if there is none. Each batch
// is decided on a view that a read-index round gave after the last of its events
// was published, so a revocation ends a watch.
//
// A watch of one path takes the right "read" on it, as its metadata does. One of a
// prefix takes what a list of it takes, and shows a change only to who may list
// and read the path: nothing that list and metadata would not tell.
//
// CodeForgotten: this peer does not reach back to After, another may; or the
// cluster was recovered since. CodeInvalid with the reason "foreign_index": After
// lies in the future. A context that ends with a cause of type *secret.Error
// ends the watch with that error.
func (s *Store) Watch(ctx context.Context, r Request, q WatchQuery) (Batch, error) {
	timer := time.NewTimer(min(q.Wait, MaxWatchWait))
	defer timer.Stop()
	cursor, last := q.After, q.Wait <= 0
	for {
		p, err := s.freshWithin(ctx)
		if ctx.Err() != nil {
			return Batch{}, ended(ctx)
		}
		sc := q.scope()
		if err != nil {
			return Batch{}, s.refuse(r, "secret.watch", sc.text, err)
		}
		by, sees := p.watchable(r.Caller, q)
		if sees == nil {
			r.saw(p.view.Index())
			return Batch{}, s.deny(r, "secret.watch", sc.text, p)
		}
		if err := s.resumable(p, q, cursor); err != nil {
			r.saw(p.view.Index())
			return Batch{}, s.refuse(r, "secret.watch", sc.text, err)
		}
		if cursor == 0 {
			cursor = p.view.Index()
		}
		batch := p.batch(sc, cursor, sees)
		if len(batch.Events) > 0 || last {
			_, batch.Incarnation = s.cluster(p)
			r.saw(batch.Index)
			if err := s.recordBatch(r, sc, by, batch, p); err != nil {
				return Batch{}, err
			}
			return batch, nil
		}
		cursor = batch.Index
		w, ok := s.wait(sc, p)
		if !ok {
			continue
		}
		select {
		case <-w.woken:
		case <-timer.C:
			last = true // with one more round, so that its index is new
		case <-ctx.Done():
		}
		cursor = s.watchers.leave(w)
	}
}

func (s *Store) freshWithin(ctx context.Context) (*published, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.fresh(ctx)
}

// ended says why a watch ends before its time.
func ended(ctx context.Context) error {
	var why *secret.Error
	if errors.As(context.Cause(ctx), &why) {
		return why
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "the watch was given up", Cause: ctx.Err()}
}

// watchable decides on a watch; sees, nil for a denial, tells which changes it shows.
func (p *published) watchable(caller secret.Caller, q WatchQuery) (by string, sees func(secret.Path) bool) {
	if q.Path != "" {
		if d := p.policies.Decide(caller, secret.Read, decidable(q.Path)); d.Allowed {
			return d.By, func(secret.Path) bool { return true }
		}
		return "", nil
	}
	reads := func(path secret.Path) bool { return p.policies.Decide(caller, secret.Read, path).Allowed }
	if d := p.policies.Decide(caller, secret.List, secret.SystemSecrets); d.Allowed {
		return d.By, reads
	}
	if p.policies.Reaches(caller, secret.List) {
		return "policies", func(path secret.Path) bool {
			return p.policies.Decide(caller, secret.List, path).Allowed && reads(path)
		}
	}
	return "", nil
}

// resumable checks what is asked for, after the caller is known to be allowed.
func (s *Store) resumable(p *published, q WatchQuery, cursor uint64) error {
	switch _, incarnation := s.cluster(p); {
	case q.Path != "" && q.Prefix != "":
		return secret.Invalid("prefix", "give a path or a prefix, not both")
	case q.Incarnation != 0 && q.Incarnation != incarnation:
		return &secret.Error{Code: secret.CodeForgotten, Reason: "other_incarnation",
			Message: "the cluster was recovered since that index, and may have lost changes; list or read anew, then watch from the index of that answer"}
	case cursor > p.view.Index():
		return &secret.Error{Code: secret.CodeInvalid, Subject: "after", Reason: "foreign_index", Message: "this cluster has not come to that index yet; take one from its own answers"}
	case cursor != 0 && cursor < p.feed.floor:
		return &secret.Error{Code: secret.CodeForgotten,
			Message: "this peer does not keep the changes since that index any more; list or read anew, then watch from the index of that answer"}
	}
	var err error
	if q.Path != "" {
		_, err = secret.ParsePath(q.Path)
	} else {
		_, err = secret.ParsePrefix(q.Prefix)
	}
	return err
}

// batch collects what happened in sc after an index and is to be seen.
func (p *published) batch(sc scope, after uint64, sees func(secret.Path) bool) Batch {
	b, size := Batch{Index: p.view.Index()}, 0
	for _, e := range p.feed.after(after) {
		if n := len(b.Events); n > 0 && e.Index > b.Events[n-1].Index && (n >= batchEvents || size >= batchBytes) {
			b.Index = b.Events[n-1].Index
			break
		}
		if sc.covers(e.Path) && sees(e.Path) {
			b.Events = append(b.Events, e)
			size += e.size()
		}
	}
	return b
}

// recordBatch puts a batch on record. An empty one says that nothing happened:
// that is on record once, then again when the policies changed or watchedAgain is over.
func (s *Store) recordBatch(r Request, sc scope, by string, b Batch, p *published) error {
	detail, empty := "no events", watch{r.Caller.ID, sc, p.view.PolicyRevision()}
	if n := len(b.Events); n > 0 {
		detail = fmt.Sprintf("%d events of indexes %d to %d", n, b.Events[0].Index, b.Events[n-1].Index)
	} else if s.watched.recently(empty, s.cfg.Now()) {
		return nil
	}
	err := s.record(r, audit.Record{Op: "secret.watch", Phase: audit.PhaseDecision, Path: sc.text, Decision: audit.Allow,
		By: by, Index: p.view.Index(), Detail: detail}, false)
	if err == nil && len(b.Events) == 0 {
		s.watched.note(empty, s.cfg.Now())
	}
	return err
}

const (
	watchedAgain = time.Hour
	maxWatched   = 4096
)

// watched knows which watches without events are on record. What it forgets is
// recorded again.
type watched struct {
	mu    sync.Mutex // guards what follows
	since map[watch]time.Time
}

type watch struct {
	caller string
	scope
	policyRevision uint64
}

func (k *watched) recently(w watch, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, ok := k.since[w]
	return ok && now.Sub(since) < watchedAgain
}

func (k *watched) note(w watch, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.since == nil || len(k.since) >= maxWatched {
		k.since = map[watch]time.Time{}
	}
	k.since[w] = now
}
