package workload

import (
	"context"
	"strings"
	"sync"

	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// recent is how many of the newest elements are read one by one: some are older than what a restore goes back to.
const recent = 512

// Restored adds secrets, reads them one by one, whoever added them, and lists them all, while operators take the whole state back. Other workloads
// would call that a loss.
func Restored() Workload {
	var mu sync.Mutex // guards newest
	var newest []string
	return Workload{Name: "restored", PerPeer: 3, Operators: true, Kinds: []string{"add", "read", "list"}, Final: "list", Check: []check.Checker{check.Restored},
		Setup: func(ctx context.Context, p *Process) error { // what takes a restore several entries of the log
			for range 6 {
				e := "restored/" + p.unique()
				if op := p.write(ctx, "add", e, e, strings.Repeat("x", 200<<10), history.AnyVersion); op.Outcome != history.OK {
					return op.Undone()
				}
			}
			return nil
		},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			add := func(ctx context.Context) {
				e := "restored/" + p.unique()
				if op := p.write(ctx, "add", e, e, e, history.AnyVersion); op.Outcome == history.Failed {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				newest = append(newest, e)
				newest = newest[max(0, len(newest)-recent):]
			}
			some := func() string {
				mu.Lock()
				defer mu.Unlock()
				if len(newest) == 0 {
					return "restored/none"
				}
				return newest[p.Random.IntN(len(newest))]
			}
			return func(ctx context.Context) {
				switch n := p.Random.IntN(40); {
				case n == 0:
					p.list(ctx, "restored")
				case n < 20:
					p.read(ctx, some())
				default:
					add(ctx)
				}
			}, func(ctx context.Context) { p.list(ctx, "restored") }, nil
		}}
}
