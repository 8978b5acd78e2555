package node

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// The second half of a restore into the running cluster: what was read is staged on
// all peers, and put in the place of what is there.

const (
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
