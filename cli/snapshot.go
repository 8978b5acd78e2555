package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// snapshotCommand works on archives without a cluster: with the bucket's credentials, and recovery shares for
// what is encrypted.
func snapshotCommand() *cli.Command {
	incarnation := &cli.Uint64Flag{Name: "incarnation", Usage: "`NUMBER` of the incarnation (default: the newest)"}
	archive := []cli.Flag{
		archiveFlag(true),
		&cli.StringFlag{Name: "cluster", Usage: "`ID` of the cluster, when the archive holds several"},
	}
	reading := append(append(archive[:2:2], shareFlags()...),
		incarnation,
		&cli.StringFlag{Name: "at", Usage: "`INDEX|TIME` to go back to, the time as 2026-01-31T15:04:05Z (default: the newest)"},
	)
	restore := append(append(liveFlags(), archiveFlag(false)), reading[1:]...) // --live needs none
	restore = append(restore,
		&cli.StringFlag{Name: "data-dir", EnvVars: []string{"SPIKE_DATA_DIR", "SPIKE_NEXUS_DATA_DIR"}, Usage: "data `DIRECTORY` to make"},
		&cli.StringFlag{Name: "audit-dir", EnvVars: []string{"SPIKE_NEXUS_AUDIT_DIR"}, Usage: "audit `DIRECTORY` (default: audit in the data directory)"},
		&cli.StringFlag{Name: "id", Usage: "`ID` of the peer that begins"},
		&cli.StringFlag{Name: "peer-address", Usage: "`HOST:PORT` of its peer link"},
		yesFlag())
	retention := append(reading[:len(reading)-2:len(reading)-2],
		&cli.IntFlag{Name: "newest", Value: snapshot.DefaultRetention.Minimum, Usage: "`NUMBER` of newest snapshots that stay whatever their age"},
		&cli.IntFlag{Name: "hourly", Value: snapshot.DefaultRetention.Hourly, Usage: "`NUMBER` of hours of which the newest snapshot stays"},
		&cli.IntFlag{Name: "daily", Value: snapshot.DefaultRetention.Daily, Usage: "`NUMBER` of days"},
		&cli.IntFlag{Name: "weekly", Value: snapshot.DefaultRetention.Weekly, Usage: "`NUMBER` of weeks"},
		&cli.IntFlag{Name: "monthly", Value: snapshot.DefaultRetention.Monthly, Usage: "`NUMBER` of months"},
		&cli.BoolFlag{Name: "dry-run", Usage: "say what would be deleted, and delete nothing"},
		yesFlag())
	return &cli.Command{Name: "snapshot", Usage: "archives in a directory, bucket or file: list, show, verify, restore without a cluster; save, drill, schedule with one", Subcommands: append(careCommands(), []*cli.Command{
		{Name: "show", Usage: "say all that is known of a snapshot or segment, and where it stands; no keys are needed", ArgsUsage: "NAME|INDEX", Flags: append(archive[:2:2], incarnation), Action: showSnapshot},
		{Name: "list", Usage: "list the snapshots, and how far the log goes on from each", Flags: archive, Action: listSnapshots},
		{Name: "verify", Usage: "read everything: authentic, without a gap, each record decrypted", Flags: reading, Action: verifyArchive,
			Description: "Exit status 2 says that something is wrong with the archive."},
		{Name: "probe", Usage: "find out what the store of a bucket does, and what the credentials may do there", Flags: archive[:1], Action: probeArchive,
			Description: "It creates a few small objects below probe/, and deletes them if it may."},
		{Name: "prune", Usage: "delete what the retention does not want, after verifying what stays", Flags: retention, Action: pruneArchive,
			Description: "The newest snapshot, and the log after it, are verified first, all of it; nothing is deleted if that fails. What stays still leads to every\n" +
				"index from its oldest snapshot on. Objects that the store's own retention keeps are counted, and stay."},
		{Name: "restore", Usage: "make the first peer of a new cluster from an archive, or take a running cluster back (--live)", Flags: restore, Action: restoreCommand,
			Description: restoreDescription},
	}...)}
}

func archiveFlag(required bool) cli.Flag {
	return &cli.StringFlag{Name: "archive", EnvVars: []string{"SPIKE_NEXUS_ARCHIVE"}, Usage: "`URL` of the archive: file:///DIRECTORY or s3://BUCKET/PREFIX?endpoint=…, or a single-file archive: FILE.tar", Required: required}
}

