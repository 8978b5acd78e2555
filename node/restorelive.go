package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// A restore into the running cluster. The peer that was asked reads a state of the
// archive with the cluster's own keys, into a state machine that it throws away, and
// verifies it as every restore does. Then it brings the records through the log to
// a staging area on all peers, and one more entry puts them in the place of the
// present ones. Until that entry nothing is changed; it holds for all peers at its
// index, also for those that join or come back later.

// levelOfRestore is the format level that has staging areas.
const levelOfRestore = 3

// liveRestore is one restore, or one plan of one.
type liveRestore struct {
	n        *Node
	progress func(store.RestoreStep)
	archive  *snapshot.Archive
	opened   *openedArchive
	live     *fsm.View  // that it would take the place of
	state    seal.State // of live
	plan     store.RestorePlan
	request  []byte   // of the code; of a plan none
	id       [16]byte // of this attempt

	commits   bool          // a commit may have been sent
	begun     uint64        // index at which the staging area was opened
	overtaken atomic.Bool   // a chunk came before one that it follows
	sent      atomic.Uint64 // index of a chunk, the newest that is staged or one of those beside it
	paced     int           // bytes sent since mark was taken
	marked    uint64        // sent, when it was
}

func (o operator) PlanRestore(ctx context.Context, target store.RestoreTarget, progress func(store.RestoreStep)) (plan store.RestorePlan, err error) {
	r, done, err := o.n.newRestore(ctx, progress)
	if err != nil {
		return plan, err
	}
	defer done()
	err = r.read(ctx, target)
	return r.plan, err
}

func (o operator) RestoreLive(ctx context.Context, target store.RestoreTarget, code string, progress func(store.RestoreStep)) (plan store.RestorePlan, err error) {
	incarnation, index, err := parseRestoreCode(code)
	if err != nil {
		return plan, err
	}
	r, done, err := o.n.newRestore(ctx, progress)
	if err != nil {
		return plan, err
	}
	defer done()
	r.request = restoreRequest(code)
	if at := r.doneAt(r.live); at != 0 {
		return store.RestorePlan{Code: code, Incarnation: incarnation, Index: index, Done: at}, nil
	}
	if target == (store.RestoreTarget{}) {
		target = store.RestoreTarget{Incarnation: incarnation, Index: index}
	}
	before, _ := r.live.Staged()
	if err := r.read(ctx, target); err != nil {
		return r.plan, err
	}
	// Another peer may have been at work under the same code for as long as that took.
	if done, err := r.committed(ctx); err != nil || done {
		return r.plan, logError(err)
	}
	if subtle.ConstantTimeCompare([]byte(r.plan.Code), []byte(code)) != 1 {
		return r.plan, restoreConflict("plan_outdated", "the code is not that of the plan as it would be now: keys were sealed, or something restored, since it was made, or the archive holds another snapshot; nothing was changed: ask for a new plan")
	}
	if now, ok := o.n.machine.View().Staged(); ok && now != before {
		return r.plan, restoreConflict("restore_running", "another restore is under way; nothing was changed")
	}
	err = r.carryOut(ctx)
	return r.plan, err
}

// newRestore looks at the cluster: whether a restore can be at all.
func (n *Node) newRestore(ctx context.Context, progress func(store.RestoreStep)) (r *liveRestore, done func(), err error) {
	if n.cfg.Archive == "" {
		return nil, nil, restoreConflict("no_archive", "this peer is configured without an archive: give all peers --archive")
	}
	if !n.restores.TryLock() {
		return nil, nil, restoreConflict("restore_running", "this peer is at work on a restore, or on the plan of one; ask again when that is over")
	}
	r = &liveRestore{n: n, progress: progress}
	defer func() {
		if err != nil {
			n.restores.Unlock()
		}
	}()
	if r.state, err = (ledger{n}).State(ctx); err != nil {
		return nil, nil, logError(err)
	}
	r.live = n.machine.View()
	r.state = sealState(r.live)
	switch {
	case r.live.Level() < levelOfRestore:
		return nil, nil, n.levelTooLow(levelOfRestore)
	case r.state.Sealed:
		return nil, nil, keyError(seal.ErrOperatorSealed)
	case r.state.Pending != nil:
		return nil, nil, rotationError(seal.ErrPending)
	}
	rand.Read(r.id[:])
	if r.archive, err = OpenArchive(ctx, n.cfg.Archive, ""); err != nil {
		return nil, nil, archiveError(err)
	}
	return r, func() {
		if r.opened != nil {
			r.opened.seal.Lock()
		}
		n.restores.Unlock()
	}, nil
}

