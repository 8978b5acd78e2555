package workload

import (
	"context"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/jepsen/check"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// Grants has an application read a secret at every peer while policies that allow it come and go.
func Grants() Workload {
	const path = "granted/secret"
	const every = 1500 * time.Millisecond
	policy := func(p *Process) string { return fmt.Sprintf("grants-%d", epoch(p.Recorder, every)%100) }
	app := func(name string) string { return "/workload/" + name }
	return Workload{Name: "grants", PerPeer: 2, Kinds: []string{"grant", "revoke", "read allowed", "read denied"}, Final: "read",
		Check: []check.Checker{check.Grants},
		Setup: func(ctx context.Context, p *Process) error {
			op := p.do(ctx, history.Op{F: "setup"}, func(ctx context.Context, op *history.Op) error {
				answer, err := p.Client.Put(ctx, path, map[string]string{"v": "x"}, nil)
				op.Index, op.Out = answer.Index, fmt.Sprint(answer.Version)
				return err
			})
			return op.Undone()
		},
		New: func(p *Process, clients Clients) (step, final func(context.Context), err error) {
			apps := map[string]*client.Client{} // one identity for each policy, so that no history is long
			var known []string                  // of apps, the oldest first
			read := func(ctx context.Context, name string) {
				if apps[name] == nil {
					c, err := clients(app(name), p.Peer)
					if err != nil {
						return
					}
					apps[name], known = c, append(known, name)
				}
				p.do(ctx, history.Op{F: "read", Key: name}, func(ctx context.Context, op *history.Op) error {
					_, _, err := apps[name].Get(ctx, path, 0)
					switch code := secret.CodeOf(err); {
					case err == nil:
						op.Out = "allowed"
					case code == secret.CodeDenied && !unidentified(err):
						op.Out = "denied"
					default:
						return err
					}
					return nil
				})
			}
			last := ""
			return func(ctx context.Context) {
					if _, ok := p.earlier(every); ok && len(known) > 0 {
						read(ctx, known[p.Random.IntN(len(known))])
						return
					}
					last = policy(p)
					switch p.Random.IntN(12) {
					case 0:
						p.do(ctx, history.Op{F: "grant", Key: last}, func(ctx context.Context, op *history.Op) error {
							answer, err := p.Client.PutPolicy(ctx, client.Policy{Name: last, Permissions: []string{"read"}, Path: exact(path),
								SPIFFEID: exact("spiffe://" + harness.TrustDomain + app(last))})
							op.Index = answer.Index
							return err
						})
					case 1:
						p.do(ctx, history.Op{F: "revoke", Key: last}, func(ctx context.Context, op *history.Op) error {
							answer, err := p.Client.DeletePolicy(ctx, last)
							if secret.CodeOf(err) == secret.CodeNotFound {
								op.Out = "not found"
								return nil
							}
							op.Index = answer.Index
							return err
						})
					default:
						read(ctx, last)
					}
				}, func(ctx context.Context) {
					if last != "" {
						read(ctx, last)
					}
					for _, i := range p.past(len(known)) {
						read(ctx, known[i])
					}
				}, nil
		}}
}

func exact(s string) secret.Pattern { return secret.Pattern{Kind: secret.Exact, Text: s} }
