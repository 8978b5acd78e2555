package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// WatchOptions say what a Watcher is about: the secret at Path, or all whose
// paths begin with Prefix.
type WatchOptions struct {
	Path, Prefix string
	// After is the index of an answer of the cluster: every change after it is
	// told. 0: from now on.
	After uint64
}

// watchWait is how long a peer is asked to wait for a change. A peer that has
// frozen is noticed this much later than in other calls.
const watchWait = 10 * time.Second

// Watcher hears of changes. One goroutine at a time may use it.
type Watcher struct {
	c       *Client
	request WatchRequest
}

// Watch begins a watch. When it returns, every change that is acknowledged from
// now on, or that came after o.After, will be told by Next: once, in order, and
// whichever peers answer. The errors are those of Next.
func (c *Client) Watch(ctx context.Context, o WatchOptions) (*Watcher, error) {
	w := &Watcher{c: c, request: WatchRequest{Path: o.Path, Prefix: o.Prefix, After: o.After}}
	answer, err := w.poll(ctx)
	if err != nil {
		return nil, err
	}
	if o.After == 0 { // else Next asks for the same again
		w.advance(answer)
	}
	return w, nil
}

// Index is the one after which Next goes on; a new watch may begin there.
func (w *Watcher) Index() uint64 { return w.request.After }

func (w *Watcher) advance(answer WatchAnswer) {
	w.request.After, w.request.Incarnation = answer.Index, answer.Incarnation
}

// Next waits for the next changes; there is at least one. Until they are
// returned they are not lost: after an error, Next may be called again.
//
// The errors: secret.CodeForgotten when no peer reaches back to the index: list
// or read anew, then begin a watch from the index of that answer;
// secret.CodeDenied when the right was revoked; that of ctx when it ended; and as
// of every call when no peer answered for the Client's Patience.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	w.request.WaitSeconds = uint32(watchWait / time.Second)
	for {
		answer, err := w.poll(ctx)
		if err != nil {
			return nil, err
		}
		w.advance(answer)
		if len(answer.Events) > 0 {
			return answer.Events, nil
		}
	}
}

// poll asks peers until one answers.
func (w *Watcher) poll(ctx context.Context) (answer WatchAnswer, err error) {
	body, err := json.Marshal(w.request)
	if err != nil {
		return answer, err
	}
	c := w.c
	patience, cancel := context.WithTimeout(ctx, c.cfg.Patience+watchWait)
	defer cancel()
	forgot := map[int]bool{} // peers that do not reach back so far
	var told error           // what a peer said last, "forgotten" before all else
	for try := 0; ; try++ {
		at := (int(c.prefer.Load()) + try) % len(c.peers)
		status, got, err := c.attemptWithin(patience, c.cfg.Attempt+time.Duration(w.request.WaitSeconds)*time.Second, c.peers[at], http.MethodPost, RouteSecretWatch, body, "")
		if err == nil && status == http.StatusOK {
			if try > 0 {
				c.prefer.Store(uint32(at))
			}
			if json.Unmarshal(got, &answer) != nil || answer.Index < w.request.After {
				return answer, secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
			}
			return answer, nil
		}
		if err == nil {
			err = failure(status, got)
			if secret.CodeOf(told) != secret.CodeForgotten {
				told = err
			}
		}
		switch secret.CodeOf(err) {
		case secret.CodeForgotten: // others may: each began to keep changes when it got its keys
			if forgot[at] = true; len(forgot) == len(c.peers) {
				return answer, err
			}
		case secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded:
		default:
			return answer, err
		}
		if !pause(patience, try, len(c.peers)) {
			switch {
			case ctx.Err() != nil:
				return answer, ctx.Err()
			case told != nil:
				return answer, told
			}
			return answer, unavailable(err)
		}
	}
}
