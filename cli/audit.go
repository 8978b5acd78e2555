package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/node"
)

func auditCommand() *cli.Command {
	return &cli.Command{Name: "audit", Usage: "work with audit logs", Subcommands: []*cli.Command{
		{Name: "verify", Usage: "check the chain of a peer's audit log, in its directory, in an archive, or both", ArgsUsage: "[DIRECTORY]",
			Description: "Exit status 2 says that something is wrong with the log. Records that were written after\nthe anchored point (the last second, or 1,024 records) could be rewritten unseen.\n" +
				"With --archive all that the archive has is checked, of each peer; with DIRECTORY, too, that the log there has what was archived of it, and goes on from there.",
			Flags: append([]cli.Flag{
				&cli.StringFlag{Name: "peer", Usage: "`NAME` of the peer whose log this must be"},
				&cli.StringFlag{Name: "anchor", Usage: "`COUNT:HEAD` that the log must contain, from 'spikectl status --format json'"},
				&cli.BoolFlag{Name: "cluster", Usage: "ask the cluster for the anchor"},
				&cli.StringFlag{Name: "archive", Usage: "`URL` of an archive, as for 'spikectl snapshot verify'"},
				&cli.StringFlag{Name: "cluster-id", Usage: "`ID` of the cluster, when the archive holds several"},
			}, shareFlags()...),
			Action: verifyAudit},
	}}
}

func verifyAudit(c *cli.Context) error {
	if c.String("archive") != "" {
		return verifyAuditArchive(c)
	}
	if err := errors.Join(checkFormat(c), arguments(c, 1, 1)); err != nil {
		return err
	}
	report, anchor, err := verifyLog(c, func(anchor *audit.Anchor) (audit.Report, error) { return audit.Verify(c.Args().First(), anchor) })
	if err != nil {
		return err
	}
	err = show(c, report, func(w io.Writer) {
		fmt.Fprintf(w, "peer %s: %d records in %s, %s to %s\n", report.Peer, report.Records, count(report.Files, "file"), shortTime(report.From), shortTime(report.To))
		printFindings(w, report.Findings)
		printWhole(w, report, anchor)
	})
	return foundStatus(err, len(report.Findings))
}

// verifyLog verifies a log in a directory, with the anchor that the flags say.
func verifyLog(c *cli.Context, verify func(*audit.Anchor) (audit.Report, error)) (report audit.Report, anchor *audit.Anchor, err error) {
	if report, err = verify(nil); err != nil {
		return report, nil, err
	}
	if anchor, err = chosenAnchor(c, report.Peer); err != nil {
		return report, nil, err
	}
	if anchor != nil {
		// Read again: the log may have grown past an anchor that is newer than the
		// first reading.
		if report, err = verify(anchor); err != nil {
			return report, nil, err
		}
	}
	if want := c.String("peer"); want != "" && want != report.Peer {
		report.Findings = append(report.Findings, audit.Finding{Kind: audit.Foreign, Detail: fmt.Sprintf("this is the log of the peer %q, not of %q", report.Peer, want)})
	}
	report.Findings = append([]audit.Finding{}, report.Findings...) // in JSON a list, whatever it holds
	return report, anchor, nil
}

// foundStatus is the status of a command that found so many things wrong.
func foundStatus(err error, found int) error {
	if err == nil && found > 0 {
		return exitStatus(ExitRemote)
	}
	return err
}

