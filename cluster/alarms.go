package cluster

import (
	"log/slog"
	"sort"
	"sync"
	"time"
)

// AlarmKind names an alarm, for people and for metrics.
type AlarmKind string

const (
	// AlarmSnapshotLoop: this peer installs one snapshot after the other and
	// never gets to follow the leader's log in between.
	AlarmSnapshotLoop AlarmKind = "snapshot-loop"
	// AlarmDiskStalls: a write to this peer's Raft log does not come back. If it
	// leads, it has stopped talking to its followers, so that another can.
	AlarmDiskStalls AlarmKind = "disk-stalls"
)

// AlarmKinds are all that there are.
var AlarmKinds = []AlarmKind{AlarmSnapshotLoop, AlarmDiskStalls}

// Alarm is something that goes on at this peer and wants an operator. It ends by
// itself when its cause does.
type Alarm struct {
	Kind   AlarmKind
	Detail string    // what happens, and what to do about it
	Since  time.Time // for people
}

// alarms holds those that are on now. Safe for concurrent use.
type alarms struct {
	log *slog.Logger

	mu sync.Mutex // guards on
	on map[AlarmKind]Alarm
}

func newAlarms(log *slog.Logger) *alarms {
	return &alarms{log: log, on: make(map[AlarmKind]Alarm)}
}

// raise puts an alarm on, or renews what it says. It logs the first time.
func (a *alarms) raise(kind AlarmKind, detail string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, on := a.on[kind]
	if !on {
		old.Since = time.Now()
		a.log.Warn("alarm", "kind", string(kind), "detail", detail)
	}
	a.on[kind] = Alarm{kind, detail, old.Since}
}

func (a *alarms) clear(kind AlarmKind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, on := a.on[kind]; on {
		delete(a.on, kind)
		a.log.Info("the alarm is over", "kind", string(kind))
	}
}

func (a *alarms) list() []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []Alarm
	for _, x := range a.on {
		list = append(list, x)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Kind < list[j].Kind })
	return list
}