// shareFlags name the recovery shares that open an archive.
func shareFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "share", Aliases: []string{"s"}, Usage: "`FILE` of a recovery share; as many as the share set needs"},
		&cli.StringSliceFlag{Name: "identity", Aliases: []string{"i"}, Usage: "`FILE` of the private key that a share is encrypted to; may be repeated"},
		passphraseFlag("one line for each share that is encrypted to one"),
	}
}

// reading is what the flags say of an archive.
func reading(c *cli.Context) (r node.ArchiveReading, err error) {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
		return r, err
	}
	return readingOf(c, "cluster")
}

// readingOf is reading for a command that checks its arguments itself; flag has the cluster's id.
func readingOf(c *cli.Context, flag string) (r node.ArchiveReading, err error) {
	if r.Archive, err = openArchive(c); err != nil {
		return r, usage("%v", err)
	}
	if id := c.String(flag); id != "" {
		b, err := hex.DecodeString(id)
		if err != nil || len(b) != 16 {
			return r, usage("--%s: %q is not the id of a cluster, 32 hexadecimal digits", flag, id)
		}
		r.Cluster = [16]byte(b)
	}
	return r, nil
}

// openArchive opens what --archive names; a single-file archive stays open as long as spikectl runs.
func openArchive(c *cli.Context) (*snapshot.Archive, error) {
	name := c.String("archive")
	if strings.Contains(name, "://") || !strings.HasSuffix(name, ".tar") {
		return node.OpenArchive(c.Context, name, "")
	}
	file, err := snapshot.OpenTar(name)
	if err != nil {
		return nil, err
	}
	return snapshot.New(file, "", ""), nil
}

// snapshotRow is one snapshot of 'snapshot list'.
type snapshotRow struct {
	Cluster     string    `json:"cluster"`
	Incarnation uint64    `json:"incarnation"`
	Index       uint64    `json:"index"`
	Modified    time.Time `json:"modified"`
	Size        int64     `json:"size"`
	Through     uint64    `json:"through"` // index up to which the log goes on from it
	Name        string    `json:"name"`
}

func listSnapshots(c *cli.Context) error {
	r, err := reading(c)
	if err != nil {
		return err
	}
	list, err := r.Archive.List(c.Context, r.Cluster)
	if err != nil {
		return remote(err)
	}
	rows := []snapshotRow{}
	for _, i := range list {
		if i.Kind == snapshot.Snapshot {
			rows = append(rows, snapshotRow{hex.EncodeToString(i.Cluster[:]), i.Incarnation, i.Last, i.Modified, i.Size, snapshot.Through(list, i), i.Name})
		}
	}
	return show(c, rows, func(w io.Writer) {
		out := [][]string{{"CLUSTER", "INCARNATION", "INDEX", "LOG TO", "SIZE", "STORED"}}
		for _, s := range rows {
			out = append(out, []string{s.Cluster[:8], strconv.FormatUint(s.Incarnation, 10), strconv.FormatUint(s.Index, 10), strconv.FormatUint(s.Through, 10), bytesText(uint64(s.Size)), shortTime(s.Modified)})
		}
		table(w, out...)
	})
}

