package fsm

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// Drills are restores of the archive that were only tried: what they came to is
// part of the state, so that every peer can tell, whoever did them, and a new
// leader goes on where the one before ended.

// Bounds of what is kept of drills, and of the care of the archive. They decide
// results and so belong to the format level.
const (
	MaxDrills      = 16               // results that are kept
	MaxDrillReason = 512              // bytes of the reason of a failure
	MaxDrillObject = 256              // bytes of an object's name
	MaxCareSeconds = 10 * 365 * 86400 // between two snapshots or drills
	MaxRetention   = 100_000          // snapshots of one kind
	drillOverhead  = 256
)

// recordDrill appends a result. The newest success outlasts any number of
// failures: retention goes by it, and people want to know how old it is.
func (a *applier) recordDrill(d *fsmpb.Drill, now int64) *fsmpb.Result {
	if slices.ContainsFunc(a.drills, func(old *fsmpb.Drill) bool { return string(old.Id) == string(d.Id) }) {
		return refuse(fsmpb.Code_CONFLICT, "this drill is on record already")
	}
	n := proto.Clone(d).(*fsmpb.Drill)
	n.Index, n.Time = a.index, now
	list := append(slices.Clone(a.drills), n)
	if len(list) > MaxDrills {
		at := 0
		if list[0] == LastGoodDrill(list) {
			at = 1
		}
		list = slices.Delete(list, at, at+1)
	}
	a.size += drillsSize(list) - drillsSize(a.drills)
	a.drills = list
	a.dirty.drills = true
	return &fsmpb.Result{Code: fsmpb.Code_OK}
}

// LastGoodDrill is the newest of a list that succeeded; nil when none did.
func LastGoodDrill(list []*fsmpb.Drill) *fsmpb.Drill {
	for _, d := range slices.Backward(list) {
		if d.Reason == "" {
			return d
		}
	}
	return nil
}

// Drills returns what the last drills of the archive came to, oldest first. They
// are shared: nobody may change them.
func (v *View) Drills() []*fsmpb.Drill { return v.drills }

func checkDrill(d *fsmpb.Drill) string {
	switch {
	case d == nil:
		return "no drill"
	case unknown(d):
		return "unknown field"
	case !isID(d.Id):
		return "id of a drill is not 16 bytes"
	case d.Peer == "" || len(d.Peer) > MaxPeer:
		return "peer name empty or too long"
	case len(d.Reason) > MaxDrillReason || len(d.Object) > MaxDrillObject:
		return "reason or object of a drill too long"
	case d.Reason == "" && (d.Object == "" || len(d.DataHash) != 32), len(d.DataHash) != 0 && len(d.DataHash) != 32:
		return "a drill that succeeded without an object or its hash"
	case d.Last < d.Snapshot:
		return "indexes of a drill do not fit"
	case d.Index != 0 || d.Time != 0:
		return "a drill that is on record already"
	}
	return ""
}

// checkDrills looks at those of a snapshot.
func checkDrills(h *fsmpb.SnapshotHeader) string {
	if len(h.Drills) > MaxDrills || h.Level < 3 && len(h.Drills) != 0 {
		return "too many drills"
	}
	last := uint64(0)
	for _, d := range h.Drills {
		if d.Index == 0 || d.Index < last || d.Index > h.Index {
			return "drills out of order"
		}
		last = d.Index
		asked := proto.Clone(d).(*fsmpb.Drill)
		asked.Index, asked.Time = 0, 0
		if bad := checkDrill(asked); bad != "" {
			return bad
		}
	}
	return ""
}

func checkCare(c *fsmpb.ArchiveCare) string {
	switch {
	case unknown(c):
		return "unknown field"
	case c.GetSnapshotSeconds() > MaxCareSeconds || c.GetDrillSeconds() > MaxCareSeconds:
		return "time between snapshots or drills too long"
	case max(c.GetHourly(), c.GetDaily(), c.GetWeekly(), c.GetMonthly(), c.GetMinimum()) > MaxRetention:
		return "too many snapshots to keep"
	}
	return ""
}

func drillsSize(list []*fsmpb.Drill) (size uint64) {
	for _, d := range list {
		size += drillOverhead + uint64(len(d.Id)+len(d.Peer)+len(d.Reason)+len(d.Object)+len(d.DataHash))
	}
	return size
}

// drills hashes all of them; zero for none, as before there were any.
func (h *hasher) drills(list []*fsmpb.Drill) (none sum) {
	if len(list) == 0 {
		return none
	}
	h.begin(kindDrills)
	h.num(uint64(len(list)))
	for _, d := range list {
		h.raw(d.Id)
		h.str(d.Peer)
		h.str(d.Reason)
		h.str(d.Object)
		h.num(d.Incarnation)
		h.num(d.Snapshot)
		h.num(d.Last)
		h.raw(d.DataHash)
		h.num(d.Secrets)
		h.num(d.Versions)
		h.num(d.Policies)
		h.num(d.Entries)
		h.num(d.Milliseconds)
		h.num(d.Index)
		h.num(uint64(d.Time))
	}
	return h.end()
}

// care adds the care of the archive to the hash of the settings.
func (h *hasher) care(c *fsmpb.ArchiveCare) {
	h.num(c.SnapshotSeconds)
	h.flag(c.DrillSeconds != nil)
	h.num(c.GetDrillSeconds())
	for _, n := range []uint32{c.Hourly, c.Daily, c.Weekly, c.Monthly, c.Minimum} {
		h.num(uint64(n))
	}
}
