package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// Reading archives without a cluster: with shares of the present root key, given by people.

// ArchiveReading says what to read of an archive.
type ArchiveReading struct {
	Archive     *snapshot.Archive
	Cluster     [16]byte // zero: the only one in the archive
	Incarnation uint64   // 0: the newest
	Index       uint64   // 0: as far as the archive goes
	// Shares open the newest keyring; as many as its share set needs.
	Shares   []store.RecoveryShare
	Progress func(snapshot.Item)
	Logger   *slog.Logger
}

// ArchiveReport is what was read of an archive.
type ArchiveReport struct {
	Cluster     [16]byte
	Incarnation uint64
	Snapshot    snapshot.Header
	Name        string // of the snapshot's object
	Segments    int
	Entries     int    // that were applied to the snapshot
	Index, Term uint64 // of the state they came to
	Level       uint32
	Secrets     int
	Versions    int
	Policies    int
	Data        [32]byte // hash of secrets and policies
}

// openedArchive is a state of an archive, with the keys to what is in it.
type openedArchive struct {
	report  ArchiveReport
	machine *fsm.Machine
	seal    *seal.Seal
	state   seal.State // of the newest keyring
	newest  *fsmpb.SnapshotHeader
	highest uint64 // incarnation that the archive has anything of
}

var errSeveralClusters = errors.New("the archive holds more than one cluster: name the one that is meant")

// Needs tells of which cluster and share set shares are needed to read the archive.
func (r ArchiveReading) Needs(ctx context.Context) (seal.State, error) {
	_, st, _, err := r.keyring(ctx)
	return st, err
}

func (r *ArchiveReading) keyring(ctx context.Context) (list []snapshot.Item, st seal.State, pb *fsmpb.SnapshotHeader, err error) {
	list, err = r.Archive.List(ctx, r.Cluster)
	if err != nil {
		return nil, st, nil, err
	}
	for _, i := range list {
		if r.Cluster == [16]byte{} {
			r.Cluster = i.Cluster
		}
		if i.Cluster != r.Cluster {
			return nil, st, nil, errSeveralClusters
		}
	}
	item, err := snapshot.NewestKeyring(list)
	if err != nil {
		return nil, st, nil, err
	}
	_, b, err := r.Archive.ReadKeyring(ctx, item)
	if err != nil {
		return nil, st, nil, err
	}
	if st, pb, err = sealOf(b); err == nil && st.Cluster.ID != r.Cluster {
		err = fmt.Errorf("%s: %w", item.Name, snapshot.ErrForeign)
	}
	return list, st, pb, err
}

// open reads the archive as far as r says, and checks that each record opens. The caller locks the seal.
func (r ArchiveReading) open(ctx context.Context) (*openedArchive, error) {
	keys, list, st, pb, err := r.unseal(ctx)
	if err != nil {
		return nil, err
	}
	a, err := r.openWith(ctx, keys, list, st, pb)
	if err != nil {
		keys.Lock()
	}
	return a, err
}

