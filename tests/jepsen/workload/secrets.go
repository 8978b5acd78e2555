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

// Marks are in the names and values of secrets, and in nothing else: no file of a peer may hold them.
const (
	NameMark  = "mark-of-a-name-q7x2"
	ValueMark = "mark-of-a-value-w9k4"
)

func path(key string) string { return NameMark + "/" + key }

// read reads a secret; one that is not there has version 0.
func (p *Process) read(ctx context.Context, key string) history.Op {
	return p.do(ctx, history.Op{F: "read", Key: key}, func(ctx context.Context, op *history.Op) error {
		values, answer, err := p.Client.Get(ctx, path(key), 0)
		if secret.CodeOf(err) == secret.CodeNotFound {
			return nil
		}
		op.Out, op.Version = values["v"], int(answer.Version)
		return err
	})
}

// readVersion reads a version of a secret; one that is not there has version 0.
func (p *Process) readVersion(ctx context.Context, key string, v secret.Version) {
	p.do(ctx, history.Op{F: "read-version", Key: key, In: fmt.Sprint(v)}, func(ctx context.Context, op *history.Op) error {
		values, answer, err := p.Client.Get(ctx, path(key), v)
		if secret.CodeOf(err) == secret.CodeNotFound {
			return nil
		}
		op.Out, op.Version = values["v"], int(answer.Version)
		return err
	})
}

// write writes one; what another version than the expected one refuses is done with "conflict".
func (p *Process) write(ctx context.Context, f, key, in, value string, expect int) history.Op {
	return p.do(ctx, history.Op{F: f, Key: key, In: in, Expect: expect}, func(ctx context.Context, op *history.Op) error {
		var version *secret.Version
		if expect != history.AnyVersion {
			v := secret.Version(expect)
			version = &v
		}
		answer, err := p.Client.Put(ctx, path(key), map[string]string{"v": value, "mark": ValueMark}, version)
		if secret.CodeOf(err) == secret.CodeConflict && f == "write" {
			op.Out = "conflict"
			return nil
		}
		op.Version, op.Index = int(answer.Version), answer.Index
		return err
	})
}

// remove deletes the newest version of one.
func (p *Process) remove(ctx context.Context, key string) history.Op {
	return p.do(ctx, history.Op{F: "delete", Key: key}, func(ctx context.Context, op *history.Op) error {
		answer, err := p.Client.Delete(ctx, path(key))
		if secret.CodeOf(err) == secret.CodeNotFound {
			op.Out = "not found"
			return nil
		}
		if op.Index = answer.Index; len(answer.Versions) > 0 { // else there was nothing to delete any more
			op.Version = int(answer.Versions[0])
		}
		return err
	})
}

// changeVersion undeletes or destroys a version of one.
func (p *Process) changeVersion(ctx context.Context, f, key string, v secret.Version, change func(context.Context, string, ...secret.Version) (client.ChangeAnswer, error)) {
	p.do(ctx, history.Op{F: f, Key: key, In: fmt.Sprint(v)}, func(ctx context.Context, op *history.Op) error {
		answer, err := change(ctx, path(key), v)
		if secret.CodeOf(err) == secret.CodeNotFound {
			op.Out = "not found"
			return nil
		}
		op.Index = answer.Index
		return err
	})
}

// Registers reads, writes and compares-and-sets a few secrets.
func Registers() Workload {
	key := func(p *Process, epoch int) string { return fmt.Sprintf("registers/%d/%d", epoch, p.Random.IntN(4)) }
	return Workload{Name: "registers", PerPeer: 3, Kinds: []string{"read", "write", "compare-and-set", "compare-and-set conflict"}, Final: "read",
		Check: []check.Checker{check.Secrets},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			last, seen := "", history.Op{}
			return func(ctx context.Context) {
					if epoch, ok := p.earlier(time.Second); ok {
						p.read(ctx, key(p, epoch))
						return
					}
					last = key(p, epoch(p.Recorder, time.Second))
					switch p.Random.IntN(6) {
					case 0, 1, 2:
						seen = p.read(ctx, last)
					case 3, 4:
						p.write(ctx, "write", last, p.unique(), fmt.Sprintf("%d-%d", p.ID, p.count), history.AnyVersion)
					default:
						expected := p.Random.IntN(30)
						if seen.Key != "" && p.Random.IntN(3) > 0 { // else hardly one would fit
							last, expected = seen.Key, seen.Version
						}
						p.write(ctx, "write", last, p.unique(), fmt.Sprintf("%d-%d", p.ID, p.count), expected)
					}
				}, func(ctx context.Context) {
					if last != "" {
						p.read(ctx, last)
					}
					for _, epoch := range p.past(epoch(p.Recorder, time.Second)) {
						p.read(ctx, key(p, epoch))
					}
				}, nil
		}}
}

