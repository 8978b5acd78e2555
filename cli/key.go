package cli

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
)

func keyCommand() *cli.Command {
	return &cli.Command{Name: "key", Usage: "the keys under which records are encrypted", Subcommands: []*cli.Command{
		{Name: "status", Usage: "list the keys, what is under them, and how far re-encryption has come",
			Description: "Keys are shown by id alone. A retired data key goes to the archive once no record is under it.",
			Action:      with(keyStatus)},
		{Name: "rotate", Usage: "use new keys from now on, and re-encrypt in the background (role superuser)",
			Description: "All peers use the new keys at once. What was encrypted before stays readable; records are\nre-encrypted by the leader, and 'spikectl key status' shows how many are left.",
			Flags:       []cli.Flag{&cli.StringSliceFlag{Name: "purpose", DefaultText: "all of these", Usage: "`PURPOSE` to rotate: archive, audit-path, cipher or data; may be repeated"}},
			Action:      with(rotateKeys)},
		rekeyCommand(),
		{Name: "prune", Usage: "drop archived keys that no archive needs any more (role superuser)",
			Description: "Archives, backups and disks of before that time do not open afterwards: do it when none is kept.",
			Flags:       []cli.Flag{&cli.StringFlag{Name: "archives-before", Required: true, Usage: "`TIME` before which no archive is kept, as 2026-01-31T15:04:05Z"}, yesFlag()},
			Action:      with(pruneKeys)},
	}}
}

func rotateKeys(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	if err := cl.RotateKeys(ctx, c.StringSlice("purpose")...); err != nil {
		return needsRole(err, "superuser")
	}
	return show(c, map[string]bool{"rotated": true}, func(io.Writer) {
		fmt.Fprintln(c.App.ErrWriter, "new keys are in use; records are re-encrypted in the background: spikectl key status")
	})
}

func pruneKeys(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	before, err := time.Parse(time.RFC3339, c.String("archives-before"))
	if err != nil {
		return usage("--archives-before: %q is not a time like 2026-01-31T15:04:05Z", c.String("archives-before"))
	}
	if err := confirm(c, fmt.Sprintf("Drop the keys that archives of before %s need?", before.UTC().Format(time.RFC3339))); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.PruneKeys(ctx, before)
	if err != nil {
		return needsRole(err, "superuser")
	}
	return show(c, answer, func(io.Writer) {
		fmt.Fprintf(c.App.ErrWriter, "%s dropped\n", count(answer.Pruned, "archived key"))
	})
}

func keyStatus(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	keys, err := cl.Keys(ctx)
	if err != nil {
		return err
	}
	return show(c, keys, func(w io.Writer) {
		rows := [][]string{{"PURPOSE", "KEY", "STATUS", "CREATED", "RECORDS"}}
		for _, e := range keys.Epochs {
			records := "-"
			if e.Records != nil {
				records = strconv.Itoa(*e.Records)
			}
			rows = append(rows, []string{e.Purpose, e.ID[:min(8, len(e.ID))], e.Status, e.Created.UTC().Format(time.DateTime), records})
		}
		table(w, rows...)
		if keys.ShareSet != nil {
			fmt.Fprintf(w, "\nshare set: %s\n", describeShareSet(keys.ShareSet))
		}
		if keys.Inherited {
			fmt.Fprintln(w, "after the rekey: keys made under the root key of before are rotated once every peer uses the new one")
		}
		if keys.Pending != nil {
			fmt.Fprintf(w, "pending: %s\n  a rekey is under way, or was interrupted: nothing is rotated until it is run again, or cancelled: spikectl key rekey --cancel\n", describeShareSet(keys.Pending))
		}
		if keys.Stale > 0 {
			fmt.Fprintf(w, "\nre-encrypting: %d of %s left\n", keys.Stale, count(keys.Records, "record"))
		}
	})
}
