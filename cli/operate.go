package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cli/internal/share"
	"github.com/spike-ha/spike-ha/secret"
)

func bootstrapCommand() *cli.Command {
	return &cli.Command{Name: "bootstrap", Usage: "give a new cluster its root key and the Keepers their shares (role bootstrap or superuser)",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", EnvVars: []string{"SPIKE_SHAMIR_SHARES", "SPIKE_NEXUS_SHAMIR_SHARES"}, DefaultText: "that of the Keepers", Usage: "`NUMBER` of shares"},
			&cli.IntFlag{Name: "threshold", EnvVars: []string{"SPIKE_SHAMIR_THRESHOLD", "SPIKE_NEXUS_SHAMIR_THRESHOLD"}, DefaultText: "more than half", Usage: "`NUMBER` of shares needed to unseal"},
		},
		Action: with(func(c *cli.Context, dial dialer) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			cl, ctx, err := dial()
			if err != nil {
				return err
			}
			if err := cl.Init(ctx, c.Int("shares"), c.Int("threshold")); err != nil {
				return needsRole(err, "bootstrap")
			}
			return show(c, map[string]bool{"initialised": true}, func(io.Writer) {
				fmt.Fprintln(c.App.ErrWriter, "the cluster has its root key; the Keepers hold the shares. Keep recovery shares safe: spikectl operator recover")
			})
		})}
}

func operatorCommand() *cli.Command {
	return &cli.Command{Name: "operator", Usage: "break-glass recovery", Subcommands: []*cli.Command{
		{Name: "recover", Usage: "write recovery shares, one file each (role recover)",
			Flags:  []cli.Flag{&cli.StringFlag{Name: "out", Aliases: []string{"o"}, EnvVars: []string{"SPIKE_PILOT_RECOVERY_DIR"}, Usage: "`DIRECTORY` for the files (default: ~/.spike/recover)"}},
			Action: with(recoverShares)},
		{Name: "restore", Usage: "feed one recovery share back (role restore); repeat with others until it says restored", ArgsUsage: "[FILE]",
			Action: with(restoreShare)},
	}}
}

func recoverShares(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	dir := c.String("out")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(home, ".spike", "recover")
	}
	if old, _ := share.Files(dir); len(old) > 0 {
		return usage("%s holds recovery files already; move them away first", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var answer share.Export
	if err := cl.Wire(ctx, client.WireRecover, "", struct{}{}, &answer); err != nil {
		return needsRole(err, "recover")
	}
	var files []string
	for id, shard := range answer.Shards {
		name, err := share.Write(dir, id, shard, false)
		if err != nil {
			return err
		}
		files = append(files, name)
	}
	sort.Strings(files)
	return show(c, map[string][]string{"files": files}, func(w io.Writer) {
		for _, name := range files {
			fmt.Fprintln(w, name)
		}
		fmt.Fprintln(c.App.ErrWriter, "WARNING: these files open the cluster. They are not encrypted: give each to another person, on a medium of its own, and remove them here.")
	})
}

func restoreShare(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	var raw string
	if c.NArg() == 1 && c.Args().First() != "-" {
		b, err := os.ReadFile(c.Args().First())
		if err != nil {
			return err
		}
		raw = string(b)
	} else {
		line, err := bufio.NewReader(io.LimitReader(c.App.Reader, 1024)).ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		raw = line
	}
	request, err := share.Parse(raw)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var answer struct {
		Collected int  `json:"collected"`
		Remaining int  `json:"remaining"`
		Restored  bool `json:"restored"`
	}
	if err := cl.Wire(ctx, client.WireRestore, "", request, &answer); err != nil {
		return needsRole(refusedShare(err), "restore")
	}
	return show(c, answer, func(io.Writer) {
		if answer.Restored {
			fmt.Fprintln(c.App.ErrWriter, "restored: the cluster is unsealing and refills its Keepers")
			return
		}
		fmt.Fprintf(c.App.ErrWriter, "%s collected, %d to go\n", count(answer.Collected, "share"), answer.Remaining)
	})
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

// shareReasons are the words with which a peer says why it refused a share.
var shareReasons = map[string]string{
	"share_wrong":         "this is not the share of that number: it was mistyped, or belongs to another key",
	"share_given_already": "the share of that number was given already; give another one",
	"share_index_unknown": "the cluster has no share of that number",
	"share_foreign":       "this share belongs to another share set",
	"not_sealed":          "the cluster is not sealed; there is nothing to restore",
}

// refusedShare says in words why a share was refused. None of the reasons
// spoils what was collected before.
func refusedShare(err error) error {
	var e *secret.Error
	if !errors.As(err, &e) || e.Code != secret.CodeInvalid {
		return err
	}
	message, ok := shareReasons[e.Reason]
	if !ok {
		message = "the share was refused"
	}
	return &secret.Error{Code: e.Code, Message: message + "; shares given before still count", Reason: e.Reason, Cause: err}
}
