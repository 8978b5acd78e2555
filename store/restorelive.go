package store

import (
	"context"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
)

// Restoring a state of the archive into the running cluster takes two requests: one
// is answered with a plan and a code that stands for it, the other, with that code,
// carries it out.

// RestoreTarget says which state of the archive is meant.
type RestoreTarget struct {
	Incarnation uint64    // 0: the newest that there is a snapshot of
	Index       uint64    // 0: as far as the archive goes, or as Time says
	Time        time.Time // the last state that was in the archive by then; zero: not asked for
}

// RestorePlan says what a restore would do, or did.
type RestorePlan struct {
	Code string // confirms it

	// The state to go back to.
	Incarnation       uint64
	Index             uint64
	Time              time.Time // when the last of it was stored in the archive
	Snapshot          string    // the object that it begins with
	SnapshotIndex     uint64
	Entries           int // of the log that follow it
	Secrets, Versions int // versions whose values are there
	Policies          int
	DataHash          [32]byte

	// The state that it would take the place of, as it was a moment ago.
	LiveIndex                 uint64
	LiveTime                  time.Time // of its newest change, by the clock of who made it; zero: it is empty
	LiveSecrets, LivePolicies int
	SecretChanges             RecordChanges
	PolicyChanges             RecordChanges

	// Done is the Raft index of the restore when there was one.
	Done uint64
}

// RecordChanges count what would appear, vanish and change.
type RecordChanges struct{ Appear, Vanish, Change uint64 }

// RestoreStep is how far the work on a restore has come.
type RestoreStep struct {
	Step        string // RestoreReading or RestoreStaging
	Done, Total uint64 // objects of the archive, or records
}

// The steps of a restore.
const (
	RestoreReading = "reading" // the archive
	RestoreStaging = "staging" // its records beside the present ones, on all peers
)

// maxRestoreCode bounds a confirmation code; they are shorter.
const maxRestoreCode = 80

// PlanRestore reads the archive, verifies it, and says what restoring the target
// would do. progress is called now and then, by one goroutine at a time; it must be quick.
func (s *Store) PlanRestore(ctx context.Context, r Request, target RestoreTarget, progress func(RestoreStep)) (RestorePlan, error) {
	if err := s.only(ctx, r, "snapshot.plan", false, secret.RoleSuperuser); err != nil {
		return RestorePlan{}, err
	}
	return s.cfg.Operator.PlanRestore(ctx, target, progress)
}

// RestoreLive carries out the plan that the code stands for: secrets and policies
// become those of the archive, all at one index or not at all. CodeConflict: it
// cannot be now, or the plan is outdated; nothing was changed. With the code of the
// last restore that was done it only says so.
func (s *Store) RestoreLive(ctx context.Context, r Request, target RestoreTarget, code string, progress func(RestoreStep)) (plan RestorePlan, err error) {
	const op = "snapshot.restore"
	detail := "plan " + code
	if len(code) > maxRestoreCode { // a record's size must not be the caller's choice
		detail = "plan that cannot be"
	}
	if err := s.onlyOn(ctx, r, op, detail, true, secret.RoleSuperuser); err != nil {
		return plan, err
	}
	if len(code) > maxRestoreCode {
		err = secret.Invalid("confirm", "this is no code of a plan")
	} else {
		plan, err = s.cfg.Operator.RestoreLive(ctx, target, code, progress)
	}
	if err == nil {
		detail += fmt.Sprintf(", restored at %d", plan.Done)
	}
	return plan, s.outcome(r, audit.Record{Op: op, Decision: audit.Allow, Detail: detail}, err)
}
