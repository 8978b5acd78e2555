package node

import (
	"context"
	"sync"

	"github.com/spike-ha/spike-ha/secret"
)

// errand is work that may outlast the requests that ask for it: it goes on when
// they end, and who asks again by the same id waits for the same outcome. One at
// a time.
type errand[R any] struct {
	mu     sync.Mutex
	id     [16]byte
	done   chan struct{} // of the last one; nil: there was none
	result R             // once done is closed
	err    error
}

// do begins work, unless it was begun under that id, and waits for its outcome
// until ctx ends; finished is false when it goes on. start runs it.
func (e *errand[R]) do(ctx context.Context, id [16]byte, start func(func()), work func() (R, error)) (result R, finished bool, err error) {
	done, err := e.begin(id, start, work)
	if err != nil {
		return result, false, err
	}
	select {
	case <-done:
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.id != id { // it was over, and the next one began
			return result, false, nil
		}
		return e.result, true, e.err
	case <-ctx.Done():
		return result, false, nil
	}
}

func (e *errand[R]) begin(id [16]byte, start func(func()), work func() (R, error)) (done chan struct{}, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	running := false
	if e.done != nil {
		select {
		case <-e.done:
		default:
			running = true
		}
	}
	switch {
	case e.done != nil && e.id == id:
		return e.done, nil
	case running:
		return nil, &secret.Error{Code: secret.CodeConflict, Reason: "under_way", Message: "this peer does that already for somebody else; ask again when it is done"}
	}
	done = make(chan struct{})
	e.id, e.done = id, done
	start(func() {
		result, err := work()
		e.mu.Lock()
		e.result, e.err = result, err
		e.mu.Unlock()
		close(done)
	})
	return done, nil
}
