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

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
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

const (
	// levelOfRestore is the format level that has staging areas.
	levelOfRestore = 3
	// stageBytes is the size of a chunk: with its frame it still fills one entry.
	stageBytes = 250 << 10
	// stageFlight is how many chunks are on their way at once.
	stageFlight = 8
	// commitTries is how often a commit is made anew because the keyring moved.
	commitTries = 5
	// stagePatience is for how long the log may take nothing at all.
	stagePatience = 30 * time.Second
	// shipPatience is for how long the archive may take nothing while a restore waits for it.
	shipPatience = 20 * time.Second
)

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

// carryOut stages what was read and puts it in the place of what is there.
func (r *liveRestore) carryOut(ctx context.Context) (err error) {
	view := r.opened.machine.View()
	begin := view.BeginRestore(r.id, [16]byte(r.request))
	defer func() {
		if err != nil {
			err = r.giveUp(ctx, err)
		}
	}()
	opened, err := r.propose(ctx, &fsmpb.Command{Basis: basis(r.state.Generation), Op: &fsmpb.Command_BeginRestore{BeginRestore: begin}})
	if err != nil {
		return err
	}
	r.begun = opened.Index
	failpoint.Hit(failpoint.NodeRestoreBegin)
	if err := r.stage(ctx, view, begin); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errGivenUp(ctx.Err())
	}
	failpoint.Hit(failpoint.NodeRestoreCommitBefore)
	// From here on the caller's leaving stops nothing: whether it was done has to be found out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*stagePatience)
	defer cancel()
	r.commits = true
	return r.commit(ctx, begin)
}

// giveUp ends a restore that failed with cause, though the caller may have left: what
// was abandoned can never be committed, so the outcome is known then. It returns nil when
// the plan was carried out after all, by this attempt or by another one under its code.
func (r *liveRestore) giveUp(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rpcTimeout)
	defer cancel()
	_, err := r.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AbandonRestore{AbandonRestore: &fsmpb.AbandonRestore{Id: r.id[:]}}})
	done, unread := r.committed(ctx)
	switch {
	case done:
		return nil
	case err == nil && secret.CodeOf(cause) == secret.CodeUnknown:
		return errGivenUp(cause)
	case err != nil && unread != nil && (r.commits || secret.CodeOf(cause) == secret.CodeConflict):
		return &secret.Error{Code: secret.CodeUnknown, Message: "it could not be found out whether the restore was done: ask again with the same code, which says so", Cause: errors.Join(cause, unread)}
	case err != nil && secret.CodeOf(err) != secret.CodeConflict:
		r.n.log.Warn("the staging area of a restore that failed could not be cleared; the leader does it in some minutes", "error", err)
	}
	return cause
}

func errGivenUp(cause error) error {
	return &secret.Error{Code: secret.CodeUnavailable, Message: "the restore was given up; nothing was changed", Cause: cause}
}

// doneAt is the index at which the state of v was restored under the code; 0: it was not.
func (r *liveRestore) doneAt(v *fsm.View) uint64 {
	if last := v.Restored(); last != nil && subtle.ConstantTimeCompare(last.Request, r.request) == 1 {
		return last.Index
	}
	return 0
}

// committed says whether the last restore that was done is the one under this code.
func (r *liveRestore) committed(ctx context.Context) (bool, error) {
	if _, err := r.n.cluster.WaitRead(ctx); err != nil {
		return false, err
	}
	at := r.doneAt(r.n.machine.View())
	if at == 0 {
		return false, nil
	}
	r.plan.Done = at
	r.n.log.Info("a state of the archive was restored into the cluster", "incarnation", r.plan.Incarnation, "index", r.plan.Index, "at", r.plan.Done)
	return true, nil
}

