package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// The leader's care for the archive: drills when they are due, and retention
// after each that succeeded.

const (
	careEvery = time.Second / 2
	// drillEvery is how often the archive is drilled unless a setting says otherwise.
	drillEvery = 24 * time.Hour
	// drillAgain is the most that passes after a drill that failed.
	drillAgain = time.Hour
	// careAfter is how long a new leader does other things first.
	careAfter = time.Minute
	// careAgain is what passes after a drill that could not even be tried, which is on
	// record in the audit log alone.
	careAgain = time.Minute
)

// careOf are the settings of the archive, with the defaults.
func careOf(view *fsm.View) (snapshots, drills time.Duration, keep snapshot.Retention) {
	c := view.Settings().GetArchive()
	snapshots, drills = time.Duration(c.GetSnapshotSeconds())*time.Second, drillEvery
	if c != nil && c.DrillSeconds != nil {
		drills = time.Duration(*c.DrillSeconds) * time.Second
	}
	return snapshots, drills, snapshot.Retention{Hourly: int(c.GetHourly()), Daily: int(c.GetDaily()), Weekly: int(c.GetWeekly()), Monthly: int(c.GetMonthly()), Minimum: int(c.GetMinimum())}
}

// snapshotEvery is what the setting says; 0 when it leaves that to the peers.
func (n *Node) snapshotEvery() time.Duration {
	every, _, _ := careOf(n.machine.View())
	return every
}

// nextDrill is when the next drill is due; zero: never. The state decides, so that a
// new leader goes on where the one before was.
func nextDrill(view *fsm.View, now time.Time) time.Time {
	_, every, _ := careOf(view)
	list := view.Drills()
	switch {
	case every == 0:
		return time.Time{}
	case len(list) == 0:
		return now
	}
	last := list[len(list)-1]
	if last.Reason != "" {
		every = min(every, drillAgain)
	}
	at := time.Unix(0, last.Time).UTC()
	if at.After(now.Add(time.Minute)) { // by a clock that was wrong, which must not end drills
		return now
	}
	return at.Add(every)
}

// caring drills and prunes while this peer leads and has keys.
func (n *Node) caring() {
	if n.cfg.Archive == "" {
		return
	}
	var since time.Time    // leads
	var failed time.Time   // when the last drill could not be tried
	var prunedAfter uint64 // index of the drill that retention followed last
	for n.sleep(careEvery) {
		if !n.cares() {
			since, prunedAfter = time.Time{}, 0
			n.pruned.Store(nil)
			continue
		}
		now, view := n.now(), n.machine.View()
		if since.IsZero() {
			since = now
		}
		s := n.shipper.Load()
		if now.Sub(since) < careAfter || s == nil || s.Status().Snapshot.Last == 0 || view.Level() < levelOfCare {
			continue
		}
		ctx, cancel := n.while(n.ctx, n.cares)
		if at := nextDrill(view, now); !at.IsZero() && !now.Before(at) && now.Sub(failed).Abs() >= careAgain {
			if !n.drillBySchedule(ctx) {
				failed = now
			}
		}
		if d := newestDrill(n.machine.View()); d != nil && d.Reason == "" && d.Index > prunedAfter && ctx.Err() == nil {
			prunedAfter = d.Index
			n.prune(ctx)
		}
		cancel()
	}
}

