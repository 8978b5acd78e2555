package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/store"
)

// How often somebody who waits for a restore is told how far it is, and how often
// he hears something in any case.
const (
	restoreTells  = 200 * time.Millisecond
	restoreBreath = 5 * time.Second
)

// restoreLive answers with lines: it may take longer than a request may. What fails
// before the first line is answered as everywhere. A client that leaves ends the
// restore, as long as it is not committed.
func (s *Server) restoreLive() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, ok := s.begin(w, r, http.MethodPost)
		if !ok {
			return
		}
		body, err := readBody(w, r, s.cfg.BodyLimit)
		if err != nil {
			s.sendFailure(w, request, err)
			return
		}
		var q client.RestoreArchiveRequest
		if err := decode(body, &q, true); err != nil {
			s.sendFailure(w, request, err)
			return
		}
		ctx, done := s.watches.begin(r.Context()) // draining and stopping end it
		defer done()
		l := &restoreLines{s: s, w: w, request: request, control: http.NewResponseController(w)}
		_ = l.control.SetReadDeadline(time.Time{}) // the client has said all that it has to say
		plan, err := l.run(ctx, q)
		if err == nil {
			l.send(client.RestoreLine{Plan: restorePlanAnswer(plan)})
			return
		}
		if !l.begun {
			_ = l.control.SetWriteDeadline(time.Now().Add(writeTimeout))
			s.sendFailure(w, request, err)
			return
		}
		e, _ := lookup(err)
		s.logInternal(request.ID, e)
		l.send(client.RestoreLine{Failure: &client.Failure{Code: e.Code, Message: e.Error(), Reason: e.Reason, Request: request.ID}})
	}
}

// restoreLines is the answer while it grows. Its fields belong to the handler's goroutine.
type restoreLines struct {
	s       *Server
	w       http.ResponseWriter
	request store.Request
	control *http.ResponseController
	begun   bool
}

// run does the work in a goroutine of its own, and tells how far it is meanwhile.
func (l *restoreLines) run(ctx context.Context, q client.RestoreArchiveRequest) (plan store.RestorePlan, err error) {
	var mu sync.Mutex // guards step
	var step store.RestoreStep
	tell := func(s store.RestoreStep) {
		mu.Lock()
		defer mu.Unlock()
		step = s
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		target := store.RestoreTarget{Incarnation: q.Incarnation, Index: q.Index, Time: q.Time}
		if q.Confirm == "" {
			plan, err = l.s.cfg.Store.PlanRestore(ctx, l.request, target, tell)
		} else {
			plan, err = l.s.cfg.Store.RestoreLive(ctx, l.request, target, q.Confirm, tell)
		}
	}()
	tick := time.NewTicker(restoreTells)
	defer tick.Stop()
	var told store.RestoreStep
	last := time.Now()
	for {
		select {
		case <-done:
			return plan, err
		case <-tick.C:
		}
		mu.Lock()
		now := step
		mu.Unlock()
		if now != told && now.Step != "" || time.Since(last) > restoreBreath {
			told, last = now, time.Now()
			l.send(client.RestoreLine{Step: now.Step, Done: now.Done, Total: now.Total})
		}
	}
}

// send sends a line; a client that has gone is noticed by the request's context.
func (l *restoreLines) send(line client.RestoreLine) {
	_ = l.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if !l.begun {
		l.begun = true
		l.s.stamp(l.w, l.request)
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.Header().Set("Cache-Control", "no-store")
		l.w.WriteHeader(http.StatusOK)
	}
	b, err := json.Marshal(line)
	if err == nil {
		_, err = l.w.Write(append(b, '\n'))
	}
	if err == nil {
		_ = l.control.Flush()
	}
}

func restorePlanAnswer(p store.RestorePlan) *client.RestorePlan {
	a := &client.RestorePlan{Code: p.Code, Incarnation: p.Incarnation, Index: p.Index, Snapshot: p.Snapshot, SnapshotIndex: p.SnapshotIndex, Entries: p.Entries,
		Secrets: p.Secrets, Versions: p.Versions, Policies: p.Policies, LiveIndex: p.LiveIndex, LiveSecrets: p.LiveSecrets, LivePolicies: p.LivePolicies,
		SecretChanges: client.RecordChanges(p.SecretChanges), PolicyChanges: client.RecordChanges(p.PolicyChanges), RestoredAt: p.Done}
	if p.Snapshot != "" {
		a.DataHash = hex.EncodeToString(p.DataHash[:])
	}
	if !p.Time.IsZero() {
		a.Stored = &p.Time
	}
	if !p.LiveTime.IsZero() {
		a.NewestChange = &p.LiveTime
	}
	return a
}
