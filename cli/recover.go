package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/node"
)

// offlineCommands are those of 'spikectl cluster' that work on the data
// directory of a stopped peer.
func offlineCommands() []*cli.Command {
	dir := &cli.StringFlag{Name: "data-dir", EnvVars: []string{"SPIKE_DATA_DIR", "SPIKE_NEXUS_DATA_DIR"}, Usage: "data `DIRECTORY` of the stopped peer"}
	return []*cli.Command{
		{Name: "inspect", Usage: "show what a stopped peer's data directory holds", Flags: []cli.Flag{dir}, Action: inspectData},
		{Name: "recover", Usage: "after the loss of a majority for good: go on from one stopped peer", Flags: []cli.Flag{dir,
			&cli.StringFlag{Name: "audit-dir", EnvVars: []string{"SPIKE_NEXUS_AUDIT_DIR"}, Usage: "its audit `DIRECTORY` (default: audit in the data directory)"},
			&cli.StringFlag{Name: "peers", Usage: "all survivors, this one included: `ID=HOST:PORT,…`"},
			&cli.StringSliceFlag{Name: "report", Usage: "`FILE` with what 'spikectl cluster inspect --format json' says of a survivor that is stopped, too"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
			&cli.BoolFlag{Name: "force", Usage: "although a survivor holds newer data or does not answer: what it has beyond this peer is lost"},
			yesFlag()},
			Description: "The peer becomes the only voter of the cluster, under a new incarnation, with everything that is in its\n" +
				"log; what the lost ones had acknowledged beyond it is gone. Choose the survivor that has most: of each\n" +
				"other one in --peers it must be known what it holds, from --report or from its API (--address), and none\n" +
				"may hold more. Afterwards start this peer, and bring the others back: of each remove raft/ in its data\n" +
				"directory and keep audit/, then 'spikectl cluster join' and promote. One that comes back as it was is told, and ends.\n" +
				"Interrupted, it is run again with the same arguments.",
			Action: recoverData},
	}
}

// dataReport is the document of 'cluster inspect', and of its reports.
type dataReport struct {
	ID          string         `json:"id"`
	ClusterID   string         `json:"clusterId"`
	Incarnation uint64         `json:"incarnation"`
	LastTerm    uint64         `json:"lastTerm"`
	LastIndex   uint64         `json:"lastIndex"`
	Members     []reportMember `json:"members"`
	Recovering  bool           `json:"recovering"`
}

type reportMember struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
}

func reportOf(r cluster.Report) dataReport {
	d := dataReport{r.ID, hex.EncodeToString(r.ClusterID[:]), r.Incarnation, r.LastTerm, r.LastIndex, []reportMember{}, r.Recovering}
	for _, m := range r.Members {
		d.Members = append(d.Members, reportMember(m))
	}
	return d
}

func (d dataReport) report() (r cluster.Report, err error) {
	id, err := hex.DecodeString(d.ClusterID)
	if err != nil || len(id) != 16 || d.ID == "" || d.Incarnation == 0 {
		return r, errors.New("it is not a report of 'spikectl cluster inspect --format json'")
	}
	return cluster.Report{ID: d.ID, ClusterID: [16]byte(id), Incarnation: d.Incarnation, LastTerm: d.LastTerm, LastIndex: d.LastIndex}, nil
}

func dataDir(c *cli.Context) (string, error) {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
		return "", err
	}
	if c.String("data-dir") == "" {
		return "", usage("name the data directory of the stopped peer: --data-dir")
	}
	return c.String("data-dir"), nil
}

func inspectData(c *cli.Context) error {
	dir, err := dataDir(c)
	if err != nil {
		return err
	}
	r, err := node.Inspect(c.Context, dir)
	if err != nil {
		return err
	}
	d := reportOf(r)
	return show(c, d, func(w io.Writer) { printReport(w, d) })
}

func printReport(w io.Writer, d dataReport) {
	fmt.Fprintf(w, "Peer      %s, of cluster %s, incarnation %d\nLog       ends at entry %d of term %d\n", d.ID, d.ClusterID, d.Incarnation, d.LastIndex, d.LastTerm)
	if d.Recovering {
		fmt.Fprintln(w, "Recovery  was interrupted: run 'spikectl cluster recover' again")
	}
	rows := [][]string{{"MEMBER", "VOTE", "ADDRESS"}}
	for _, m := range d.Members {
		rows = append(rows, []string{m.ID, yesNo(m.Voter), m.Address})
	}
	table(w, rows...)
}