// stage sends the records, several chunks at once: the first failure ends it.
func (r *liveRestore) stage(ctx context.Context, view *fsm.View, begin *fsmpb.BeginRestore) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	step := store.RestoreStep{Step: store.RestoreStaging, Total: begin.Secrets + begin.Policies}
	r.progress(step)
	places := make(chan struct{}, stageFlight)
	before := make(chan struct{})
	close(before)
	for c := range view.RestoreChunks(r.id, stageBytes) {
		if err := r.pace(ctx); err != nil {
			cancel(err)
		}
		if r.overtaken.Swap(false) {
			// What is sent behind a chunk that is missing is refused, and would be sent
			// twice from here on: so let them come to rest.
			select {
			case <-before:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		places <- struct{}{}
		prior, done := before, make(chan struct{})
		before = done
		go func() {
			err := r.send(ctx, c, prior)
			if err != nil {
				cancel(err)
			}
			select { // in their order, so that one goroutine at a time tells how far it is
			case <-prior:
			case <-ctx.Done():
			}
			if ctx.Err() == nil {
				step.Done += uint64(len(c.Secrets) + len(c.Policies))
				r.progress(step)
				close(done)
			}
			<-places
		}()
	}
	select {
	case <-before:
	case <-ctx.Done():
	}
	for range cap(places) { // until nobody is at work
		places <- struct{}{}
	}
	if ctx.Err() == nil {
		if err := r.archived(ctx, r.begun); err != nil {
			cancel(err)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		if secret.CodeOf(cause) == secret.CodeInternal {
			return errGivenUp(cause)
		}
		return cause
	}
	return nil
}

// pace keeps the log from running away from the archive: what is compacted before it
// is shipped is a hole in the archive, before which lies what the restore takes away.
func (r *liveRestore) pace(ctx context.Context) error {
	if r.paced += stageBytes; r.paced < int(r.n.cfg.SnapshotBytes)*3/8 {
		return nil
	}
	mark := r.marked
	r.paced, r.marked = 0, r.sent.Load()
	return r.archived(ctx, mark)
}

// archived waits until the archive has the log up to index.
func (r *liveRestore) archived(ctx context.Context, index uint64) error {
	shipped, since := uint64(0), time.Now()
	for {
		now := uint64(0)
		if leader := r.n.cluster.Status().Leader; leader != "" {
			if a := r.n.askPeer(leader).Archive; a != nil {
				now = a.Shipped
			}
		}
		switch {
		case now >= index:
			return nil
		case now > shipped:
			shipped, since = now, time.Now()
		case time.Since(since) > shipPatience:
			return restoreConflict("archive_behind", "the archive takes nothing of the log now, and what the restore would take away would not be in it; nothing was changed: see 'spikectl status'")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// send sends one chunk. It may overtake the one before it, and is sent again then.
func (r *liveRestore) send(ctx context.Context, c *fsmpb.RestoreChunk, prior <-chan struct{}) error {
	for again := false; ; again = true {
		result, err := r.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_RestoreChunk{RestoreChunk: c}})
		if err == nil || again || result.GetCode() != fsmpb.Code_CONFLICT {
			if err == nil {
				if result.Index > r.sent.Load() {
					r.sent.Store(result.Index) // of two at once either will do
				}
				failpoint.Hit(failpoint.NodeRestoreChunk)
			}
			return err
		}
		r.overtaken.Store(true)
		select {
		case <-prior:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// commit puts what is staged in its place, with a keyring made of the present one.
// When that has moved meanwhile, all is verified again with what it has become: keys
// may have been pruned.
func (r *liveRestore) commit(ctx context.Context, begin *fsmpb.BeginRestore) error {
	for try := 1; ; try++ {
		replaces := sha256.Sum256(r.state.Keyring)
		set := r.state.Committed.ID
		result, err := r.propose(ctx, &fsmpb.Command{Basis: basis(r.state.Generation), Op: &fsmpb.Command_CommitRestore{CommitRestore: &fsmpb.CommitRestore{
			Id: r.id[:], DataHash: begin.DataHash,
			Keyring: &fsmpb.ReplaceKeyring{Committed: set[:], Replaces: replaces[:], Keyring: r.opened.state.Keyring, Epochs: epochList(r.opened.state.Epochs)}}}})
		if err == nil {
			failpoint.Hit(failpoint.NodeRestoreCommitAfter)
			r.plan.Done = result.Index
			_, _ = r.committed(ctx) // who asked reads it here next
			return nil
		}
		if result.GetCode() != fsmpb.Code_CONFLICT || try == commitTries {
			return err
		}
		if len(result.GetCurrent().GetPendingSet()) > 0 && !r.n.sleep(time.Second) {
			return err
		}
		if err := r.renew(ctx); err != nil {
			return err
		}
	}
}

// renew takes the present keyring, and verifies with it what is staged.
func (r *liveRestore) renew(ctx context.Context) error {
	st, err := ledger{r.n}.State(ctx)
	if err != nil {
		return logError(err)
	}
	keys, state, err := r.n.seal.Reinstated(st)
	if err != nil {
		return rotationError(err)
	}
	r.opened.seal.Lock()
	st.Generation = r.state.Generation // the plan is for that one
	r.opened.seal, r.opened.state, r.state = keys, state, st
	return archiveError(r.opened.decryptAll(ctx))
}

// propose sends a command of the restore until it is answered: each of them may be
// repeated. A refusal comes as both, the result and an error.
func (r *liveRestore) propose(ctx context.Context, command *fsmpb.Command) (*fsmpb.Result, error) {
	command.TimeUnixNano = r.n.now().UnixNano()
	began := time.Now()
	_, commits := command.Op.(*fsmpb.Command_CommitRestore)
	unknown := false
	for {
		attempt, cancel := context.WithTimeout(ctx, rpcTimeout)
		result, err := r.n.propose(attempt, command)
		cancel()
		if err == nil {
			return result, refusedRestore(result)
		}
		unknown = unknown || errors.Is(err, cluster.ErrUnknownOutcome)
		if errors.Is(err, cluster.ErrTooLarge) || errors.Is(err, cluster.ErrStopped) || ctx.Err() != nil || time.Since(began) > stagePatience {
			if commits && unknown {
				return nil, logError(fmt.Errorf("%w: %w", cluster.ErrUnknownOutcome, err))
			}
			return nil, errGivenUp(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func refusedRestore(result *fsmpb.Result) error {
	switch result.Code {
	case fsmpb.Code_OK:
		return nil
	case fsmpb.Code_SEALED:
		return keyError(seal.ErrOperatorSealed)
	case fsmpb.Code_BASIS_MOVED:
		return restoreConflict("plan_outdated", "the cluster was sealed, or something restored, since the plan was made; nothing was changed by this: ask for a new plan")
	case fsmpb.Code_SUPERSEDED:
		return restoreConflict("superseded", "another restore came in between, or this one was given up for want of progress; nothing was changed by this")
	case fsmpb.Code_CONFLICT:
		return restoreConflict("keyring_moved", "keys are being rotated, or a share set is pending; nothing was changed: ask again when that is over")
	case fsmpb.Code_STATE_FULL:
		return secret.Errorf(secret.CodeFull, "what the archive holds is over the limit of this cluster's state; raise state_limit_bytes first; nothing was changed")
	}
	return &secret.Error{Code: secret.CodeInternal, Message: "the restore was refused by the state machine; nothing was changed", Reason: result.Code.String(), Cause: errors.New(result.Reason)}
}

func restoreConflict(reason, message string) error {
	return &secret.Error{Code: secret.CodeConflict, Subject: "restore", Message: message, Reason: reason}
}

// archiveError says what is wrong with an archive, or with reading it.
func archiveError(err error) error {
	var known *secret.Error
	var gap *snapshot.GapError
	conflict := func(reason, message string) error {
		return &secret.Error{Code: secret.CodeConflict, Subject: "archive", Message: message + "; nothing was changed", Reason: reason, Cause: err}
	}
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.Is(err, snapshot.ErrNothing), errors.Is(err, snapshot.ErrNoKeyring):
		return conflict("archive_nothing", err.Error())
	case errors.As(err, &gap):
		return conflict("archive_gap", err.Error())
	case errors.Is(err, errRecord):
		return conflict("archive_keys", "a record of that state is under a key that this cluster does not have any more")
	case errors.Is(err, snapshot.ErrForeign):
		return conflict("archive_foreign", err.Error())
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrFormat), errors.Is(err, snapshot.ErrNotFound), errors.Is(err, fsm.ErrCorruptSnapshot), errors.As(err, new(*fsm.ErrUnknownLevel)):
		return conflict("archive_damaged", err.Error())
	case errors.Is(err, seal.ErrSealed):
		return keyError(err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errGivenUp(err)
	}
	return &secret.Error{Code: secret.CodeUnavailable, Subject: "archive", Message: "the archive cannot be read now; nothing was changed", Reason: "archive_unreadable", Cause: err}
}

// staleAfter is for how long a staging area may stand still before the leader clears it.
const staleAfter = 5 * time.Minute

// tidying lets the leader clear the staging area of a restore whose peer died.
func (n *Node) tidying() {
	var s stale
	for n.sleep(rpcTimeout) {
		if err := n.clearStale(&s, time.Now()); err != nil {
			n.log.Info("the staging area of a restore that does not go on could not be cleared; it is tried again", "reason", err)
		}
	}
}

// stale is a staging area as it was seen, and since when.
type stale struct {
	seen  fsm.Staged
	since time.Time
}

func (n *Node) clearStale(s *stale, now time.Time) error {
	staged, ok := n.machine.View().Staged()
	if !ok || !n.leads() || staged != s.seen || s.since.IsZero() {
		s.seen, s.since = staged, now
		return nil
	}
	if now.Sub(s.since) < staleAfter {
		return nil
	}
	ctx, cancel := n.step()
	defer cancel()
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AbandonRestore{AbandonRestore: &fsmpb.AbandonRestore{Id: staged.ID[:]}}})
	if err == nil && result.Code == fsmpb.Code_OK {
		n.log.Warn("a restore into the cluster did not go on; what was staged of it is given up", "records", staged.Records, "of", staged.Expected)
	}
	return err
}
