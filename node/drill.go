package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// Drills: the newest state of the archive is restored into memory and thrown
// away, with the keys of this peer, and what that came to goes into the log.

// levelOfCare is the format level that has drills, and settings of the archive.
const levelOfCare = 3

// DrillArchive does it here, once for an id, and waits as long as ctx lets it.
func (o operator) DrillArchive(ctx context.Context, id [16]byte) (store.Drill, error) {
	n := o.n
	if n.cfg.Archive == "" {
		return store.Drill{}, errNoArchive
	}
	if n.machine.View().Level() < levelOfCare {
		return store.Drill{}, n.levelTooLow(levelOfCare)
	}
	if d := n.drillOnRecord(id); d != nil {
		return drillOf(d), nil
	}
	d, done, err := n.drills.do(ctx, id, n.loops.Go, func() (*fsmpb.Drill, error) { return n.drill(n.ctx, id) })
	switch {
	case err != nil:
		return store.Drill{}, err
	case !done:
		return store.Drill{ID: id}, nil
	}
	return drillOf(d), nil
}

func (n *Node) drillOnRecord(id [16]byte) *fsmpb.Drill {
	for _, d := range n.machine.View().Drills() {
		if string(d.Id) == string(id[:]) {
			return d
		}
	}
	return nil
}

// drill restores the newest state of the archive into memory, with twins of the
// keys here, and records what it came to. An error means that nothing is on
// record, because it was not the archive that ended it: this peer was sealed, or
// is stopped, or does not lead any more.
func (n *Node) drill(ctx context.Context, id [16]byte) (*fsmpb.Drill, error) {
	began := n.now()
	report, err := n.restoreInMemory(ctx)
	var ours *secret.Error
	switch {
	case ctx.Err() != nil:
		return nil, &secret.Error{Code: secret.CodeUnavailable, Message: "the drill was given up, because this peer stops or does not lead any more", Cause: err}
	case errors.As(err, &ours):
		return nil, ours
	}
	d := &fsmpb.Drill{Id: id[:], Peer: n.cfg.ID, Object: report.Name, Incarnation: report.Incarnation, Snapshot: report.Snapshot.Last, Last: report.Index,
		Secrets: uint64(report.Secrets), Versions: uint64(report.Versions), Policies: uint64(report.Policies), Entries: uint64(report.Entries),
		Milliseconds: uint64(max(n.now().Sub(began), 0).Milliseconds())}
	if err == nil {
		d.DataHash = report.Data[:]
	} else {
		d.Last, d.Reason = max(d.Last, d.Snapshot), shortReason(err)
		n.log.Error("the archive could not be restored in a drill: find out why, and have a new snapshot made ('spikectl snapshot save')", "error", err)
	}
	for {
		step, cancel := context.WithTimeout(ctx, rpcTimeout)
		result, err := n.propose(step, &fsmpb.Command{Op: &fsmpb.Command_RecordDrill{RecordDrill: &fsmpb.RecordDrill{Drill: d}}})
		cancel()
		switch {
		case err != nil && n.sleepIn(ctx, time.Second): // it is kept once, however often it is tried
			continue
		case err != nil:
			return nil, logError(err)
		case result.Code == fsmpb.Code_SEALED:
			return nil, keyError(errSealedMeanwhile)
		case result.Code != fsmpb.Code_OK && result.Code != fsmpb.Code_CONFLICT:
			return nil, fmt.Errorf("the state machine refused the record of a drill: %s %s", result.Code, result.Reason)
		}
		d.Index, d.Time = result.Index, n.now().UnixNano()
		if recorded := n.drillOnRecord(id); recorded != nil {
			d = recorded
		}
		return d, nil
	}
}

var errSealedMeanwhile = &secret.Error{Code: secret.CodeSealed, Message: "this peer was sealed during the drill, of which nothing is on record"}

func (n *Node) sleepIn(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// restoreInMemory reads the newest state of this cluster's archive and decrypts all of it. A *secret.Error says that this peer could not even
// try. A report is as far as it came.
func (n *Node) restoreInMemory(ctx context.Context) (report ArchiveReport, err error) {
	id, incarnation, ok := n.cluster.Identity()
	if !ok {
		return report, &secret.Error{Code: secret.CodeUnavailable, Message: "the cluster has not formed yet"}
	}
	archive, err := n.openArchive()
	if err != nil {
		return report, err
	}
	list, err := archive.List(ctx, id)
	if err != nil {
		return report, err
	}
	plan, err := snapshot.MakePlan(list, incarnation, 0)
	if errors.As(err, new(*snapshot.GapError)) {
		// A list that is made while segments come in may miss one and have the next.
		if list, err = archive.List(ctx, id); err == nil {
			plan, err = snapshot.MakePlan(list, incarnation, 0)
		}
	}
	if report = reportOf(id, plan); err != nil {
		return report, err
	}
	// After the list: what is there is under keys of this state.
	st, err := ledger{n}.State(ctx)
	if err != nil {
		return report, logError(err)
	}
	keys, state, err := n.seal.Reinstated(st)
	if err != nil {
		return report, reinstateError(err)
	}
	defer keys.Lock()
	ctx, cancel := n.while(ctx, func() bool { return !keys.Sealed() }) // they go with those of this peer
	defer cancel()
	a := &openedArchive{seal: keys, state: state, machine: fsm.New(fsm.Options{})}
	if err = a.replay(ctx, ArchiveReading{Archive: archive, Cluster: id}, plan); keys.Sealed() {
		err = errSealedMeanwhile
	}
	return a.report, err
}

// reinstateError says why this peer cannot read archives now.
func reinstateError(err error) error {
	if e := keyError(err); secret.CodeOf(e) == secret.CodeSealed {
		return e
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "this peer has not got the newest root key yet; ask again, or another peer", Cause: err}
}

// shortReason fits into the record.
func shortReason(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) <= fsm.MaxDrillReason {
		return text
	}
	text = text[:fsm.MaxDrillReason-3]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + "…"
}

func drillOf(d *fsmpb.Drill) store.Drill {
	return store.Drill{Done: true, ID: [16]byte(d.Id), OK: d.Reason == "", Reason: d.Reason, Peer: d.Peer, Object: d.Object, Incarnation: d.Incarnation, Snapshot: d.Snapshot,
		Index: d.Last, DataHash: d.DataHash, Secrets: d.Secrets, Versions: d.Versions, Policies: d.Policies, Entries: d.Entries,
		Took: time.Duration(d.Milliseconds) * time.Millisecond, Time: time.Unix(0, d.Time).UTC()}
}

// alarmDrill: the last drill failed.
const alarmDrill = "archive-drill-failed"

// drillStatus shows the last drill, and the last that succeeded.
func (n *Node) drillStatus(view *fsm.View, out *client.Status) {
	if d := newestDrill(view); d != nil {
		answer := api.DrillAnswer(drillOf(d))
		out.Drill = &answer
		if !answer.OK {
			out.Alarms = append(out.Alarms, client.Alarm{Kind: alarmDrill, Since: answer.Time, Detail: "the archive could not be restored in a drill on " + d.Peer + ": " + d.Reason +
				"; find out why, have a new snapshot made ('spikectl snapshot save'), and drill again ('spikectl snapshot drill')"})
		}
	}
	if d := fsm.LastGoodDrill(view.Drills()); d != nil {
		answer := api.DrillAnswer(drillOf(d))
		out.Verified = &answer
	}
}
