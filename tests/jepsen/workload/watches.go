package workload

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Watches changes and deletes secrets, and hears of it at every peer.
func Watches() Workload {
	return Workload{Name: "watches", PerPeer: 2, Kinds: []string{"write", "delete", "begin", "watch"}, Final: "watch",
		Check: []check.Checker{check.Watches},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			if p.ID%2 == 0 { // numbers are given in turn, so that each peer has one that watches
				w := &watching{Process: p}
				return w.step, w.final, nil
			}
			last := ""
			return func(ctx context.Context) {
				key := fmt.Sprintf("watches/%d/%d", epoch(p.Recorder, time.Second), p.Random.IntN(4))
				if last != "" && p.Random.IntN(3) == 0 {
					p.remove(ctx, last)
				} else {
					last = key
					p.write(ctx, "write", key, p.unique(), "", history.AnyVersion)
				}
			}, func(context.Context) {}, nil
		}}
}

type watching struct {
	*Process
	watch  *client.Watcher // nil: to be begun
	stream string          // from a beginning on nothing may be missed
}

// step hears of the next changes. Of these operations In and Version are the indices between which Out has all.
func (w *watching) step(ctx context.Context) {
	if w.watch == nil {
		w.stream = w.unique()
		w.do(ctx, history.Op{F: "begin", Key: w.stream}, func(ctx context.Context, op *history.Op) (err error) {
			if w.watch, err = w.Client.Watch(ctx, client.WatchOptions{Prefix: path("watches/")}); err == nil {
				op.Version = int(w.watch.Index())
			}
			return err
		})
		return
	}
	w.hear(ctx, 0)
}

// hear goes on until the watch has come to an index.
func (w *watching) hear(ctx context.Context, until uint64) {
	w.do(ctx, history.Op{F: "watch", Key: w.stream, In: fmt.Sprint(w.watch.Index())}, func(ctx context.Context, op *history.Op) error {
		var heard []string
		for {
			events, err := w.watch.Next(ctx)
			if secret.CodeOf(err) == secret.CodeForgotten {
				w.watch = nil
			}
			if err != nil {
				return err
			}
			for _, e := range events {
				heard = append(heard, fmt.Sprintf("%d %s %s %v", e.Index, e.Kind, strings.TrimPrefix(e.Path, path("")), e.Versions))
			}
			if op.Version = int(w.watch.Index()); uint64(op.Version) >= until {
				op.Out = strings.Join(heard, ",")
				return nil
			}
		}
	})
}

// final hears all that there was, up to a change of its own; where peers do not reach back so far any more, that change alone.
func (w *watching) final(ctx context.Context) {
	for range 2 {
		if w.watch == nil {
			w.step(ctx)
		}
		last := w.write(ctx, "write", "watches/final", w.unique(), "", history.AnyVersion)
		if w.watch == nil || last.Outcome != history.OK {
			return
		}
		if w.hear(ctx, last.Index); w.watch != nil {
			return
		}
	}
}