func printFindings(w io.Writer, list []audit.Finding) {
	for _, f := range list {
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
}

func printWhole(w io.Writer, report audit.Report, anchor *audit.Anchor) {
	switch {
	case len(report.Findings) > 0:
	case report.Anchored:
		fmt.Fprintf(w, "the chain is whole and contains the anchored point, record %d\n", anchor.Count)
	default:
		fmt.Fprintln(w, "the chain is whole; without an anchor a cut tail cannot be seen (--cluster)")
	}
}

// auditArchiveReport is the document of 'audit verify --archive'.
type auditArchiveReport struct {
	Peers []archivedLog `json:"peers"`
	// State is why the newest state of the archive, and the anchors in it, could not be read.
	State string `json:"state,omitempty"`
}

type archivedLog struct {
	Peer         string        `json:"peer"`
	Incarnations []uint64      `json:"incarnations"`     // that have any of it
	Anchor       string        `json:"anchor,omitempty"` // in the newest state of the archive
	Archived     *audit.Report `json:"archived"`         // files are objects; null: the archive has none
	Local        *audit.Report `json:"local,omitempty"`  // of the directory
	current      *audit.Anchor // that the flags say
}

func verifyAuditArchive(c *cli.Context) error {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 1)); err != nil {
		return err
	}
	dir, peer := c.Args().First(), c.String("peer")
	if dir == "" && (c.String("anchor") != "" || c.Bool("cluster")) {
		return usage("--anchor and --cluster are about a log in a DIRECTORY: of an archive, the anchors are in it")
	}
	if dir != "" && peer == "" {
		local, err := audit.Verify(dir, nil)
		if err != nil {
			return err
		}
		peer = local.Peer
	}
	r, err := readingOf(c, "cluster-id")
	if err == nil {
		err = withShares(c, &r)
	}
	if err != nil {
		return err
	}
	logs, noState, err := node.VerifyAudit(c.Context, r, peer)
	endProgress(c)
	if err != nil {
		return remote(advised(err))
	}
	document := auditArchiveReport{Peers: []archivedLog{}}
	if noState != nil {
		document.State = noState.Error()
	}
	for _, l := range logs {
		l.Report.Findings = append([]audit.Finding{}, l.Report.Findings...)
		row := archivedLog{Peer: l.Peer, Incarnations: l.Incarnations, Archived: &l.Report}
		if l.Anchor != nil {
			row.Anchor = l.Anchor.String()
		}
		document.Peers = append(document.Peers, row)
	}
	switch {
	case dir != "" && len(logs) == 0:
		document.Peers = append(document.Peers, archivedLog{Peer: peer, Incarnations: []uint64{}})
		logs = append(logs, node.ArchivedLog{Archived: new(audit.Archived)})
	case len(logs) == 0:
		what := "no audit log of any peer"
		if peer != "" {
			what = fmt.Sprintf("no audit log of the peer %q", peer)
		}
		return remote(hinted{fmt.Errorf("the archive holds %s", what), "a file of the log goes there once it is full (audit-file-bytes) and closed, while its peer is unsealed: 'spikectl status'"})
	}
	if dir != "" {
		row := &document.Peers[0]
		report, anchor, err := verifyLog(c, func(anchor *audit.Anchor) (audit.Report, error) {
			if anchor == nil && logs[0].Current {
				anchor = logs[0].Anchor
			}
			return logs[0].VerifyLocal(dir, anchor, logs[0].Current)
		})
		if err != nil {
			return err
		}
		if row.Local, row.current = &report, anchor; anchor == nil {
			row.current = logs[0].Anchor
		}
	}
	found := 0
	for _, p := range document.Peers {
		for _, r := range []*audit.Report{p.Archived, p.Local} {
			if r != nil {
				found += len(r.Findings)
			}
		}
	}
	err = show(c, document, func(w io.Writer) { document.print(w) })
	return foundStatus(err, found)
}

func (d auditArchiveReport) print(w io.Writer) {
	for _, p := range d.Peers {
		if r := p.Archived; r == nil {
			fmt.Fprintf(w, "peer %s: nothing of its log is in the archive\n", p.Peer)
		} else {
			fmt.Fprintf(w, "peer %s: %d records to number %d in %s of incarnation %s, %s to %s\n", p.Peer, r.Records, r.Count, count(r.Files, "object"), numbers(p.Incarnations), shortTime(r.From), shortTime(r.To))
			printFindings(w, r.Findings)
			seen, _, _ := strings.Cut(p.Anchor, ":")
			switch {
			case len(r.Findings) > 0:
			case r.Anchored:
				fmt.Fprintf(w, "  the archived chain is whole and contains the anchored point, record %s\n", seen)
			case seen != "":
				fmt.Fprintf(w, "  the archived chain is whole; the anchored point, record %s, is not in it: the newest records are in the peer's own log\n", seen)
			default:
				fmt.Fprintln(w, "  the archived chain is whole; without an anchor it cannot be seen whether its newest objects are there")
			}
		}
		if r := p.Local; r != nil {
			fmt.Fprintf(w, "  its own log: %d records to number %d in %s, %s to %s\n", r.Records, r.Count, count(r.Files, "file"), shortTime(r.From), shortTime(r.To))
			printFindings(w, r.Findings)
			fmt.Fprint(w, "  ")
			printWhole(w, *r, p.current)
		}
	}
	if d.State != "" {
		fmt.Fprintf(w, "the anchors could not be read from the archive's newest state: %s\n", d.State)
	}
}

func numbers(list []uint64) string {
	var text []string
	for _, n := range list {
		text = append(text, strconv.FormatUint(n, 10))
	}
	return strings.Join(text, ", ")
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
