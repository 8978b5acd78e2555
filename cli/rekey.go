package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

// rekeyPatience bounds the request itself, which waits for Keepers; --timeout may
// give it more.
const rekeyPatience = time.Minute

func rekeyCommand() *cli.Command {
	return &cli.Command{Name: "rekey", Usage: "give the cluster a new root key, and Keepers new shares (role superuser)",
		Description: "No request waits for it. Until it is committed the old shares open the cluster, from then on the new ones do.\n" +
			"Keepers are added or removed by name, once every peer has them in --keepers. Recovery shares of before are\n" +
			"worthless afterwards: export new ones. If it is interrupted, run the same command again, or --cancel.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", DefaultText: "that of the Keepers", Usage: "`NUMBER` of shares"},
			&cli.IntFlag{Name: "threshold", DefaultText: "more than half", Usage: "`NUMBER` of shares needed to unseal"},
			&cli.StringSliceFlag{Name: "keepers", DefaultText: "all that the peer knows", Usage: "`NAMES` of the Keepers that get a share, separated by commas"},
			&cli.BoolFlag{Name: "allow-single-share", Usage: "permit a threshold of 1, so that each Keeper holds the whole root key"},
			&cli.BoolFlag{Name: "force", Usage: "go on although a member does not answer; if it does not know the Keepers, it stays sealed"},
			&cli.BoolFlag{Name: "wait", Usage: "wait until every record is re-encrypted"},
			&cli.StringFlag{Name: "id", Usage: "`ID` of an earlier run whose outcome is unknown: what that has done is not done again"},
			&cli.BoolFlag{Name: "cancel", Usage: "give up a rekey that was begun and not committed"},
		},
		Action: over(connectForever, rekey)}
}

func rekey(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	if err := rekeyFlags(c); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(c.App.ErrWriter, format+"\n", args...) }
	within, cancel := context.WithTimeout(ctx, max(rekeyPatience, c.Duration("timeout")))
	defer cancel()
	if c.Bool("cancel") {
		set, err := cl.CancelRekey(within)
		if err != nil {
			return needsRole(err, "superuser")
		}
		return show(c, map[string]string{"cancelled": set}, func(io.Writer) {
			if set == "" {
				say("no rekey is pending")
				return
			}
			say("the pending share set %.8s was given up; the root key is what it was", set)
		})
	}
	q := client.RekeyRequest{ID: c.String("id"), Shares: c.Int("shares"), Threshold: c.Int("threshold"), Keepers: listed(c.StringSlice("keepers")),
		AllowSingleShare: c.Bool("allow-single-share"), Force: c.Bool("force")}
	if q.ID == "" {
		q.ID = client.NewID()
	}
	say("making a new root key, and giving the Keepers their shares …")
	heard := noteQuiet(c)
	err = cl.Rekey(within, q)
	heard()
	if secret.CodeOf(err) == secret.CodeUnknown {
		return hinted{err, "run the same command again, with --id " + q.ID}
	}
	if err != nil {
		return needsRole(err, "superuser")
	}
	say("committed: the old shares are worthless; export new recovery shares: spikectl operator recover")
	keys, err := finishRekey(ctx, cl, c.Bool("wait"), say)
	if err != nil {
		return hinted{err, "the rekey is committed; what follows goes on by itself: spikectl key status"}
	}
	if keys.ShareSet != nil { // numbers that were not given may be others than before
		say("share set: %s", describeShareSet(keys.ShareSet))
	}
	return show(c, map[string]any{"rekeyed": true, "id": q.ID, "shareSet": keys.ShareSet, "stale": keys.Stale}, func(io.Writer) {})
}

// rekeyFlags refuses what would be taken for something else: a number of 0, as
// of an unset variable, for the default, and what --cancel would not heed.
func rekeyFlags(c *cli.Context) error {
	for _, name := range []string{"shares", "threshold"} {
		if c.IsSet(name) && c.Int(name) < 1 {
			return usage("--%s %d: give 1 or more, or leave it away", name, c.Int(name))
		}
	}
	if !c.Bool("cancel") {
		return nil
	}
	for _, name := range []string{"shares", "threshold", "keepers", "allow-single-share", "force", "wait", "id"} {
		if c.IsSet(name) {
			return usage("--cancel begins nothing: leave away --%s", name)
		}
	}
	return nil
}

// finishRekey says what goes on by itself after a rekey: the peers take the new
// root key, the keys of before are rotated, records are re-encrypted. Without all
// it only looks once.
func finishRekey(ctx context.Context, cl *client.Client, all bool, say func(string, ...any)) (client.KeysAnswer, error) {
	said, peers := "", 0
	for {
		keys, err := cl.Keys(ctx)
		if err != nil || !all {
			return keys, err
		}
		now := ""
		switch {
		case keys.Inherited:
			if peers, err = peersOn(ctx, cl, keys.ShareSet); err != nil {
				return keys, err
			}
			now = fmt.Sprintf("%s with the new root key; then the keys of before are rotated", count(peers, "peer"))
		case keys.Stale > 0:
			now = fmt.Sprintf("re-encrypting: %d of %s left", keys.Stale, count(keys.Records, "record"))
		default:
			say("done: every record is encrypted under keys of the new root key")
			return keys, nil
		}
		if now != said {
			said = now
			say("%s", now)
		}
		select {
		case <-ctx.Done():
			return keys, ctx.Err()
		case <-time.After(500 * time.Millisecond): // then it is looked again
		}
	}
}

// peersOn counts the peers that use the root key of a share set.
func peersOn(ctx context.Context, cl *client.Client, set *client.ShareSet) (n int, err error) {
	status, err := cl.Status(ctx)
	for _, p := range status.Peers {
		if set != nil && p.ShareSet == set.ID {
			n++
		}
	}
	return n, err
}

// describeShareSet is a line on a share set, for key status.
func describeShareSet(s *client.ShareSet) string {
	var names []string
	for _, name := range s.Keepers {
		if name != "" {
			names = append(names, name)
		}
	}
	return fmt.Sprintf("%.8s, %d of %s unseal, at %s", s.ID, s.Threshold, count(s.Shares, "share"), strings.Join(names, ", "))
}