// read reads the target from the archive, verifies it, and makes the plan.
func (r *liveRestore) read(ctx context.Context, target store.RestoreTarget) error {
	keys, state, err := r.n.seal.Reinstated(r.state)
	if err != nil {
		return rotationError(err)
	}
	r.opened = &openedArchive{seal: keys, state: state, machine: fsm.New(fsm.Options{})}
	id := r.state.Cluster.ID
	list, err := r.archive.List(ctx, id)
	if err != nil {
		return archiveError(err)
	}
	if !target.Time.IsZero() {
		at, err := r.archive.IndexAt(ctx, list, target.Incarnation, target.Time)
		if err != nil {
			return archiveError(err)
		}
		if target.Index != 0 && target.Index != at {
			return secret.Invalid("index", "give an index or a time")
		}
		target.Index = at
	}
	way, err := snapshot.MakePlan(list, target.Incarnation, target.Index)
	if err != nil {
		return archiveError(err)
	}
	total := uint64(len(way.Segments) + 1)
	read := uint64(0)
	r.progress(store.RestoreStep{Step: store.RestoreReading, Total: total})
	err = r.opened.replay(ctx, ArchiveReading{Archive: r.archive, Cluster: id, Progress: func(snapshot.Item) {
		read++
		r.progress(store.RestoreStep{Step: store.RestoreReading, Done: read, Total: total})
	}}, way)
	if err != nil {
		return archiveError(err)
	}
	last := way.Snapshot
	if len(way.Segments) > 0 {
		last = way.Segments[len(way.Segments)-1]
	}
	head, err := r.archive.Head(ctx, last)
	if err != nil {
		return archiveError(err)
	}
	return r.compare(head.Created)
}

// compare says what the state that was read would do to the present one.
func (r *liveRestore) compare(stored time.Time) error {
	report, view := r.opened.report, r.opened.machine.View()
	d := r.live.DifferenceTo(view)
	r.plan = store.RestorePlan{Incarnation: report.Incarnation, Index: report.Index, Time: stored, Snapshot: report.Name, SnapshotIndex: report.Snapshot.Last, Entries: report.Entries,
		Secrets: report.Secrets, Versions: report.Versions, Policies: report.Policies, DataHash: report.Data,
		LiveIndex: r.live.Index(), LiveSecrets: r.live.SecretCount(), LivePolicies: r.live.PolicyCount(),
		SecretChanges: store.RecordChanges(d.Secrets), PolicyChanges: store.RecordChanges(d.Policies)}
	if d.Newest != 0 {
		r.plan.LiveTime = time.Unix(0, d.Newest).UTC()
	}
	r.plan.Code = restoreCode(r.plan, r.state)
	size, _ := view.Size()
	if _, limit := r.live.Size(); size > limit {
		return &secret.Error{Code: secret.CodeFull, Message: fmt.Sprintf("what the archive holds, %d bytes, is over the limit of this cluster's state, %d: raise state_limit_bytes first; nothing was changed", size, limit)}
	}
	return nil
}

// restoreCode stands for one plan, at one time in the cluster's life: the seal's
// generation moves with each restore, and with each seal.
func restoreCode(p store.RestorePlan, st seal.State) string {
	h := sha256.New()
	fmt.Fprintf(h, "spike-ha restore 1\n%x %d %d\n%d %d %s\n%x %d %d %d\n", st.Cluster.ID, st.Cluster.Incarnation, st.Generation,
		p.Incarnation, p.Index, p.Snapshot, p.DataHash, p.Secrets, p.Versions, p.Policies)
	return fmt.Sprintf("%d-%d-%x", p.Incarnation, p.Index, h.Sum(nil)[:10])
}

// parseRestoreCode reads of which state a code is.
func parseRestoreCode(code string) (incarnation, index uint64, err error) {
	parts := strings.Split(code, "-")
	if len(parts) == 3 {
		incarnation, err = strconv.ParseUint(parts[0], 10, 64)
		var failed error
		index, failed = strconv.ParseUint(parts[1], 10, 64)
		_, hexed := hex.DecodeString(parts[2])
		if err = errors.Join(err, failed, hexed); err == nil && incarnation > 0 && index > 0 {
			return incarnation, index, nil
		}
	}
	return 0, 0, secret.Invalid("confirm", "this is no code of a plan")
}

// restoreRequest is what the state keeps of a code.
func restoreRequest(code string) []byte {
	h := sha256.Sum256([]byte("spike-ha restore request 1\n" + code))
	return h[:16]
}
