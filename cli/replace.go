package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func replaceCommand() *cli.Command {
	return &cli.Command{Name: "replace", Usage: "put a new peer in the place of another, dead or alive", ArgsUsage: "OLD NEW ADDRESS",
		Flags: []cli.Flag{yesFlag(), &cli.BoolFlag{Name: "learner", Usage: "give the new one no vote, although the old one has one"},
			&cli.BoolFlag{Name: "voter", Usage: "give the new one a vote, although the old one has none"}},
		Description: "NEW joins as a learner, gets a vote when it has caught up, if OLD has one, then OLD is removed; an OLD\n" +
			"that does not answer loses its vote first, so that NEW never counts beside it. ADDRESS is the host:port of NEW's peer\n" +
			"link; start NEW with --join, before this or after. It takes as long as NEW takes to catch up (--timeout,\n" +
			"10m). Interrupted, it is run again with the same arguments and goes on; after OLD lost its vote, with\n" +
			"--voter.",
		Action: over(connectBounded, replaceMember)}
}

// replacePatience is how long a replacement may take, catching up included.
const replacePatience = 10 * time.Minute

// replaceMember looks at the members and takes the next step, until there is
// none: whatever was done before, by this run or another, shows in the members.
func replaceMember(c *cli.Context, dial dialer) error {
	if err := arguments(c, 3, 3); err != nil {
		return err
	}
	r := replacement{old: c.Args().Get(0), id: c.Args().Get(1), address: c.Args().Get(2), vote: c.Bool("voter"), known: c.Bool("voter") || c.Bool("learner")}
	if c.Bool("voter") && c.Bool("learner") {
		return usage("--voter and --learner do not go together")
	}
	if err := checkLink(r.address); err != nil {
		return err
	}
	if r.old == r.id {
		return usage("%s cannot take its own place: to bring it back without its data, remove it, then join and promote it", r.old)
	}
	if err := confirm(c, fmt.Sprintf("Put %s in the place of %s, and remove %s?", r.id, r.old, r.old)); err != nil {
		return err
	}
	if !c.IsSet("timeout") {
		if err := c.Set("timeout", replacePatience.String()); err != nil {
			return err
		}
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	said := ""
	var late error // what there is to say when the time is over
	for {
		heard := noteQuiet(c)
		step, err := r.next(ctx, cl)
		heard()
		if err != nil && ctx.Err() != nil && late != nil {
			return late
		}
		if err != nil {
			return needsRole(err, "superuser")
		}
		if step.do == nil {
			break
		}
		if step.says != said {
			said = step.says
			fmt.Fprintln(c.App.ErrWriter, said)
		}
		attempt, cancel := context.WithTimeout(ctx, 15*time.Second)
		heard = noteQuiet(c)
		err = step.do(attempt)
		heard()
		cancel()
		if err == nil {
			late = nil
			continue
		}
		again := "run the same command again"
		if r.demoted {
			again += fmt.Sprintf(", with --voter: %s has no vote any more", r.old)
		}
		if late = r.late(c.Duration("timeout"), err, again); ctx.Err() != nil {
			return late
		}
		if !passes(err) {
			return needsRole(hinted{err, "what was done so far stays; once the reason is gone, " + again}, "superuser")
		}
		select {
		case <-ctx.Done():
			return late
		case <-time.After(300 * time.Millisecond): // then the members are looked at again
		}
	}
	return show(c, map[string]any{"removed": r.old, "member": r.id, "voter": r.vote, "done": true}, func(io.Writer) {
		fmt.Fprintf(c.App.ErrWriter, "%s has taken the place of %s; stop %s if it runs; its audit log is worth keeping\n", r.id, r.old, r.old)
	})
}

// replacement is what a replacement is to come to.
type replacement struct {
	old, id, address string
	vote             bool // the new one gets a vote; once known
	known            bool // else the new one inherits
	demoted          bool // the old one lost its vote by this run
}

// late says that the time was over while err stood in the way.
func (r replacement) late(timeout time.Duration, err error, again string) error {
	if errors.Is(err, errNotUp) && !r.demoted {
		return hinted{secret.Errorf(secret.CodeUnavailable, "%s did not come up at %s in %s; it is a learner, %s is unchanged", r.id, r.address, timeout, r.old),
			fmt.Sprintf("start %s with --join, then %s", r.id, again)}
	}
	return hinted{err, "what was done so far stays; see 'spikectl status', then " + again}
}

type replaceStep struct {
	says string
	do   func(context.Context) error // nil: nothing is left to do
}

// next is the next step, as the members are now.
//
// The order: a peer that joins counts in no majority, so nothing is at risk
// until it is promoted. With an old one that answers, there is one voter more
// for a moment, and all of them answer. One that does not would make an even
// number of voters of which it is one, so that the loss of the new one alone
// costs the majority: it gives up its vote first.
func (r *replacement) next(ctx context.Context, cl *client.Client) (replaceStep, error) {
	status, err := cl.Status(ctx)
	if err != nil {
		return replaceStep{}, err
	}
	var old, id *client.PeerStatus
	for i, p := range status.Peers {
		switch p.ID {
		case r.old:
			old = &status.Peers[i]
		case r.id:
			id = &status.Peers[i]
		}
	}
	if !r.known && old != nil {
		r.vote, r.known = old.Voter || id != nil && id.Voter, true
	} else if !r.known && id != nil { // the old one is removed last
		r.vote, r.known = id.Voter, true
	}
	switch {
	case old == nil && id != nil && (id.Voter || !r.vote):
		return replaceStep{}, nil
	case old == nil:
		return replaceStep{}, secret.Errorf(secret.CodeNotFound, "the cluster has no member %s", r.old)
	case id != nil && id.Address != r.address:
		return replaceStep{}, secret.Errorf(secret.CodeConflict, "%s is a member at %s, not at %s", r.id, id.Address, r.address)
	case id != nil && id.Voter && !r.vote:
		return replaceStep{}, secret.Errorf(secret.CodeConflict, "%s is a voter already", r.id)
	case id == nil:
		return replaceStep{r.id + " joins as a learner", func(ctx context.Context) error { return cl.AddMember(ctx, r.id, r.address) }}, nil
	case !id.Reachable:
		return replaceStep{"waiting for " + r.id + " to come up; start it with --join if it does not run", func(context.Context) error { return errNotUp }}, nil
	case id.AppliedIndex+replaceLag < r.indexOf(status):
		return replaceStep{fmt.Sprintf("waiting for %s to catch up", r.id), func(context.Context) error { return errNotYet }}, nil
	case !id.Voter && r.vote && old.Voter && !old.Reachable:
		return replaceStep{r.old + " does not answer: it loses its vote", func(ctx context.Context) error {
			r.demoted = true
			return cl.DemoteMember(ctx, r.old)
		}}, nil
	case !id.Voter && r.vote:
		return replaceStep{r.id + " gets a vote once it has caught up", func(ctx context.Context) error { return cl.PromoteMember(ctx, r.id) }}, nil
	}
	return replaceStep{r.old + " is removed", func(ctx context.Context) error { return r.remove(ctx, cl) }}, nil
}

// replaceLag is how many commands the new peer may be behind before it is tried
// to promote it, or to remove the old one; the leader looks for itself.
const replaceLag = 64

func (r replacement) indexOf(status client.Status) (index uint64) {
	for _, p := range status.Peers {
		if p.Reachable && p.ID != r.id {
			index = max(index, p.CommitIndex)
		}
	}
	return index
}

func (r replacement) remove(ctx context.Context, cl *client.Client) error {
	err := cl.RemoveMember(ctx, r.old)
	if secret.CodeOf(err) == secret.CodeNotFound { // somebody else has
		return nil
	}
	return err
}

var (
	errNotUp  = secret.Errorf(secret.CodeUnavailable, "the new peer is not up")
	errNotYet = secret.Errorf(secret.CodeUnavailable, "the new peer has not caught up")
)

// passes tells whether to look at the members again and go on.
func passes(err error) bool {
	var e *secret.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case secret.CodeUnknown, secret.CodeUnavailable, secret.CodeOverloaded, secret.CodeSealed:
		return true
	}
	return e.Reason == client.ReasonNotCaughtUp || e.Reason == client.ReasonChangeUnderWay
}