// shares are those that the flags name, decrypted.
func shares(c *cli.Context) (list []store.RecoveryShare, err error) {
	for _, name := range c.StringSlice("share") {
		request, err := readShare(c, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		share := store.RecoveryShare{Index: request.Index, Bytes: [32]byte(request.Share)}
		copy(share.Cluster[:], request.Cluster)
		copy(share.Set[:], request.Set)
		clear(request.Share)
		list = append(list, share)
	}
	return list, nil
}

// fullReading is reading with shares, and with the index that --at says.
func fullReading(c *cli.Context) (r node.ArchiveReading, err error) {
	if r, err = reading(c); err != nil {
		return r, err
	}
	if err := withShares(c, &r); err != nil {
		return r, err
	}
	r.Incarnation = c.Uint64("incarnation")
	var when time.Time
	if r.Index, when, err = atFlag(c); err != nil {
		return r, err
	}
	if !when.IsZero() {
		list, err := r.Archive.List(c.Context, r.Cluster)
		if err != nil {
			return r, remote(err)
		}
		if r.Index, err = r.Archive.IndexAt(c.Context, list, r.Incarnation, when); err != nil {
			return r, remote(err)
		}
	}
	return r, nil
}

// withShares adds the shares that open the archive, and shows how far the reading is.
func withShares(c *cli.Context, r *node.ArchiveReading) (err error) {
	if r.Shares, err = shares(c); err != nil {
		return err
	}
	if len(r.Shares) == 0 {
		return usage("recovery shares open the archive: give enough of them with --share")
	}
	if isTerminal(c.App.ErrWriter) {
		r.Progress = func(i snapshot.Item) { fmt.Fprintf(c.App.ErrWriter, "\r%s: read to %d ", i.Kind, i.Last) }
	}
	return nil
}

// archiveReport is the document of verify and restore.
type archiveReport struct {
	Cluster     string    `json:"cluster"`
	Incarnation uint64    `json:"incarnation"`
	Snapshot    uint64    `json:"snapshot"` // its index
	Made        time.Time `json:"made"`
	Peer        string    `json:"peer"`
	Index       uint64    `json:"index"`
	Entries     int       `json:"entries"`
	Secrets     int       `json:"secrets"`
	Versions    int       `json:"versions"`
	Policies    int       `json:"policies"`
	DataHash    string    `json:"dataHash"`
	// Restored is the new incarnation, when there is one.
	Restored uint64 `json:"restored,omitempty"`
}

func archiveReportOf(r node.ArchiveReport) archiveReport {
	return archiveReport{Cluster: hex.EncodeToString(r.Cluster[:]), Incarnation: r.Incarnation, Snapshot: r.Snapshot.Last, Made: r.Snapshot.Created, Peer: r.Snapshot.Peer,
		Index: r.Index, Entries: r.Entries, Secrets: r.Secrets, Versions: r.Versions, Policies: r.Policies, DataHash: hex.EncodeToString(r.Data[:])}
}

func (r archiveReport) print(w io.Writer) {
	fmt.Fprintf(w, "cluster %s, incarnation %d: the state at index %d\n", r.Cluster, r.Incarnation, r.Index)
	fmt.Fprintf(w, "  snapshot of index %d, made by %s at %s, and %s after it\n", r.Snapshot, r.Peer, shortTime(r.Made), countAs(r.Entries, "entry", "entries"))
	fmt.Fprintf(w, "  %s with %s, %s; each decrypted\n", count(r.Secrets, "secret"), count(r.Versions, "version"), countAs(r.Policies, "policy", "policies"))
	fmt.Fprintf(w, "  data hash %s\n", r.DataHash)
}

func verifyArchive(c *cli.Context) error {
	r, err := fullReading(c)
	if err != nil {
		return err
	}
	report, err := node.VerifyArchive(c.Context, r)
	endProgress(c)
	if err != nil {
		return remote(advised(err))
	}
	document := archiveReportOf(report)
	return show(c, document, func(w io.Writer) { document.print(w) })
}

func endProgress(c *cli.Context) {
	if isTerminal(c.App.ErrWriter) {
		fmt.Fprint(c.App.ErrWriter, "\r\x1b[K")
	}
}

func restoreArchive(c *cli.Context) error {
	r, err := fullReading(c)
	if err != nil {
		return err
	}
	dir := c.String("data-dir")
	if _, err := os.Stat(filepath.Join(dir, "raft")); err == nil {
		return usage("%s holds a peer's data already; a restore makes a new one", dir)
	}
	if err := ask(c, fmt.Sprintf("Make %s the beginning of a new cluster? If the one before still runs, there will be two", c.String("id"))); err != nil {
		return err
	}
	report, incarnation, err := node.RestoreArchive(c.Context, node.ArchiveRestoring{ArchiveReading: r, DataDir: dir, AuditDir: c.String("audit-dir"),
		ID: c.String("id"), Address: c.String("peer-address"), Who: whoAmI()})
	endProgress(c)
	if err != nil {
		return remote(advised(err))
	}
	document := archiveReportOf(report)
	document.Restored = incarnation
	return show(c, document, func(w io.Writer) {
		document.print(w)
		fmt.Fprintf(c.App.ErrWriter, "restored into %s, as incarnation %d. Now: start %s with --peers %s=%s alone; 'spikectl operator restore' with the same shares; then let others join\n",
			dir, incarnation, c.String("id"), c.String("id"), c.String("peer-address"))
	})
}

// pruneReport is the document of 'snapshot prune'.
type pruneReport struct {
	Verified string   `json:"verified"` // the snapshot that was
	Kept     int      `json:"kept"`     // objects
	Drop     []string `json:"drop"`     // names of those to delete
	Deleted  int      `json:"deleted"`
	Retained int      `json:"retained"` // that the store keeps all the same
}

func pruneArchive(c *cli.Context) error {
	r, err := fullReading(c)
	if err != nil {
		return err
	}
	policy := snapshot.Retention{Minimum: c.Int("newest"), Hourly: c.Int("hourly"), Daily: c.Int("daily"), Weekly: c.Int("weekly"), Monthly: c.Int("monthly")}
	verified, err := node.VerifyArchive(c.Context, r)
	endProgress(c)
	if err != nil {
		return remote(fmt.Errorf("nothing was deleted, because what would stay does not verify: %w", advised(err)))
	}
	list, err := r.Archive.List(c.Context, verified.Cluster)
	if err != nil {
		return remote(err)
	}
	keep, drop := snapshot.Retain(list, policy, map[string]bool{verified.Name: true})
	report := pruneReport{Verified: verified.Name, Kept: len(keep), Drop: []string{}}
	for _, i := range drop {
		report.Drop = append(report.Drop, i.Name)
	}
	if len(drop) > 0 && !c.Bool("dry-run") {
		if err := confirm(c, fmt.Sprintf("Delete %s of %d?", count(len(drop), "object"), len(list))); err != nil {
			return err
		}
		done, err := r.Archive.Prune(c.Context, drop)
		if err != nil {
			return remote(err)
		}
		report.Deleted, report.Retained = done.Deleted, len(done.Retained)
	}
	return show(c, report, func(w io.Writer) {
		fmt.Fprintf(w, "verified: %s\n", report.Verified)
		switch {
		case c.Bool("dry-run"):
			fmt.Fprintf(w, "%s would stay, %s would go\n", count(report.Kept, "object"), count(len(drop), "object"))
		default:
			fmt.Fprintf(w, "%s stay, %s deleted, %s kept by the store's retention\n", count(report.Kept, "object"), count(report.Deleted, "object"), count(report.Retained, "object"))
		}
	})
}

func probeArchive(c *cli.Context) error {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
		return err
	}
	found, err := node.ProbeArchive(c.Context, c.String("archive"))
	if err != nil {
		return remote(err)
	}
	document := map[string]any{"create": found.Create, "read": found.Read, "list": found.List, "delete": found.Delete, "conditionalCreate": found.Conditional, "freshLists": found.Fresh,
		"versioning": found.Versioning, "objectLock": found.Lock, "clockSeconds": found.Clock.Seconds(), "left": append([]string{}, found.Left...)}
	return show(c, document, func(w io.Writer) {
		rows := [][]string{{"create objects", string(found.Create)}, {"list them", string(found.List)}, {"read them", string(found.Read)}, {"delete them", string(found.Delete)},
			{"refuses a second object of a name", string(found.Conditional)}, {"lists show at once what was stored", string(found.Fresh)}, {"versioning", string(found.Versioning)},
			{"object lock by default", string(found.Lock)}, {"its clock is off by", found.Clock.Round(time.Second).String()}}
		table(w, rows...)
		if found.Conditional == "no" {
			fmt.Fprintln(c.App.ErrWriter, "add conditional=false to the bucket's address: then a name is looked for before it is written")
		}
		for _, name := range found.Left {
			fmt.Fprintf(c.App.ErrWriter, "left there: %s\n", name)
		}
	})
}