// unseal opens the newest keyring with the shares. The caller locks the seal.
func (r *ArchiveReading) unseal(ctx context.Context) (*seal.Seal, []snapshot.Item, seal.State, *fsmpb.SnapshotHeader, error) {
	list, st, pb, err := r.keyring(ctx)
	if err != nil {
		return nil, nil, st, nil, err
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	collector := seal.NewCollector()
	defer collector.Close()
	for _, share := range r.Shares {
		if err := restorable(st, share); err != nil {
			return nil, nil, st, nil, err
		}
		if _, err := collector.Add(st, share.Index, share.Bytes[:]); err != nil {
			return nil, nil, st, nil, shareError(err)
		}
	}
	keys := seal.New(seal.Config{Logger: r.Logger})
	return keys, list, st, pb, keys.UnsealWith(st, collector)
}

// openWith is open with keys that are here.
func (r ArchiveReading) openWith(ctx context.Context, keys *seal.Seal, list []snapshot.Item, st seal.State, pb *fsmpb.SnapshotHeader) (*openedArchive, error) {
	a := &openedArchive{seal: keys, machine: fsm.New(fsm.Options{}), state: st, newest: pb}
	if err := a.read(ctx, r, list); err != nil {
		return nil, err
	}
	return a, nil
}

// begin makes of what was read a state that a cluster begins with, as its next incarnation or a later one.
func (a *openedArchive) begin() (cluster.Seeding, error) {
	view := a.machine.View()
	index, term := view.Index(), view.Term()
	state := proto.Clone(a.newest.Seal).(*fsmpb.SealState)
	state.Keyring, state.Epochs = a.state.Keyring, epochList(a.state.Epochs)
	if err := a.machine.Renew(state, a.newest.Incarnation); err != nil {
		return cluster.Seeding{}, err
	}
	return cluster.Seeding{ClusterID: a.report.Cluster, Incarnation: max(a.highest, a.newest.Incarnation) + 1,
		Index: a.report.Index + restoreGap, Term: term + 1, StateIndex: index, StateTerm: term, State: viewSnapshot{a.machine.View()}}, nil
}

func (a *openedArchive) read(ctx context.Context, r ArchiveReading, list []snapshot.Item) error {
	if err := a.reinstate(); err != nil {
		return err
	}
	plan, err := snapshot.MakePlan(list, r.Incarnation, r.Index)
	if err != nil {
		return err
	}
	if err := a.replay(ctx, r, plan); err != nil {
		return err
	}
	known := max(a.report.Incarnation, a.newest.Incarnation)
	for _, i := range list {
		if i.Incarnation <= known+maxLead {
			a.highest = max(a.highest, i.Incarnation)
		}
	}
	return nil
}

// maxLead is by how much names in an archive can be ahead of what authenticates itself:
// a restore draws below 2^20. What is further ahead was forged, and must not use up all incarnations.
const maxLead = 1 << 40

// reinstate takes all keys of the keyring into use: those that left the live peers may be those of an older object.
func (a *openedArchive) reinstate() error {
	keyring, epochs, err := a.seal.Reinstate(a.state)
	if err != nil {
		return err
	}
	a.state.Keyring, a.state.Epochs = keyring, epochs
	return a.seal.Follow(a.state)
}

// reportOf is what is known of a plan before any of it was read.
func reportOf(cluster [16]byte, plan snapshot.Plan) ArchiveReport {
	return ArchiveReport{Cluster: cluster, Incarnation: plan.Snapshot.Incarnation, Snapshot: snapshot.Header{Last: plan.Snapshot.Last}, Name: plan.Snapshot.Name, Segments: len(plan.Segments)}
}

// replay reads what the plan says, and opens every record of what it comes to.
func (a *openedArchive) replay(ctx context.Context, r ArchiveReading, plan snapshot.Plan) error {
	a.report = reportOf(r.Cluster, plan)
	h, entries, err := r.Archive.Replay(ctx, plan, archiveCipher{a.seal}, archiveMachine{a.machine, r.Cluster}, r.Progress)
	if err != nil {
		return err
	}
	view := a.machine.View()
	a.report.Snapshot, a.report.Entries, a.report.Index, a.report.Term, a.report.Level = h, entries, plan.Last, view.Term(), view.Level()
	a.report.Secrets, a.report.Policies = view.SecretCount(), view.PolicyCount()
	a.report.Data, _ = view.Hashes()
	return a.decryptAll(ctx)
}

// errRecord: a record of the archive does not open.
var errRecord = errors.New("a record does not open under the keyring of the archive")

// decryptAll opens every record of the state.
func (a *openedArchive) decryptAll(ctx context.Context) error {
	a.report.Versions = 0
	k := keys{a.seal}
	open := func(kind store.Kind, token fsm.Token, version uint64, sealed []byte) error {
		plain, err := k.Decrypt(kind, token, version, sealed)
		clear(plain)
		switch {
		case err == nil:
		case a.seal.Sealed():
			return seal.ErrSealed
		default:
			return fmt.Errorf("%w: %s of %x", errRecord, kind, token[:4])
		}
		return ctx.Err()
	}
	view := a.machine.View()
	for s := range view.Secrets() {
		token := fsm.Token(s.Token)
		if err := open(store.KindName, token, 0, s.Name); err != nil {
			return err
		}
		for _, v := range s.Versions {
			if v.Destroyed {
				continue
			}
			a.report.Versions++
			if err := open(store.KindValue, token, v.Version, v.Value); err != nil {
				return err
			}
		}
	}
	for p := range view.Policies() {
		if err := open(store.KindPolicy, fsm.Token(p.Token), 0, p.Body); err != nil {
			return err
		}
	}
	return nil
}

// VerifyArchive reads what r says: each object authentic, the log without a gap, the hashes those of the peer that wrote it, each record
// decrypted. It changes nothing.
func VerifyArchive(ctx context.Context, r ArchiveReading) (ArchiveReport, error) {
	a, err := r.open(ctx)
	if err != nil {
		return ArchiveReport{}, err
	}
	a.seal.Lock()
	return a.report, nil
}

// ArchiveRestoring says where a restored cluster begins.
type ArchiveRestoring struct {
	ArchiveReading
	DataDir, AuditDir string // as in Config; DataDir must be empty but for the audit log
	ID, Address       string // of the peer, and host:port of its link
	Who               string // is written into the audit log as who did it
}

// restoreGap is more than the cluster before can have committed beyond the archive, as recoveryGap of package cluster.
const restoreGap = 1 << 32

// RestoreArchive makes the data directory of a peer that is a new cluster of its own, of the same id and a higher incarnation, from an
// archive. It is verified first, all of it. The peer starts sealed, and is opened by 'operator restore' with the same shares; other peers join it.
func RestoreArchive(ctx context.Context, r ArchiveRestoring) (report ArchiveReport, incarnation uint64, err error) {
	a, err := r.open(ctx)
	if err != nil {
		return report, 0, err
	}
	defer a.seal.Lock()
	seeding, err := a.begin()
	if err != nil {
		return report, 0, err
	}
	incarnation = seeding.Incarnation + rand.Uint64N(1<<20)
	seeding.Dir, seeding.ID, seeding.Address, seeding.Incarnation, seeding.Logger = raftDir(r.DataDir), r.ID, r.Address, incarnation, r.Logger
	cfg := Config{DataDir: r.DataDir, AuditDir: r.AuditDir}
	if err := os.MkdirAll(r.DataDir, 0o700); err != nil {
		return report, 0, err
	}
	log, err := audit.Open(audit.Config{Dir: cfg.auditDir(), Peer: r.ID, FileBytes: Default().AuditFileBytes})
	if err != nil {
		return report, 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	record := audit.Record{Op: "snapshot.restore", Phase: audit.PhaseIntent, Decision: audit.Allow, By: "recovery shares", Caller: r.Who, Index: seeding.StateIndex,
		Detail: fmt.Sprintf("cluster %x, incarnation %d, to incarnation %d", a.report.Cluster, a.report.Incarnation, incarnation)}
	if err := log.Append(record, true); err != nil {
		return report, 0, err
	}
	failed := cluster.Seed(ctx, seeding)
	record.Phase, record.Result = audit.PhaseOutcome, "ok"
	if failed != nil {
		record.Decision, record.Result = audit.Refuse, "failed"
	}
	return a.report, incarnation, errors.Join(failed, log.Append(record, true))
}