func recoverData(c *cli.Context) error {
	dir, err := dataDir(c)
	if err != nil {
		return err
	}
	here, err := node.Inspect(c.Context, dir)
	if err != nil {
		return err
	}
	r := node.Recovery{DataDir: dir, AuditDir: c.String("audit-dir"), Force: c.Bool("force"), DryRun: c.Bool("dry-run"), Who: whoAmI(),
		Logger: slog.New(slog.DiscardHandler)}
	var ids []string
	for _, item := range listed([]string{c.String("peers")}) {
		id, address, ok := strings.Cut(item, "=")
		if !ok || id == "" || address == "" || slices.Contains(ids, id) {
			return usage("--peers: %q is not written ID=HOST:PORT, or is there twice", item)
		}
		ids = append(ids, id)
		if id == here.ID {
			r.Address = address
		}
	}
	if r.Address == "" {
		return usage("--peers must list all survivors, this one (%s) included: %s=HOST:PORT,…", here.ID, here.ID)
	}
	if r.Others, err = otherReports(c, here, ids); err != nil {
		return err
	}
	before, incarnation, err := node.Recover(c.Context, node.Recovery{DataDir: r.DataDir, Address: r.Address, Others: r.Others, Force: r.Force, DryRun: true})
	if err != nil {
		return local(err)
	}
	var lost []string
	for _, m := range before.Members {
		if m.ID != here.ID && !slices.Contains(ids, m.ID) {
			lost = append(lost, m.ID)
		}
	}
	w := c.App.ErrWriter
	fmt.Fprintf(w, "%s, which ends at entry %d of term %d, becomes the only voter of cluster %s.\n", here.ID, before.LastIndex, before.LastTerm, hex.EncodeToString(here.ClusterID[:]))
	if len(lost) > 0 {
		fmt.Fprintf(w, "Not listed, so lost for good: %s. What they acknowledged beyond that entry is gone.\n", strings.Join(lost, ", "))
	}
	if r.Force {
		for _, line := range forcedLosses(before, r.Others, ids) {
			fmt.Fprintln(w, line)
		}
	}
	if r.DryRun {
		fmt.Fprintln(w, "Nothing was changed (--dry-run).")
	} else {
		if err := confirm(c, fmt.Sprintf("Recover the cluster from %s alone?", here.ID)); err != nil {
			return err
		}
		if before, incarnation, err = node.Recover(c.Context, r); err != nil {
			return err
		}
	}
	answer := struct {
		Before      dataReport `json:"before"`
		Incarnation uint64     `json:"incarnation,omitempty"`
		Lost        []string   `json:"lost"`
		DryRun      bool       `json:"dryRun"`
	}{reportOf(before), incarnation, lost, r.DryRun}
	if r.DryRun {
		answer.Incarnation = 0 // drawn anew when it is done
	}
	return show(c, answer, func(io.Writer) {
		if !r.DryRun {
			fmt.Fprintf(w, "Recovered: incarnation %d. Start %s; then join the others, each with raft/ in its data directory removed and audit/ kept: spikectl cluster join ID HOST:PORT\n", incarnation, here.ID)
		}
	})
}

// otherReports finds out what the other survivors hold.
func otherReports(c *cli.Context, here cluster.Report, ids []string) ([]cluster.Report, error) {
	known := map[string]cluster.Report{}
	for _, file := range c.StringSlice("report") {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var d dataReport
		if err = json.Unmarshal(b, &d); err == nil {
			known[d.ID], err = d.report()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	missing := func() (ids2 []string) {
		for _, id := range ids {
			if _, ok := known[id]; !ok && id != here.ID {
				ids2 = append(ids2, id)
			}
		}
		return ids2
	}
	why := errors.New("it does not answer, and there is no report")
	if len(missing()) > 0 {
		if err := askSurvivors(c, known); err != nil {
			if errors.Is(err, errHasQuorum) {
				return nil, err
			}
			why = err
		}
	}
	if left := missing(); len(left) > 0 && !c.Bool("force") {
		return nil, hinted{fmt.Errorf("it is not known what %s holds: %w", strings.Join(left, ", "), why),
			"give its API address (--address), or stop it and give --report FILE of 'spikectl cluster inspect --format json'; one that is lost is not listed in --peers"}
	}
	var list []cluster.Report
	for id, r := range known {
		if id != here.ID {
			list = append(list, r)
		}
	}
	return list, nil
}

// forcedLosses says what the survivors ids hold, or may hold, beyond the peer
// that is to be recovered: without --force it would be refused.
func forcedLosses(here cluster.Report, others []cluster.Report, ids []string) (lines []string) {
	for _, id := range ids {
		at := slices.IndexFunc(others, func(o cluster.Report) bool { return o.ID == id })
		switch {
		case id == here.ID:
		case at < 0:
			lines = append(lines, fmt.Sprintf("Not known what %s holds: it may be more, and would be lost.", id))
		case others[at].Incarnation != here.Incarnation || !others[at].Newer(here):
		case others[at].LastTerm == here.LastTerm:
			lines = append(lines, fmt.Sprintf("LOST by --force: %s holds %s more (up to %d of term %d).", id,
				countAs(int(others[at].LastIndex-here.LastIndex), "entry", "entries"), others[at].LastIndex, others[at].LastTerm))
		default: // where the two logs parted is not known
			lines = append(lines, fmt.Sprintf("LOST by --force: %s holds newer entries (up to %d of term %d).", id, others[at].LastIndex, others[at].LastTerm))
		}
	}
	return lines
}

var errHasQuorum = errors.New("there is a quorum, and nothing to recover")

// askSurvivors asks every address that is configured what its peer holds.
func askSurvivors(c *cli.Context, known map[string]cluster.Report) error {
	cl, ctx, done, err := connect(c)
	if err != nil {
		return err
	}
	defer done()
	for i := range cl.Peers() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		status, err := cl.StatusOf(ctx, i)
		cancel()
		if err != nil {
			continue // whether it is missed shows afterwards
		}
		if status.Leader != "" && !c.Bool("force") {
			return fmt.Errorf("%w: %s follows the leader %s", errHasQuorum, status.AskedPeer, status.Leader)
		}
		for _, p := range status.Peers {
			if _, have := known[p.ID]; have || p.ID != status.AskedPeer || !p.Reachable {
				continue
			}
			r, err := dataReport{ID: p.ID, ClusterID: status.ClusterID, Incarnation: status.Incarnation, LastTerm: p.LastTerm, LastIndex: p.LastIndex}.report()
			if err != nil {
				return fmt.Errorf("%s: what it says of its data is not understood", p.ID)
			}
			known[p.ID] = r
		}
	}
	return nil
}

func whoAmI() string {
	if u, err := user.Current(); err == nil {
		return "local user " + u.Username
	}
	return fmt.Sprintf("local user %d", os.Getuid())
}
