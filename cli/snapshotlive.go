package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

// liveFlags are those of 'snapshot restore' with --live.
func liveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "live", Usage: "restore into the running cluster, from the archive that its peers are configured with (role superuser)"},
		&cli.StringFlag{Name: "confirm", Usage: "with --live: `CODE` of the plan that is to be carried out"},
	}
}

const restoreDescription = "Without --live: makes the data directory of the first peer of a new cluster, and needs no cluster. The archive is verified first, all of it.\n" +
	"The cluster keeps its id and gets a higher incarnation, so that nothing of the one before is taken for its own. Start the peer with\n" +
	"--peers naming it alone; open it with the same shares ('operator restore'); then let others join ('cluster join', 'cluster promote').\n" +
	"New Keepers: 'spikectl key rekey'. It needs --archive, --data-dir, --id, --peer-address and shares.\n" +
	"\n" +
	"With --live: puts secrets and policies as they were (--at, --incarnation) in the place of the present ones of a running cluster. The first\n" +
	"call changes nothing: it verifies the archive, shows what would vanish, appear and change, and prints a code. The second, with\n" +
	"--confirm CODE, does it, for all peers at once or not at all. An interrupted one is run again with the same code: what was done is not done twice."

// atFlag reads --at: an index, or a time.
func atFlag(c *cli.Context) (index uint64, when time.Time, err error) {
	at := c.String("at")
	if at == "" {
		return 0, when, nil
	}
	if index, err = strconv.ParseUint(at, 10, 64); err == nil {
		return index, when, nil
	}
	if when, err = time.Parse(time.RFC3339, at); err != nil {
		return 0, when, usage("--at: %q is neither an index nor a time like 2026-01-31T15:04:05Z", at)
	}
	return 0, when, nil
}

// restoreCommand chooses between the two restores.
func restoreCommand(c *cli.Context) error {
	if c.Bool("live") {
		for _, name := range []string{"archive", "cluster", "share", "identity", "data-dir", "audit-dir", "id", "peer-address"} {
			if c.IsSet(name) && !fromEnvironment(c, name) {
				return usage("--%s is not for --live: the peers read their own archive, with their own keys", name)
			}
		}
		return over(connectForever, restoreLive)(c)
	}
	if c.IsSet("confirm") {
		return usage("--confirm is for --live")
	}
	for _, name := range []string{"archive", "data-dir", "id", "peer-address"} {
		if c.String(name) == "" {
			return usage("--%s is missing; see %s --help (a running cluster: --live)", name, c.Command.HelpName)
		}
	}
	return restoreArchive(c)
}

// fromEnvironment says of a flag that is set that only a variable sets it.
func fromEnvironment(c *cli.Context, name string) bool {
	for _, given := range c.FlagNames() {
		if given == name {
			return false
		}
	}
	return true
}

func restoreLive(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	q := client.RestoreArchiveRequest{Incarnation: c.Uint64("incarnation"), Confirm: c.String("confirm")}
	var err error
	if q.Index, q.Time, err = atFlag(c); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	plan, err := cl.RestoreArchive(ctx, q, func(l client.RestoreLine) { restoreProgress(c, l) })
	endProgress(c)
	if err != nil {
		return interrupted(ctx, needsRole(err, "superuser"))
	}
	return show(c, plan, func(w io.Writer) {
		printPlan(w, plan)
		if plan.RestoredAt == 0 {
			fmt.Fprintf(c.App.ErrWriter, "nothing was changed. To do it: spikectl snapshot restore --live --confirm %s\n", plan.Code)
		} else {
			fmt.Fprintf(c.App.ErrWriter, "restored at index %d; what is under older keys is re-encrypted now ('spikectl key status')\n", plan.RestoredAt)
		}
	})
}

// interrupted says what an interrupted restore comes to.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, context.Canceled) && secret.CodeOf(err) != secret.CodeUnknown {
		return fmt.Errorf("%w: %w", context.Canceled, err)
	}
	return err
}

// restoreProgress overwrites one line of a terminal.
func restoreProgress(c *cli.Context, l client.RestoreLine) {
	if !isTerminal(c.App.ErrWriter) || l.Step == "" {
		return
	}
	what := "objects of the archive read"
	if l.Step == "staging" {
		what = "records staged"
	}
	fmt.Fprintf(c.App.ErrWriter, "\r\x1b[K%d of %d %s", l.Done, l.Total, what)
}

func printPlan(w io.Writer, p client.RestorePlan) {
	if p.Snapshot == "" { // done before: the archive was not read again
		fmt.Fprintf(w, "the state of index %d of incarnation %d is restored\n", p.Index, p.Incarnation)
		return
	}
	stored := ""
	if p.Stored != nil {
		stored = ", stored " + shortTime(*p.Stored)
	}
	fmt.Fprintf(w, "back to index %d of incarnation %d%s\n", p.Index, p.Incarnation, stored)
	fmt.Fprintf(w, "  from %s and %s after it\n", p.Snapshot, countAs(p.Entries, "entry", "entries"))
	fmt.Fprintf(w, "  %s with %s, %s; each decrypted\n", count(p.Secrets, "secret"), count(p.Versions, "version"), countAs(p.Policies, "policy", "policies"))
	fmt.Fprintf(w, "  data hash %s\n", p.DataHash)
	newest := ""
	if p.NewestChange != nil {
		newest = ", the newest change of " + shortTime(*p.NewestChange)
	}
	fmt.Fprintf(w, "in the place of index %d%s: %s, %s\n", p.LiveIndex, newest, count(p.LiveSecrets, "secret"), countAs(p.LivePolicies, "policy", "policies"))
	changes := func(what string, r client.RecordChanges) {
		fmt.Fprintf(w, "  %s: %d appear, %d vanish, %d change\n", what, r.Appear, r.Vanish, r.Change)
	}
	changes("secrets", p.SecretChanges)
	changes("policies", p.PolicyChanges)
	if p.RestoredAt == 0 {
		fmt.Fprintf(w, "whatever was changed after index %d is lost with it; it stays in the archive\n", p.Index)
		fmt.Fprintf(w, "code %s\n", p.Code)
	}
}
