// Package workload is what clients do to a cluster that is attacked. A workload
// makes operations, records them, and names the checkers that judge them. One
// operation may take several requests: what was answered last counts.
package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Clients makes a client of a SPIFFE path that asks one peer, or any.
type Clients func(path string, peer int, with ...func(*client.Config)) (*client.Client, error)

// Process does one operation at a time.
type Process struct {
	ID, Peer int
	Client   *client.Client // a superuser's
	Random   *rand.Rand
	Recorder *history.Recorder
	Workload string
	Attempt  time.Duration // bounds one operation; 0: what is usual
	Local    bool          // its reads are of level "index"
	Final    bool          // reads after the last fault is over
	count    int
}

const (
	// attempt bounds one operation, where nothing else is said.
	attempt = 1500 * time.Millisecond
	// breath is the pause after one of unknown outcome: each doubles what a checker has to try, so there are few of them
	// while nobody answers.
	breath = 300 * time.Millisecond
)

// do makes and records an operation.
func (p *Process) do(ctx context.Context, op history.Op, do func(context.Context, *history.Op) error) history.Op {
	op.Workload, op.Process, op.Peer, op.Final = p.Workload, p.ID, p.Peer, p.Final
	op.Local = p.Local && op.F == "read"
	limit := cmp.Or(p.Attempt, attempt)
	if p.Final {
		limit = 20 * time.Second
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	op = p.Recorder.Do(op, func(op *history.Op) {
		err := do(limited, op)
		switch {
		case err == nil:
			op.Outcome = history.OK
		case secret.CodeOf(err) == secret.CodeUnknown:
			op.Outcome, op.Error, op.Codes = history.Unknown, err.Error(), codes(err)
		default:
			op.Outcome, op.Error, op.Codes = history.Failed, err.Error(), codes(err)
		}
	})
	if op.Outcome == history.Unknown && !p.Final {
		select {
		case <-ctx.Done():
		case <-time.After(breath):
		}
	}
	return op
}

// codes are those of an error and of all its causes: one of unknown outcome may have been refused in the end. That our own time
// was up is nobody's refusal.
func codes(err error) string {
	var list []string
	var e *secret.Error
	for cause := err; errors.As(cause, &e); cause = e.Cause {
		if unidentified(e) {
			list = append(list, "unidentified")
		} else {
			list = append(list, string(e.Code))
		}
	}
	if len(list) == 0 && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		list = append(list, string(secret.CodeOf(err)))
	}
	return strings.Join(slices.Compact(list), " ")
}

// unidentified tells that a peer did not know who asked, because the SVID of the connection had ended: nothing was decided. The message
// alone says so.
func unidentified(err error) bool {
	return secret.CodeOf(err) == secret.CodeDenied && strings.Contains(err.Error(), "the connection's SVID")
}

// unique is a value that nobody else uses.
func (p *Process) unique() string {
	p.count++
	return fmt.Sprintf("%d-%d", p.ID, p.count)
}

// Workload is one kind of load.
type Workload struct {
	Name string
	// Kinds are those of answered operations without which it shows nothing: see check.Enough.
	Kinds []string
	// Final is the operation that each process asks for in its last look, or "": one of each peer must be answered.
	Final string
	// PerPeer is how many processes ask each peer; as many ask anybody.
	PerPeer int
	// Setup is done once, before any process.
	Setup func(ctx context.Context, p *Process) error
	// New makes what a process does again and again, and at the end for a last look.
	New   func(p *Process, clients Clients) (step, final func(context.Context), err error)
	Check []check.Checker
	// Operators says that the checkers see what operators did, too.
	Operators bool
}

// All are the ordinary workloads, which may all run at once.
func All() []Workload {
	return []Workload{Registers(), Lists(), Sets(), Bank(), Deletions(), Grants(), Watches(), Sessions()}
}

// looks is how many keys of the past a process reads at the end.
const looks = 40

// earlier is the number of an epoch that is over, whichever: what a fault or a snapshot that came after it has done to its keys,
// nobody sees who reads only the newest ones. A step in ten or so asks for one, so that histories stay short.
func (p *Process) earlier(every time.Duration) (int, bool) {
	now := epoch(p.Recorder, every)
	if now == 0 || p.Random.IntN(10) > 0 {
		return 0, false
	}
	return p.Random.IntN(now), true
}

// past draws numbers below n, spread over all of them.
func (p *Process) past(n int) (list []int) {
	many := min(n, looks)
	for i := range many {
		from, to := n*i/many, n*(i+1)/many
		list = append(list, from+p.Random.IntN(to-from))
	}
	return list
}

// Find are the workloads of some names; without any name, the ordinary ones.
func Find(names ...string) (list []Workload, err error) {
	if len(names) == 0 {
		return All(), nil
	}
	all := append(All(), Restored())
	for _, name := range names {
		i := slices.IndexFunc(all, func(w Workload) bool { return w.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no workload %q", name)
		}
		list = append(list, all[i])
	}
	return list, nil
}

// epoch is a number that changes each second or so, so that no key has a long history.
func epoch(r *history.Recorder, every time.Duration) int { return int(r.Now() / every) }