// advised says what to do about an archive that cannot be read. No Keeper is asked here, so that none can help.
func advised(err error) error {
	var few *seal.NotEnoughError
	var gap *snapshot.GapError
	switch {
	case errors.As(err, &few):
		return hinted{fmt.Errorf("%d of the %d recovery shares that open the archive were given", few.Good, few.Needed),
			"give the files of different shares of the cluster's present share set, each with its own --share, and the keys that they are encrypted to with --identity"}
	case errors.As(err, &gap):
		return hinted{err, fmt.Sprintf("'--at %d' goes as far as the log does; 'spikectl snapshot list' shows the snapshots from which it goes on", gap.Have)}
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrFormat), errors.Is(err, snapshot.ErrForeign):
		return hinted{err, "go back to before that object with --at ('spikectl snapshot list'), or restore it from a copy of the bucket; a running cluster makes a new beginning with 'spikectl snapshot save'"}
	case errors.Is(err, snapshot.ErrNothing), errors.Is(err, snapshot.ErrNoKeyring):
		return hinted{err, "check --archive, its prefix, and --incarnation: 'spikectl snapshot list' shows what is there"}
	}
	return err
}

// remote marks a failure of a store or an archive as of the other side.
func remote(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return remoteError{err}
}

type remoteError struct{ error }

func (e remoteError) Unwrap() []error { return []error{e.error, errRemote} }
