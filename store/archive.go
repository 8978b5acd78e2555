package store

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// Archivist is the part of an Operator that cares for the archive. What may
// outlast a request has an id that repetitions keep: an outcome that says Done
// false goes on, and is asked for again by that id.
type Archivist interface {
	// SaveSnapshot has the peer that ships put the present state into the archive.
	SaveSnapshot(ctx context.Context, id [16]byte) (SavedSnapshot, error)
	// ExportSnapshot writes the present state, as everything acknowledged before is in it, as a
	// single-file archive; begin is called once, when its size is known. CodeSealed without keys.
	ExportSnapshot(ctx context.Context, begin func(size int64) (io.Writer, error)) (SavedSnapshot, error)
	// DrillArchive has this peer restore the newest state of the archive into
	// memory, decrypt it, and put on record what it came to.
	DrillArchive(ctx context.Context, id [16]byte) (Drill, error)
	// ArchiveCare tells how the cluster cares for its archive.
	ArchiveCare(ctx context.Context) (ArchiveCare, error)
}

// SavedSnapshot is an object of an archive.
type SavedSnapshot struct {
	Done  bool
	Name  string
	Index uint64
	Size  int64
}

// Drill is what a restore came to that was only tried.
type Drill struct {
	Done        bool
	ID          [16]byte
	OK          bool
	Reason      string // why it failed
	Peer        string // that did it
	Object      string // name of the snapshot that it began with
	Incarnation uint64
	Snapshot    uint64 // index of that
	Index       uint64 // of the state that it came to
	DataHash    []byte // of that state
	Secrets     uint64
	Versions    uint64
	Policies    uint64
	Entries     uint64 // of the log, after the snapshot
	Took        time.Duration
	Time        time.Time
}

// Retention is how many snapshots stay of each kind; all 0: everything stays.
type Retention struct{ Hourly, Daily, Weekly, Monthly, Minimum uint32 }

// Pruned is what the last retention did.
type Pruned struct {
	Time      time.Time
	Kept      int
	Deleted   int
	Retained  int    // that the store's own retention keeps
	Forbidden bool   // the store lets this peer delete nothing
	Error     string // why it did not come to its end
}

// ArchiveCare is how the cluster cares for its archive.
type ArchiveCare struct {
	Archive       string        // where it is; "": there is none
	Shipper       string        // peer that ships into it; "": nobody now
	SnapshotEvery time.Duration // as the shipper has it
	SnapshotSet   time.Duration // the setting; 0: as each peer is configured
	DrillEvery    time.Duration // 0: never
	Retention     Retention
	LastSnapshot  *time.Time
	SnapshotIndex uint64
	NextSnapshot  *time.Time // if anything changes until then
	NextDrill     *time.Time
	Drills        []Drill // on record, newest first
	Pruned        *Pruned // nil: by this leader nothing was
}

// archiveTimeout is how long one request waits for what may take longer.
const archiveTimeout = 20 * time.Second

// SaveSnapshot puts the present state into the archive.
func (s *Store) SaveSnapshot(ctx context.Context, r Request, id [16]byte) (saved SavedSnapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	err = s.operateOn(ctx, r, "snapshot.save", "", func() error {
		saved, err = s.cfg.Operator.SaveSnapshot(ctx, id)
		return err
	}, secret.RoleSuperuser)
	return saved, err
}

// ExportSnapshot writes the present state as a single-file archive, which is as
// encrypted as any. It is recorded before the first byte leaves, and when it has ended.
func (s *Store) ExportSnapshot(ctx context.Context, r Request, begin func(size int64) (io.Writer, error)) error {
	return s.operateOn(ctx, r, "snapshot.export", "", func() error {
		_, err := s.cfg.Operator.ExportSnapshot(ctx, begin)
		return err
	}, secret.RoleSuperuser)
}

// DrillArchive has this peer prove that the archive can be restored.
func (s *Store) DrillArchive(ctx context.Context, r Request, id [16]byte) (drill Drill, err error) {
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	err = s.operateOn(ctx, r, "snapshot.drill", fmt.Sprintf("drill %x", id), func() error {
		drill, err = s.cfg.Operator.DrillArchive(ctx, id)
		return err
	}, secret.RoleSuperuser)
	return drill, err
}

// ArchiveCare tells how the cluster cares for its archive: superusers, admins and operators.
func (s *Store) ArchiveCare(ctx context.Context, r Request) (ArchiveCare, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.only(ctx, r, "snapshot.schedule", false, secret.RoleSuperuser, secret.RoleAdmin, secret.RoleOperator); err != nil {
		return ArchiveCare{}, err
	}
	return s.cfg.Operator.ArchiveCare(ctx)
}
