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

// careCommands ask a cluster to do something for its archive.
func careCommands() []*cli.Command {
	patience := &cli.DurationFlag{Name: "wait", Value: time.Hour, Usage: "`DURATION` to wait until it is done"}
	return []*cli.Command{
		{Name: "save", Usage: "have the cluster put a snapshot into its archive now, or save one into a file (role superuser)",
			Description: "With --out any unsealed peer writes a single-file archive, as encrypted as any: list, show, verify and restore take it\n" +
				"with --archive FILE.tar. It appears whole or not at all, for nobody else to read (mode 0600).",
			Flags: []cli.Flag{&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FILE.tar` to save into"}, patience}, Action: over(connectForever, saveSnapshot)},
		{Name: "drill", Usage: "have a peer prove that the archive can be restored, on record (role superuser)",
			Description: "The newest state is restored into the memory of the peer that is asked, every record decrypted, and all of it thrown away.\n" +
				"Exit status 2 says that it failed, and why.",
			Flags: []cli.Flag{patience}, Action: over(connectForever, drillArchive)},
		{Name: "schedule", Usage: "show how the cluster cares for its archive, or change it (changes take the role superuser)",
			Description: "Counts say of how many hours, days, weeks and months that have any the newest snapshot stays, and how many of the newest ones.\n" +
				"As long as all are 0 everything stays. The leader prunes after each drill that succeeded, if the store lets it.",
			Flags: []cli.Flag{
				&cli.DurationFlag{Name: "snapshots", Usage: "`DURATION` after which a snapshot has a successor; 0: what each peer has in --archive-snapshot-every"},
				&cli.DurationFlag{Name: "drills", Usage: "`DURATION` between two drills; 0: none"},
				&cli.UintFlag{Name: "keep-newest", Usage: "`NUMBER` of newest snapshots that stay whatever their age"},
				&cli.UintFlag{Name: "keep-hourly", Usage: "`NUMBER` of hours"},
				&cli.UintFlag{Name: "keep-daily", Usage: "`NUMBER` of days"},
				&cli.UintFlag{Name: "keep-weekly", Usage: "`NUMBER` of weeks"},
				&cli.UintFlag{Name: "keep-monthly", Usage: "`NUMBER` of months"},
			}, Action: with(scheduleSnapshots)},
	}
}

// waiting bounds a command by --wait.
func waiting(c *cli.Context, ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.Duration("wait"))
}

func saveSnapshot(c *cli.Context, dial dialer) (err error) {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	if c.IsSet("out") {
		return exportSnapshot(c, dial)
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	ctx, cancel := waiting(c, ctx)
	defer cancel()
	saved, err := cl.SaveSnapshot(ctx)
	if err != nil {
		return archiveRefused(err)
	}
	return show(c, saved, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n  the state at index %d, %s\n", saved.Name, saved.Index, bytesText(uint64(saved.Size)))
	})
}

// exported is the document of 'snapshot save --out'.
type exported struct {
	File string `json:"file"`
	Size int64  `json:"size"`
}

func exportSnapshot(c *cli.Context, dial dialer) (err error) {
	if c.String("out") == "" {
		return usage("--out is empty; name the file")
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	ctx, cancel := waiting(c, ctx)
	defer cancel()
	file, size, err := cl.ExportSnapshot(ctx)
	if err != nil {
		return archiveRefused(err)
	}
	defer file.Close()
	out, keep, err := streamOutput(c)
	if err != nil {
		return err
	}
	defer func() { // before it is said that all is well
		if err = keep(err); err == nil {
			err = show(c, exported{c.String("out"), size}, func(w io.Writer) {
				fmt.Fprintf(w, "%s, %s\n", c.String("out"), bytesText(uint64(size)))
			})
		}
	}()
	in := io.Reader(file)
	if isTerminal(c.App.ErrWriter) {
		bar := newBar(c.App.ErrWriter, size)
		defer bar.end()
		in = io.TeeReader(in, bar)
	}
	output := &remembering{Writer: out}
	n, err := io.Copy(output, in)
	switch {
	case output.err != nil:
		return local(fmt.Errorf("writing: %w", output.err))
	case err == nil && n != size:
		return remote(fmt.Errorf("%d bytes came instead of %d; nothing was kept", n, size))
	}
	return err
}

// archiveRefused says what to do about what a peer cannot do for its archive.
func archiveRefused(err error) error {
	var e *secret.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Reason {
	case "no_archive":
		return hinted{err, "'spikectl snapshot save --out FILE.tar' needs none"}
	case "under_way":
		return hinted{err, "'spikectl snapshot schedule' shows what it came to"}
	case "archive_forbidden", "archive_failed":
		return hinted{err, "'spikectl snapshot probe' says what the store lets whom do; 'spikectl status' how shipping stands"}
	}
	return needsRole(err, "superuser")
}

func drillArchive(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	ctx, cancel := waiting(c, ctx)
	defer cancel()
	if isTerminal(c.App.ErrWriter) {
		fmt.Fprint(c.App.ErrWriter, "restoring the archive into memory… ")
	}
	drill, err := cl.DrillArchive(ctx)
	endProgress(c)
	if err != nil {
		return archiveRefused(err)
	}
	if err := show(c, drill, func(w io.Writer) { printDrill(w, drill) }); err != nil {
		return err
	}
	if !drill.OK {
		return hinted{remote(errors.New("the archive could not be restored: " + drill.Reason)),
			"find out who changed the store, and have a new beginning made: 'spikectl snapshot save', then drill again. Do not prune until that succeeds"}
	}
	return nil
}

func printDrill(w io.Writer, d client.DrillAnswer) {
	if !d.OK {
		fmt.Fprintf(w, "FAILED on %s after %.1f s: %s\n", d.Peer, d.Seconds, d.Reason)
		return
	}
	fmt.Fprintf(w, "restored on %s in %.1f s: the state at index %d\n", d.Peer, d.Seconds, d.Index)
	fmt.Fprintf(w, "  snapshot of index %d and %s after it\n", d.Snapshot, countAs(int(d.Entries), "entry", "entries"))
	fmt.Fprintf(w, "  %s with %s, %s; each decrypted\n", count(int(d.Secrets), "secret"), count(int(d.Versions), "version"), countAs(int(d.Policies), "policy", "policies"))
	fmt.Fprintf(w, "  data hash %s\n", d.DataHash)
}

func scheduleSnapshots(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	change, err := scheduleChange(c)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	if change != (client.SettingsRequest{}) {
		if _, err := cl.PutSettings(ctx, change); err != nil {
			return needsRole(err, "superuser")
		}
	}
	answer, err := cl.Snapshots(ctx)
	if err != nil {
		return needsRole(err, "operator")
	}
	return show(c, answer, func(w io.Writer) { printSchedule(w, answer) })
}

func scheduleChange(c *cli.Context) (q client.SettingsRequest, err error) {
	seconds := func(name string) (*uint64, error) {
		d := c.Duration(name)
		switch {
		case !c.IsSet(name):
			return nil, nil
		case d < 0 || d%time.Second != 0:
			return nil, usage("--%s is a number of whole seconds, like 1h or 90s; 0 turns it off", name)
		}
		n := uint64(d / time.Second)
		return &n, nil
	}
	number := func(name string) *uint32 {
		if !c.IsSet(name) {
			return nil
		}
		n := uint32(min(c.Uint(name), 1<<31))
		return &n
	}
	q.KeepMinimum, q.KeepHourly, q.KeepDaily, q.KeepWeekly, q.KeepMonthly = number("keep-newest"), number("keep-hourly"), number("keep-daily"), number("keep-weekly"), number("keep-monthly")
	if q.ArchiveSnapshotSeconds, err = seconds("snapshots"); err != nil {
		return q, err
	}
	q.ArchiveDrillSeconds, err = seconds("drills")
	return q, err
}

func printSchedule(w io.Writer, a client.SnapshotsAnswer) {
	every := func(seconds float64) string {
		if seconds == 0 {
			return "never"
		}
		return "every " + (time.Duration(seconds) * time.Second).String()
	}
	when := func(t *time.Time) string {
		switch {
		case t == nil:
			return "-"
		case !t.After(time.Now()):
			return "due"
		}
		return shortTime(*t)
	}
	snapshots := every(a.SnapshotSeconds)
	if a.SnapshotSetting == 0 {
		snapshots += " (--archive-snapshot-every of the peers)"
	}
	last := "none is known"
	if a.LastSnapshot != nil {
		last = fmt.Sprintf("%s, index %d", shortTime(*a.LastSnapshot), a.SnapshotIndex)
	}
	fmt.Fprintf(w, "Archive    %s, shipped by %s\n", orDash(a.Archive), orDash(a.Shipper))
	fmt.Fprintf(w, "Snapshots  %s; last %s; next %s\n", snapshots, last, when(a.NextSnapshot))
	fmt.Fprintf(w, "Drills     %s; last %s; next %s\n", every(a.DrillSeconds), lastDrill(a.Drills), when(a.NextDrill))
	fmt.Fprintf(w, "Retention  %s\n", retentionText(a.Retention))
	if a.Pruned != nil {
		fmt.Fprintf(w, "Pruned     %s\n", prunedText(*a.Pruned))
	}
	if len(a.Drills) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"DRILL", "PEER", "RESULT", "INDEX", "SECRETS", "SECONDS"}}
	for _, d := range a.Drills {
		result := "ok"
		if !d.OK {
			result = "FAILED: " + d.Reason
		}
		rows = append(rows, []string{shortTime(d.Time), d.Peer, result, fmt.Sprint(d.Index), fmt.Sprint(d.Secrets), fmt.Sprintf("%.1f", d.Seconds)})
	}
	table(w, rows...)
}

func lastDrill(list []client.DrillAnswer) string {
	switch {
	case len(list) == 0:
		return "none yet"
	case list[0].OK:
		return shortTime(list[0].Time) + ", ok"
	}
	return shortTime(list[0].Time) + ", FAILED"
}

func retentionText(r client.Retention) string {
	if r == (client.Retention{}) {
		return "everything stays"
	}
	return fmt.Sprintf("%d newest, %d hourly, %d daily, %d weekly, %d monthly; after each drill that succeeds", max(r.Minimum, 1), r.Hourly, r.Daily, r.Weekly, r.Monthly)
}

func prunedText(p client.Pruned) string {
	text := fmt.Sprintf("%s: %s deleted, %d stay", shortTime(p.Time), count(p.Deleted, "object"), p.Kept)
	if p.Retained > 0 {
		text += fmt.Sprintf(", %d more kept by the store's retention", p.Retained)
	}
	switch {
	case p.Forbidden:
		text += "; the store lets the peers delete nothing: prune as somebody else ('spikectl snapshot prune')"
	case p.Error != "":
		text += "; FAILED: " + p.Error
	}
	return text
}