func newestDrill(view *fsm.View) *fsmpb.Drill {
	list := view.Drills()
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// cares tells whether the archive is this peer's to care for.
func (n *Node) cares() bool { return n.leads() && !n.store.Sealed() }

// while is a context that ends soon after holds does not hold any more.
func (n *Node) while(ctx context.Context, holds func() bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	n.loops.Go(func() {
		for n.sleepIn(ctx, time.Second/4) && holds() {
		}
		cancel()
	})
	return ctx, cancel
}

// byItself is what stands in audit records of the care for the archive.
func (n *Node) byItself() store.Request {
	return store.Request{ID: "archive-care", Caller: secret.Caller{ID: n.source.ID().String()}}
}

// drillBySchedule tells whether there is an outcome on record.
func (n *Node) drillBySchedule(ctx context.Context) bool {
	var id [16]byte
	rand.Read(id[:])
	err := n.store.OfOwnAccord(n.byItself(), "snapshot.drill", "setting archive drills", "drill "+hex.EncodeToString(id[:]), func() error {
		// Its work ends with ctx; so does the wait for it.
		_, _, err := n.drills.do(n.ctx, id, n.loops.Go, func() (*fsmpb.Drill, error) { return n.drill(ctx, id) })
		return err
	})
	if err != nil && ctx.Err() == nil {
		n.log.Warn("the archive could not be drilled; it is tried again", "error", err)
	}
	return err == nil
}

// prune does the retention, with what recorded drills have proven. What it came to
// is for the status; the next drill that succeeds has it done again.
func (n *Node) prune(ctx context.Context) {
	view := n.machine.View()
	_, _, keep := careOf(view)
	if keep == (snapshot.Retention{}) {
		n.pruned.Store(nil)
		return
	}
	result := client.Pruned{Time: n.now()}
	err := n.pruneTo(ctx, view, keep, &result)
	if result.Forbidden = errors.Is(err, snapshot.ErrForbidden); err != nil && ctx.Err() == nil {
		result.Error = err.Error()
		if result.Forbidden {
			n.log.Info("the store lets this peer delete nothing from the archive; retention is somebody else's then", "error", err)
		} else {
			n.log.Warn("retention did not come to its end; the next drill has it done again", "error", err)
		}
	}
	n.pruned.Store(&result)
}

func (n *Node) pruneTo(ctx context.Context, view *fsm.View, keep snapshot.Retention, result *client.Pruned) error {
	id, _, ok := n.cluster.Identity()
	if !ok {
		return errors.New("the cluster has not formed")
	}
	archive, err := n.openArchive()
	if err != nil {
		return err
	}
	list, err := archive.List(ctx, id)
	if err != nil {
		return err
	}
	verified := make(map[string]bool)
	for _, d := range view.Drills() {
		if d.Reason == "" {
			verified[d.Object] = true
		}
	}
	stay, drop := snapshot.Retain(list, keep, verified)
	if result.Kept = len(stay); len(drop) == 0 {
		return nil
	}
	return n.store.OfOwnAccord(n.byItself(), "snapshot.prune", "setting archive retention", fmt.Sprintf("objects %d", len(drop)), func() error {
		done, err := archive.Prune(ctx, drop)
		result.Deleted, result.Retained = done.Deleted, len(done.Retained)
		return err
	})
}

// ArchiveCare tells what is set, what was done, and what comes next; the peer that
// ships is asked.
func (o operator) ArchiveCare(ctx context.Context) (store.ArchiveCare, error) {
	n := o.n
	if _, err := n.cluster.WaitRead(ctx); err != nil {
		return store.ArchiveCare{}, logError(err)
	}
	view := n.machine.View()
	snapshots, drills, keep := careOf(view)
	care := store.ArchiveCare{Archive: n.cfg.archiveName(), SnapshotSet: snapshots, SnapshotEvery: n.cfg.ArchiveSnapshotEvery, DrillEvery: drills,
		Retention: store.Retention{Hourly: uint32(keep.Hourly), Daily: uint32(keep.Daily), Weekly: uint32(keep.Weekly), Monthly: uint32(keep.Monthly), Minimum: uint32(keep.Minimum)}}
	if snapshots > 0 {
		care.SnapshotEvery = snapshots
	}
	for i := len(view.Drills()) - 1; i >= 0; i-- {
		care.Drills = append(care.Drills, drillOf(view.Drills()[i]))
	}
	if n.cfg.Archive == "" {
		return care, nil
	}
	if at := nextDrill(view, n.now()); !at.IsZero() {
		care.NextDrill = &at
	}
	leader := n.cluster.Status().Leader
	if leader == "" {
		return care, nil
	}
	a := n.askPeer(leader).Archive
	if a == nil || !a.Active {
		return care, nil
	}
	care.Shipper, care.Pruned = leader, (*store.Pruned)(a.Pruned)
	if a.SnapshotSeconds > 0 {
		care.SnapshotEvery = time.Duration(a.SnapshotSeconds * float64(time.Second))
	}
	if a.Snapshot > 0 {
		last, next := a.SnapshotTime, a.SnapshotTime.Add(care.SnapshotEvery)
		care.LastSnapshot, care.SnapshotIndex, care.NextSnapshot = &last, a.Snapshot, &next
	}
	return care, nil
}