// Deletions writes, deletes, undeletes, destroys and reads.
func Deletions() Workload {
	key := func(p *Process, epoch int) string { return fmt.Sprintf("deletions/%d/%d", epoch, p.Random.IntN(2)) }
	version := func(p *Process) secret.Version { return secret.Version(1 + min(p.Random.IntN(4), p.Random.IntN(4))) }
	look := func(ctx context.Context, p *Process, key string) {
		if p.Random.IntN(2) == 0 {
			p.read(ctx, key)
		} else {
			p.readVersion(ctx, key, version(p))
		}
	}
	return Workload{Name: "deletions", PerPeer: 2, Kinds: []string{"read", "read-version", "write", "delete", "undelete not found", "destroy"}, Final: "read",
		Check: []check.Checker{check.Secrets},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			last, known := "", history.Op{} // of that a version was written or deleted
			meant := func() (string, secret.Version) {
				if known.Version > 0 && p.Random.IntN(3) > 0 { // else there is mostly nothing to change
					return known.Key, secret.Version(known.Version)
				}
				return last, version(p)
			}
			return func(ctx context.Context) {
					if epoch, ok := p.earlier(time.Second); ok {
						look(ctx, p, key(p, epoch))
						return
					}
					last = key(p, epoch(p.Recorder, time.Second))
					switch p.Random.IntN(12) {
					case 2, 3:
						if known.Key == last && known.Version > 0 || p.Random.IntN(2) == 0 { // else there is mostly nothing to delete
							known = p.remove(ctx, last)
							break
						}
						fallthrough
					case 0, 1:
						known = p.write(ctx, "write", last, p.unique(), fmt.Sprintf("%d-%d", p.ID, p.count), history.AnyVersion)
					case 4, 5:
						key, v := meant()
						p.changeVersion(ctx, "undelete", key, v, p.Client.Undelete)
					case 6:
						key, v := meant()
						p.changeVersion(ctx, "destroy", key, v, p.Client.Destroy)
					default:
						look(ctx, p, last)
					}
				}, func(ctx context.Context) {
					if last != "" {
						p.read(ctx, last)
					}
					for _, epoch := range p.past(epoch(p.Recorder, time.Second)) {
						look(ctx, p, key(p, epoch))
					}
				}, nil
		}}
}

// Lists appends to a list in one secret, by compare-and-set of the whole.
func Lists() Workload {
	return Workload{Name: "lists", PerPeer: 2, Kinds: []string{"read", "append"}, Final: "read",
		Check: []check.Checker{check.Lists},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			keys := map[string]bool{}
			return func(ctx context.Context) {
					key := fmt.Sprintf("lists/%d/%d", epoch(p.Recorder, 4*time.Second), p.Random.IntN(2))
					keys[key] = true
					seen := p.read(ctx, key)
					if seen.Outcome != history.OK || p.Random.IntN(3) > 0 {
						return
					}
					e := p.unique()
					p.write(ctx, "append", key, e, strings.TrimPrefix(seen.Out+","+e, ","), seen.Version)
				}, func(ctx context.Context) {
					for key := range keys {
						p.read(ctx, key)
					}
				}, nil
		}}
}

// list lists the elements of a set.
func (p *Process) list(ctx context.Context, set string) {
	p.do(ctx, history.Op{F: "list"}, func(ctx context.Context, op *history.Op) error {
		answer, err := p.Client.List(ctx, path(set))
		op.Out = strings.ReplaceAll(strings.Join(answer.Keys, ","), path(""), "")
		return err
	})
}

// Sets adds secrets, and lists them all.
func Sets() Workload {
	return Workload{Name: "sets", PerPeer: 1, Kinds: []string{"list", "add"}, Final: "list",
		Check: []check.Checker{check.Sets},
		New: func(p *Process, _ Clients) (step, final func(context.Context), err error) {
			return func(ctx context.Context) {
					if p.Random.IntN(40) == 0 {
						p.list(ctx, "sets")
						return
					}
					e := p.unique()
					p.write(ctx, "add", "sets/"+e, e, e, history.AnyVersion)
				}, func(ctx context.Context) {
					p.list(ctx, "sets")
				}, nil
		}}
}
