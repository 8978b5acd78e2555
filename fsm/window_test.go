package fsm_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

func TestRetryGivesTheSameResultOnce(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	first := do(t, m, with(1, 1, put("a", 0, 1, "one")))
	do(t, m, put("a", first.Revision, 2, "two"))
	_, all := m.View().Hashes()
	// The retry was decided again and sealed again; only id and request count.
	again := do(t, m, with(1, 0, put("a", first.Revision+1, 3, "one, sealed again")))
	first.Replayed = true
	if !proto.Equal(again, first) {
		t.Fatalf("retry %v, first %v", again, first)
	}
	if _, after := m.View().Hashes(); after != all || len(secret(m, "a").Versions) != 2 {
		t.Fatal("the retry changed something")
	}
	// In one entry too.
	c := encode(t, with(2, 1, del("a", first.Revision+1, 1)))
	r := apply(t, m, m.View().Index()+1, c, c)
	if r[0].Replayed || !r[1].Replayed || r[1].Versions[0] != 1 || r[1].Revision != r[0].Revision {
		t.Fatal(r)
	}
}

func TestRejectedWriteIDMayTryAgain(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	r := do(t, m, with(1, 1, put("a", 4, 1, "one")))
	want(t, r, fsmpb.Code_CONFLICT)
	r = do(t, m, with(1, 1, put("a", r.Current.SecretRevision, r.Current.NextVersion, "one")))
	if r.Code != fsmpb.Code_OK || r.Replayed {
		t.Fatal(r)
	}
}

// TestFloor checks the rule at its edge: after the result of index r was
// evicted, an id with an index below r may have been applied, one with r not.
func TestFloor(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{WindowEntries: 2})
	want(t, do(t, m, with(1, 1, putPolicy("a", 0, "x"))), fsmpb.Code_OK) // applied at 2
	want(t, do(t, m, with(2, 2, putPolicy("b", 0, "x"))), fsmpb.Code_OK) // at 3
	if m.View().WindowFloor() != 0 {
		t.Fatal(m.View().WindowFloor())
	}
	want(t, do(t, m, with(3, 2, putPolicy("c", 0, "x"))), fsmpb.Code_OK) // at 4: evicts id 1
	if v := m.View(); v.WindowFloor() != 2 || v.WindowLen() != 2 {
		t.Fatal(v.WindowFloor(), v.WindowLen())
	}
	r := do(t, m, with(1, 1, putPolicy("a", 0, "x"))) // at 5
	want(t, r, fsmpb.Code_WINDOW_EXPIRED)
	if r.Current.WindowFloor != 2 {
		t.Fatal(r)
	}
	// Still in the window, whatever index a retry carries.
	if r := do(t, m, with(2, 0, putPolicy("b", 0, "x"))); !r.Replayed {
		t.Fatal(r)
	}
	// Carries the floor itself: cannot have been evicted.
	want(t, do(t, m, with(4, 2, putPolicy("d", 0, "x"))), fsmpb.Code_OK)
	want(t, do(t, m, with(5, 2, putPolicy("e", 0, "x"))), fsmpb.Code_WINDOW_EXPIRED)
	// Shrinking forgets at once.
	want(t, do(t, m, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{WindowEntries: 1})), fsmpb.Code_OK)
	if v := m.View(); v.WindowLen() != 1 || v.WindowFloor() != 4 {
		t.Fatal(v.WindowLen(), v.WindowFloor())
	}
}

func TestWindowIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{WindowBytes: 64 << 10})
	for i := range uint64(2000) {
		c := anchor("nexus-1", i+1)
		id := binary.BigEndian.AppendUint64(make([]byte, 8), i)
		c.WriteId = &fsmpb.WriteID{Id: id, Index: m.View().Index(), Request: bytes.Repeat([]byte{1}, 32)}
		want(t, do(t, m, c), fsmpb.Code_OK)
	}
	if v := m.View(); v.WindowLen() < 200 || v.WindowLen() > 400 || v.WindowFloor() == 0 {
		t.Fatal(v.WindowLen(), v.WindowFloor())
	}
}

// TestOldViewKeepsItsWindow writes a snapshot of a view after much has happened
// since, evictions included.
func TestOldViewKeepsItsWindow(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{WindowEntries: 3})
	for i := range byte(5) {
		want(t, do(t, m, with(i, m.View().Index(), anchor("nexus-1", uint64(i)+1))), fsmpb.Code_OK)
	}
	v := m.View()
	before := snapshot(t, v)
	for i := byte(5); i < 50; i++ {
		want(t, do(t, m, with(i, m.View().Index(), anchor("nexus-1", uint64(i)+1))), fsmpb.Code_OK)
	}
	if !bytes.Equal(before, snapshot(t, v)) {
		t.Fatal("the old view changed")
	}
	n := fsm.New(fsm.Options{})
	if err := n.Restore(bytes.NewReader(before)); err != nil {
		t.Fatal(err)
	}
	equal(t, v, n.View())
	if r := do(t, n, with(4, 3, anchor("nexus-1", 5))); !r.Replayed {
		t.Fatal(r)
	}
	want(t, do(t, n, with(1, 1, anchor("nexus-1", 9))), fsmpb.Code_WINDOW_EXPIRED)
}

// A view answers a retry as Apply would, and knows nothing that came after it.
func TestReplay(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	before := m.View()
	c := with(1, before.Index(), put("a", 0, 1, "one"))
	id := [16]byte(c.WriteId.Id)
	first := do(t, m, c)
	after := m.View()
	if before.Replay(id, c.WriteId.Request, before.Index()) != nil {
		t.Fatal("a view answers with what came after it")
	}
	if r := after.Replay(id, c.WriteId.Request, before.Index()); !proto.Equal(r, do(t, m, c)) || r.Index != first.Index {
		t.Fatal(r)
	}
	want(t, after.Replay(id, []byte("another request"), before.Index()), fsmpb.Code_WRITE_ID_REUSED)
	if r := after.Replay([16]byte{9}, c.WriteId.Request, 0); r != nil {
		t.Fatal(r)
	}
	// Results at or before the index that an id carries cannot be its own.
	if r := after.Replay(id, c.WriteId.Request, first.Index); r != nil {
		t.Fatal(r)
	}
	restored := fsm.New(fsm.Options{})
	if err := restored.Restore(bytes.NewReader(snapshot(t, after))); err != nil {
		t.Fatal(err)
	}
	if r := restored.View().Replay(id, c.WriteId.Request, before.Index()); !proto.Equal(r, after.Replay(id, c.WriteId.Request, before.Index())) {
		t.Fatal(r)
	}
}
