package fsm_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// drill is the result of one; reason says why it failed.
func drill(id byte, reason string) *fsmpb.Command {
	d := &fsmpb.Drill{Id: bytes.Repeat([]byte{id}, 16), Peer: "nexus-1", Reason: reason, Object: "v1/c1/1/snapshot/17-2", Incarnation: 1, Snapshot: 17, Last: 20,
		Secrets: 2, Versions: 3, Policies: 1, Entries: 3, Milliseconds: 12}
	if reason == "" {
		d.DataHash = bytes.Repeat([]byte{id}, 32)
	}
	return &fsmpb.Command{Op: &fsmpb.Command_RecordDrill{RecordDrill: &fsmpb.RecordDrill{Drill: d}}}
}

// Whatever comes, the newest results are kept, never more than so many, and always the newest that succeeded; a machine that
// was restored agrees.
func TestDrillsAreKept(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := founded(t, nil)
		want(t, do(t, m, raise(3)), fsmpb.Code_OK)
		empty, _ := m.View().Size()
		var good *fsmpb.Drill
		for i := range rapid.IntRange(0, 3*fsm.MaxDrills).Draw(t, "drills") {
			reason := rapid.SampledFrom([]string{"", "no", "no", "no"}).Draw(t, "reason")
			want(t, do(t, m, at(int64(i), drill(byte(i+1), reason))), fsmpb.Code_OK)
			list := m.View().Drills()
			last := list[len(list)-1]
			if reason == "" {
				good = last
			}
			if len(list) != min(i+1, fsm.MaxDrills) || last.Id[0] != byte(i+1) || last.Index != m.View().Index() || last.Time != int64(i) {
				t.Fatal(len(list), last)
			}
			if fsm.LastGoodDrill(list) != good || good != nil && !slices.Contains(list, good) {
				t.Fatal("the newest success is not there")
			}
			if !slices.IsSortedFunc(list, func(a, b *fsmpb.Drill) int { return int(a.Index) - int(b.Index) }) {
				t.Fatal("out of order")
			}
		}
		if size, _ := m.View().Size(); (size > empty) != (len(m.View().Drills()) > 0) {
			t.Fatal("its size is not counted")
		}
		twin := fsm.New(fsm.Options{})
		if err := twin.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
			t.Fatal(err)
		}
		equal(t, m.View(), twin.View())
		a, _ := m.View().Size()
		if b, _ := twin.View().Size(); a != b {
			t.Fatal(a, b)
		}
	})
}

// No number of failures makes the newest success forgotten, wherever it stands.
func TestNewestSuccessStays(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	want(t, do(t, m, raise(3)), fsmpb.Code_OK)
	for i := range 60 {
		reason := "no"
		if i == 1 || i == 25 {
			reason = ""
		}
		want(t, do(t, m, drill(byte(i+1), reason)), fsmpb.Code_OK)
	}
	list := m.View().Drills()
	if good := fsm.LastGoodDrill(list); good == nil || good.Id[0] != 26 || len(list) != fsm.MaxDrills || list[len(list)-1].Id[0] != 60 {
		t.Fatal(good, len(list))
	}
}

// What says nothing that can be is refused, and nothing changes; secrets and policies never do.
func TestDrillsAreChecked(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	want(t, do(t, m, drill(1, "")), fsmpb.Code_LEVEL_TOO_LOW)
	want(t, do(t, m, raise(3)), fsmpb.Code_OK)
	data, all := m.View().Hashes()
	for name, change := range map[string]func(*fsmpb.Drill){
		"no id":            func(d *fsmpb.Drill) { d.Id = nil },
		"no peer":          func(d *fsmpb.Drill) { d.Peer = "" },
		"long reason":      func(d *fsmpb.Drill) { d.Reason = strings.Repeat("x", fsm.MaxDrillReason+1) },
		"long object":      func(d *fsmpb.Drill) { d.Object = strings.Repeat("x", fsm.MaxDrillObject+1) },
		"success, no hash": func(d *fsmpb.Drill) { d.DataHash = nil },
		"short hash":       func(d *fsmpb.Drill) { d.DataHash, d.Reason = []byte{1}, "x" },
		"no object":        func(d *fsmpb.Drill) { d.Object = "" },
		"last before it":   func(d *fsmpb.Drill) { d.Last = 1 },
		"recorded":         func(d *fsmpb.Drill) { d.Index = 1 },
	} {
		c := drill(1, "")
		change(c.GetRecordDrill().Drill)
		if r := do(t, m, c); r.Code != fsmpb.Code_INVALID {
			t.Errorf("%s: %v", name, r)
		}
	}
	for _, care := range []*fsmpb.ArchiveCare{{SnapshotSeconds: fsm.MaxCareSeconds + 1}, {DrillSeconds: proto.Uint64(fsm.MaxCareSeconds + 1)}, {Weekly: fsm.MaxRetention + 1}} {
		want(t, do(t, m, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{Archive: care})), fsmpb.Code_INVALID)
	}
	care := &fsmpb.Settings{Archive: &fsmpb.ArchiveCare{Daily: 7}}
	want(t, do(t, m, level(2, putSettings(m.View().SettingsRevision(), care))), fsmpb.Code_INVALID) // as to builds that know no more
	want(t, do(t, m, level(2, found(care))), fsmpb.Code_INVALID)
	if d, a := m.View().Hashes(); d != data || a != all {
		t.Fatal("something changed")
	}
	want(t, do(t, m, drill(1, "")), fsmpb.Code_OK)
	if d, a := m.View().Hashes(); d != data || a == all {
		t.Error("a drill is of all, and not of the data")
	}
	want(t, do(t, m, setSeal(true, 0)), fsmpb.Code_OK)
	want(t, do(t, m, drill(2, "")), fsmpb.Code_SEALED)
}
