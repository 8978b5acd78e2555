package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
)

func bootstrapCommand() *cli.Command {
	return &cli.Command{Name: "bootstrap", Usage: "give a new cluster its root key and the Keepers their shares (role bootstrap or superuser)",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", EnvVars: []string{"SPIKE_SHAMIR_SHARES", "SPIKE_NEXUS_SHAMIR_SHARES"}, DefaultText: "that of the Keepers", Usage: "`NUMBER` of shares"},
			&cli.IntFlag{Name: "threshold", EnvVars: []string{"SPIKE_SHAMIR_THRESHOLD", "SPIKE_NEXUS_SHAMIR_THRESHOLD"}, DefaultText: "more than half", Usage: "`NUMBER` of shares needed to unseal"},
			&cli.BoolFlag{Name: "allow-single-share", Usage: "permit a threshold of 1, so that each Keeper holds the whole root key"},
		},
		Action: with(func(c *cli.Context, dial dialer) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			cl, ctx, err := dial()
			if err != nil {
				return err
			}
			if err := cl.Init(ctx, client.InitRequest{Shares: c.Int("shares"), Threshold: c.Int("threshold"), AllowSingleShare: c.Bool("allow-single-share")}); err != nil {
				return needsRole(err, "bootstrap")
			}
			return show(c, map[string]bool{"initialised": true}, func(io.Writer) {
				fmt.Fprintln(c.App.ErrWriter, "the cluster has its root key; the Keepers hold the shares. Keep recovery shares safe: spikectl operator recover")
			})
		})}
}

func auditCommand() *cli.Command {
	return &cli.Command{Name: "audit", Usage: "work with audit logs", Subcommands: []*cli.Command{
		{Name: "verify", Usage: "check the chain of a peer's audit log", ArgsUsage: "DIRECTORY",
			Description: "Exit status 2 says that something is wrong with the log. Records that were written after\nthe anchored point (the last second, or 1,024 records) could be rewritten unseen.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "peer", Usage: "`NAME` of the peer whose log this must be"},
				&cli.StringFlag{Name: "anchor", Usage: "`COUNT:HEAD` that the log must contain, from 'spikectl status --format json'"},
				&cli.BoolFlag{Name: "cluster", Usage: "ask the cluster for the anchor"},
			},
			Action: verifyAudit},
	}}
}

func verifyAudit(c *cli.Context) error {
	if err := errors.Join(checkFormat(c), arguments(c, 1, 1)); err != nil {
		return err
	}
	dir := c.Args().First()
	report, err := audit.Verify(dir, nil)
	if err != nil {
		return err
	}
	anchor, err := chosenAnchor(c, report.Peer)
	if err != nil {
		return err
	}
	if anchor != nil {
		// Read again: the log may have grown past an anchor that is newer than the
		// first reading.
		if report, err = audit.Verify(dir, anchor); err != nil {
			return err
		}
	}
	if want := c.String("peer"); want != "" && want != report.Peer {
		report.Findings = append(report.Findings, audit.Finding{Detail: fmt.Sprintf("this is the log of the peer %q, not of %q", report.Peer, want)})
	}
	if report.Findings == nil {
		report.Findings = []audit.Finding{} // in JSON a list, whatever it holds
	}
	err = show(c, report, func(w io.Writer) {
		fmt.Fprintf(w, "peer %s: %d records in %s, %s to %s\n", report.Peer, report.Records, count(report.Files, "file"), shortTime(report.From), shortTime(report.To))
		for _, f := range report.Findings {
			place := ""
			if f.File != "" {
				place = f.File
				if f.Line > 0 {
					place += fmt.Sprintf(" line %d", f.Line)
				}
				place += ": "
			}
			fmt.Fprintf(w, "FOUND %s%s\n", place, f.Detail)
		}
		switch {
		case len(report.Findings) > 0:
		case report.Anchored:
			fmt.Fprintf(w, "the chain is whole and contains the anchored point, record %d\n", anchor.Count)
		default:
			fmt.Fprintln(w, "the chain is whole; without an anchor a cut tail cannot be seen (--cluster)")
		}
	})
	if err == nil && len(report.Findings) > 0 {
		return exitStatus(ExitRemote)
	}
	return err
}

func chosenAnchor(c *cli.Context, peer string) (*audit.Anchor, error) {
	text := c.String("anchor")
	if c.Bool("cluster") {
		cl, ctx, done, err := connect(c)
		if err != nil {
			return nil, err
		}
		defer done()
		status, err := cl.Status(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range status.Peers {
			if p.ID == peer {
				text = p.AuditAnchor
			}
		}
		if text == "" {
			return nil, usage("the cluster has no anchor for the peer %q", peer)
		}
	}
	if text == "" {
		return nil, nil
	}
	anchor, err := audit.ParseAnchor(text)
	return &anchor, err
}
