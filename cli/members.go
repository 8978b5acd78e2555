package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

// memberCommands are those of 'spikectl cluster' that are about its members.
func memberCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "members", Usage: "list the members", Action: with(listMembers)},
		{Name: "join", Usage: "let a peer join as a learner, which has no vote", ArgsUsage: "ID ADDRESS",
			Description: "ADDRESS is the host:port of its peer link. Start the peer with --join and some of the present\npeers, before this or after; it comes up by itself. Then 'spikectl cluster promote ID' gives it a vote.\nA voter that lost its data must be removed first.",
			Action: memberAction(2, 2, "joins as a learner once it runs with --join; then: spikectl cluster promote", func(ctx context.Context, cl *client.Client, c *cli.Context) error {
				return cl.AddMember(ctx, c.Args().Get(0), c.Args().Get(1))
			}, "", func(c *cli.Context) error { return checkLink(c.Args().Get(1)) })},
		{Name: "promote", Usage: "give a learner that has caught up a vote", ArgsUsage: "ID",
			Action: memberAction(1, 1, "has a vote", func(ctx context.Context, cl *client.Client, c *cli.Context) error {
				return cl.PromoteMember(ctx, c.Args().First())
			}, "")},
		{Name: "demote", Usage: "make a voter a learner", ArgsUsage: "ID", Flags: []cli.Flag{yesFlag()},
			Action: memberAction(1, 1, "has no vote any more", func(ctx context.Context, cl *client.Client, c *cli.Context) error {
				return cl.DemoteMember(ctx, c.Args().First())
			}, "Take the vote of %s? 'spikectl cluster promote' gives it back")},
		{Name: "remove", Usage: "take a member out of the cluster", ArgsUsage: "ID", Flags: []cli.Flag{yesFlag()},
			Action: memberAction(1, 1, "is no member any more; stop it; to take it in again, first remove raft/ in its data directory and keep audit/", func(ctx context.Context, cl *client.Client, c *cli.Context) error {
				return cl.RemoveMember(ctx, c.Args().First())
			}, "Remove %s from the cluster? This cannot be undone")},
		replaceCommand(),
		{Name: "drain", Usage: "prepare a peer for maintenance: its clients and leadership go to others", ArgsUsage: "ID",
			Description: "It replicates on, and votes if it has a vote. Its readiness fails at once, and after its --drain-grace it refuses work\nwith 503, so that balancers and clients go elsewhere. --undo ends it, and so does a restart of the peer.",
			Flags:       []cli.Flag{&cli.BoolFlag{Name: "undo", Usage: "let it serve and lead again"}},
			Action:      drainMember},
		{Name: "transfer", Usage: "have a voter lead, or any other", ArgsUsage: "[ID]",
			Action: memberAction(0, 1, "leads", func(ctx context.Context, cl *client.Client, c *cli.Context) error {
				return cl.TransferLeadership(ctx, c.Args().First())
			}, "")},
	}
}

func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
}

func drainMember(c *cli.Context) error {
	done, change := "is drained: others lead and serve in its place", (*client.Client).DrainMember
	if c.Bool("undo") {
		done, change = "serves again", (*client.Client).UndrainMember
	}
	return memberAction(1, 1, done, func(ctx context.Context, cl *client.Client, c *cli.Context) error {
		return change(cl, ctx, c.Args().First())
	}, "")(c)
}

// checkLink refuses what cannot be the address of a peer link.
func checkLink(address string) error {
	host, port, err := net.SplitHostPort(address)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 {
		return usage("%q is not the address of a peer link, host:port", address)
	}
	return nil
}

// memberAction makes an action of a change; checks, and question when there is
// one, come first.
func memberAction(least, most int, done string, change func(context.Context, *client.Client, *cli.Context) error, question string, checks ...func(*cli.Context) error) cli.ActionFunc {
	return with(func(c *cli.Context, dial dialer) error {
		if err := arguments(c, least, most); err != nil {
			return err
		}
		for _, check := range checks {
			if err := check(c); err != nil {
				return err
			}
		}
		id := c.Args().First()
		if question != "" {
			if err := ask(c, fmt.Sprintf(question, id)); err != nil {
				return err
			}
		}
		cl, ctx, err := dial()
		if err != nil {
			return err
		}
		if err := change(ctx, cl, c); err != nil {
			return needsRole(err, "superuser")
		}
		if id == "" { // a transfer to any voter
			if status, err := cl.Status(ctx); err == nil {
				id = status.Leader
			}
		}
		return show(c, map[string]any{"member": id, "done": true}, func(io.Writer) {
			if id == "" {
				id = "another voter"
			}
			fmt.Fprintln(c.App.ErrWriter, id, done)
		})
	})
}

func listMembers(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	status, err := cl.Status(ctx)
	if err != nil {
		return err
	}
	type member struct {
		ID       string `json:"id"`
		Address  string `json:"address"`
		Voter    bool   `json:"voter"`
		Leader   bool   `json:"leader"`
		State    string `json:"state"`
		Applied  uint64 `json:"appliedIndex"`
		Reason   string `json:"reason,omitempty"`
		Draining bool   `json:"draining,omitempty"`
	}
	members := make([]member, len(status.Peers))
	for i, p := range status.Peers {
		members[i] = member{p.ID, p.Address, p.Voter, p.ID == status.Leader, p.State, p.AppliedIndex, p.Reason, p.Draining}
	}
	return show(c, members, func(w io.Writer) {
		rows := [][]string{{"PEER", "VOTE", "STATE", "APPLIED", "ADDRESS"}}
		for _, m := range members {
			rows = append(rows, []string{m.ID, yesNo(m.Voter), stateText(m.State, m.Draining), strconv.FormatUint(m.Applied, 10), m.Address})
		}
		table(w, rows...)
	})
}
