package workload

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

const (
	accounts = 5
	deposit  = 100 // in each at first
)

func account(i int) string { return fmt.Sprintf("bank/%d", i) }

type balance struct {
	amount  int
	version secret.Version
}

func balanceOf(ctx context.Context, c *client.Client, i int) (b balance, err error) {
	values, answer, err := c.Get(ctx, account(i), 0)
	if err != nil {
		return b, err
	}
	b.version = answer.Version
	b.amount, err = strconv.Atoi(values["v"])
	return b, err
}

// put is a deposit in place of a version.
func put(i, amount int, v secret.Version) client.Operation {
	return client.Operation{Op: "put", Path: account(i), Values: map[string]string{"v": strconv.Itoa(amount)}, ExpectedVersion: &v}
}

// versions are those that a transaction has made.
func versions(answer client.TransactAnswer) string {
	var list []string
	for _, o := range answer.Operations {
		list = append(list, strconv.Itoa(int(o.Version)))
	}
	return strings.Join(list, ",")
}

// errMoved: somebody moved money between the two looks at all accounts.
var errMoved = secret.Errorf(secret.CodeConflict, "the accounts did not stand still")

// Bank moves money between secrets, in transactions that expect the versions of both, and reads all of them at once: twice in a
// row, and when no version has moved in between, that is what there was at one time. Of a read, Version is the sum of all versions.
func Bank() Workload {
	read := func(ctx context.Context, p *Process) {
		p.do(ctx, history.Op{F: "read"}, func(ctx context.Context, op *history.Op) error {
			look := func() (list []balance, err error) {
				for i := range accounts {
					b, err := balanceOf(ctx, p.Client, i)
					if err != nil {
						return nil, err
					}
					list = append(list, b)
				}
				return list, nil
			}
			for try := 1; ; try++ {
				first, err := look()
				if err != nil {
					return err
				}
				second, err := look()
				switch {
				case err != nil:
					return err
				case slices.Equal(first, second):
					var out []string
					for _, b := range first {
						out = append(out, strconv.Itoa(b.amount))
						op.Version += int(b.version)
					}
					op.Out = strings.Join(out, ",")
					return nil
				case try == 3 && !p.Final:
					return errMoved
				}
			}
		})
	}
	return Workload{Name: "bank", PerPeer: 1, Kinds: []string{"read", "transfer"}, Final: "read",
		Check: []check.Checker{check.Bank(accounts, accounts*deposit)},
		Setup: func(ctx context.Context, p *Process) error {
			op := p.do(ctx, history.Op{F: "setup"}, func(ctx context.Context, op *history.Op) error {
				var all []client.Operation
				for i := range accounts {
					all = append(all, put(i, deposit, 0))
				}
				answer, err := p.Client.Transact(ctx, all...)
				if secret.CodeOf(err) == secret.CodeConflict {
					return nil // an earlier try has done it
				}
				op.Index, op.Out = answer.Index, versions(answer)
				return err
			})
			return op.Undone()
		},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			return func(ctx context.Context) {
				if p.Random.IntN(3) > 0 {
					read(ctx, p)
					return
				}
				from := p.Random.IntN(accounts)
				to := (from + 1 + p.Random.IntN(accounts-1)) % accounts
				p.do(ctx, history.Op{F: "transfer", Key: fmt.Sprintf("%d>%d", from, to)}, func(ctx context.Context, op *history.Op) error {
					a, err := balanceOf(ctx, p.Client, from)
					if err != nil {
						return err
					}
					b, err := balanceOf(ctx, p.Client, to)
					if err != nil {
						return err
					}
					amount := min(a.amount, 1+p.Random.IntN(20))
					op.In = strconv.Itoa(amount)
					answer, err := p.Client.Transact(ctx, put(from, a.amount-amount, a.version), put(to, b.amount+amount, b.version))
					op.Index, op.Out = answer.Index, versions(answer)
					return err
				})
			}, func(ctx context.Context) { read(ctx, p) }, nil
		}}
}
