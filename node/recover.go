package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
)

// What follows is done to the data directory of a peer that is stopped.

// Recovery is what Recover is told.
type Recovery struct {
	DataDir, AuditDir string // AuditDir: as in Config
	Address           string // host:port of this peer's link from now on
	// Others are what the other survivors hold; one that is newer is refused
	// without Force.
	Others []cluster.Report
	// Who is written into the audit log as who did it.
	Who           string
	Force, DryRun bool
	Logger        *slog.Logger
}

// Inspect reports what a stopped peer's data directory holds.
func Inspect(ctx context.Context, dataDir string) (cluster.Report, error) {
	return cluster.InspectData(ctx, raftDir(dataDir))
}

// incarnation is that of the peer's data: it moves when a cluster is recovered,
// the one in the replicated state, which keys are sealed for, does not.
func (n *Node) incarnation() uint64 {
	_, incarnation, _ := n.cluster.Identity()
	return incarnation
}

func raftDir(dataDir string) string { return filepath.Join(dataDir, "raft") }

// Recover makes the stopped peer a cluster of its own: see cluster.Recover. It
// is on record in the peer's audit log, as intent and outcome.
func Recover(ctx context.Context, r Recovery) (before cluster.Report, incarnation uint64, err error) {
	if before, err = Inspect(ctx, r.DataDir); err != nil {
		return before, 0, err
	}
	do := func(dry bool) error {
		before, incarnation, err = cluster.Recover(ctx, cluster.Recovery{Dir: raftDir(r.DataDir), Address: r.Address, Others: r.Others,
			StateMachine: machine{fsm.New(fsm.Options{})}, Logger: r.Logger, Force: r.Force, DryRun: dry})
		return err
	}
	if err := do(true); err != nil || r.DryRun {
		return before, incarnation, err
	}
	cfg := Config{DataDir: r.DataDir, AuditDir: r.AuditDir}
	if _, err := os.Stat(cfg.auditDir()); errors.Is(err, fs.ErrNotExist) {
		return before, 0, fmt.Errorf("there is no audit log in %s, and nothing is done off the record: name its directory", cfg.auditDir())
	}
	log, err := audit.Open(audit.Config{Dir: cfg.auditDir(), Peer: before.ID, FileBytes: Default().AuditFileBytes})
	if err != nil {
		return before, 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	record := audit.Record{Op: "cluster.recover", Phase: audit.PhaseIntent, Decision: audit.Allow, By: "the data directory", Caller: r.Who, Index: before.LastIndex,
		Detail: fmt.Sprintf("from incarnation %d, entry %d of term %d, force %t", before.Incarnation, before.LastIndex, before.LastTerm, r.Force)}
	if err := log.Append(record, true); err != nil {
		return before, 0, err
	}
	failed := do(false)
	record.Phase, record.Result, record.Detail = audit.PhaseOutcome, "ok", fmt.Sprintf("incarnation %d", incarnation)
	if failed != nil {
		record.Decision, record.Result, record.Detail = audit.Refuse, "interrupted", ""
	}
	return before, incarnation, errors.Join(failed, log.Append(record, true))
}
