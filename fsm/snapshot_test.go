package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

const magicLen = 16

// records takes a snapshot apart.
func records(t tester, b []byte) (out []*fsmpb.SnapshotRecord) {
	t.Helper()
	for b = b[magicLen:]; len(b) > 0; {
		raw, n := protowire.ConsumeBytes(b)
		if n < 0 {
			t.Fatal("not length-delimited")
		}
		rec := new(fsmpb.SnapshotRecord)
		if err := proto.Unmarshal(raw, rec); err != nil {
			t.Fatal(err)
		}
		out, b = append(out, rec), b[n:]
	}
	return out
}

// assemble puts records together again, with a stream hash that fits.
func assemble(t tester, magic []byte, recs []*fsmpb.SnapshotRecord) []byte {
	t.Helper()
	out := bytes.Clone(magic)
	for _, r := range recs {
		if tr := r.GetTrailer(); tr != nil {
			h := sha256.Sum256(out)
			tr.StreamHash = h[:]
		}
		raw, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out = protowire.AppendBytes(out, raw)
	}
	return out
}

// full returns a machine with something of every kind.
func full(t tester) *fsm.Machine {
	t.Helper()
	m, a, _, _ := ready(t)
	r := do(t, m, put("a", a, 3, "three"))
	r = do(t, m, at(77, destroy("a", r.Revision, 1)))
	want(t, do(t, m, with(8, 2, del("a", r.Revision, 3))), fsmpb.Code_OK)
	want(t, do(t, m, put("b", 0, 1, "x")), fsmpb.Code_OK)
	want(t, do(t, m, begin(2, shareID(1))), fsmpb.Code_OK)
	want(t, do(t, m, anchor("nexus-2", 1)), fsmpb.Code_OK)
	want(t, do(t, m, putPolicy("q", 0, "another")), fsmpb.Code_OK)
	want(t, do(t, m, raise(3)), fsmpb.Code_OK)
	want(t, do(t, m, drill(1, "")), fsmpb.Code_OK)
	want(t, do(t, m, drill(2, "why")), fsmpb.Code_OK)
	return m
}

func TestSnapshotRoundTrip(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*fsm.Machine{"empty": fsm.New(fsm.Options{}), "founded": founded(t, nil), "full": full(t)} {
		b := snapshot(t, m.View())
		n := full(t) // over a state of its own
		var got []fsm.Delta
		_, stop := n.Observe(changed(func(d fsm.Delta) { got = append(got, d) }))
		if err := n.Restore(iotest.OneByteReader(bytes.NewReader(b))); err != nil {
			t.Fatal(name, err)
		}
		stop()
		equal(t, m.View(), n.View())
		if len(got) != 1 || !got[0].Reset || got[0].View != n.View() {
			t.Error(name, "observers were told", got)
		}
		if m.View().Founded() {
			r1, r2 := do(t, m, put("z", 0, 1, "z")), do(t, n, put("z", 0, 1, "z"))
			if !proto.Equal(r1, r2) {
				t.Error(name, r1, r2)
			}
			equal(t, m.View(), n.View())
		}
	}
}

// changed makes an observer of a function.
type changed func(fsm.Delta)

func (c changed) Changed(d fsm.Delta) { c(d) }

// TestDamagedSnapshot damages every byte, and cuts at every length.
func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	good := snapshot(t, full(t).View())
	m := founded(t, nil)
	v := m.View()
	refused := func(b []byte, what string, at int) {
		err := m.Restore(bytes.NewReader(b))
		if !errors.Is(err, fsm.ErrCorruptSnapshot) && !errors.As(err, new(*fsm.ErrUnknownLevel)) {
			t.Fatal(what, at, err)
		}
		if m.View() != v {
			t.Fatal(what, at, "the machine changed")
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		refused(b, "damaged at", i)
		refused(good[:i], "cut at", i)
	}
	refused(append(bytes.Clone(good), 0), "longer", 0)
	broken := errors.New("disk on fire")
	if err := m.Restore(io.MultiReader(bytes.NewReader(good[:99]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	want(t, do(t, m, put("a", 0, 1, "still alive")), fsmpb.Code_OK)
}

// TestForgedSnapshot changes records and makes the stream hash fit again: the
// rest of the checks has to find it.
func TestForgedSnapshot(t *testing.T) {
	t.Parallel()
	good := snapshot(t, full(t).View())
	index := func(recs []*fsmpb.SnapshotRecord, is func(*fsmpb.SnapshotRecord) bool) int {
		for i, r := range recs {
			if is(r) {
				return i
			}
		}
		t.Fatal("no such record")
		return 0
	}
	version := func(r *fsmpb.SnapshotRecord) bool { return r.GetVersion() != nil }
	valued := func(r *fsmpb.SnapshotRecord) bool { return len(r.GetVersion().GetValue()) > 0 }
	deleted := func(r *fsmpb.SnapshotRecord) bool { return r.GetVersion().GetDeleted() != 0 }
	secret := func(r *fsmpb.SnapshotRecord) bool { return r.GetSecret() != nil }
	policy := func(r *fsmpb.SnapshotRecord) bool { return r.GetPolicy() != nil }
	window := func(r *fsmpb.SnapshotRecord) bool { return r.GetWindow() != nil }
	anchors := func(r *fsmpb.SnapshotRecord) bool { return r.GetAnchor() != nil }
	type recs = []*fsmpb.SnapshotRecord
	head := func(f func(*fsmpb.SnapshotHeader)) func(recs) recs {
		return func(r recs) recs { f(r[0].GetHeader()); return r }
	}
	drop := func(is func(*fsmpb.SnapshotRecord) bool) func(recs) recs {
		return func(r recs) recs { i := index(r, is); return append(r[:i:i], r[i+1:]...) }
	}
	twice := func(is func(*fsmpb.SnapshotRecord) bool) func(recs) recs {
		return func(r recs) recs { i := index(r, is); return append(r[:i+1:i+1], r[i:]...) }
	}
	for name, f := range map[string]func(recs) recs{
		"nothing after the header": func(r recs) recs { return r[:1] },
		"no header":                func(r recs) recs { return r[1:] },
		"format":                   head(func(h *fsmpb.SnapshotHeader) { h.Format = 2 }),
		"level 0":                  head(func(h *fsmpb.SnapshotHeader) { h.Level = 0 }),
		"identity":                 head(func(h *fsmpb.SnapshotHeader) { h.ClusterId[0]++ }),
		"no identity":              head(func(h *fsmpb.SnapshotHeader) { h.ClusterId = nil }),
		"incarnation":              head(func(h *fsmpb.SnapshotHeader) { h.Incarnation++ }),
		"settings":                 head(func(h *fsmpb.SnapshotHeader) { h.Settings.IndexReads = true }),
		"bad settings":             head(func(h *fsmpb.SnapshotHeader) { h.Settings.MaxVersions = 0 }),
		"no settings":              head(func(h *fsmpb.SnapshotHeader) { h.Settings = nil }),
		"no seal":                  head(func(h *fsmpb.SnapshotHeader) { h.Seal = nil }),
		"seal":                     head(func(h *fsmpb.SnapshotHeader) { h.Seal.Sealed = true }),
		"keyring":                  head(func(h *fsmpb.SnapshotHeader) { h.Seal.Keyring = nil }),
		"share set":                head(func(h *fsmpb.SnapshotHeader) { h.Seal.Committed.Threshold = 9 }),
		"floor":                    head(func(h *fsmpb.SnapshotHeader) { h.WindowFloor = h.Index + 1 }),
		"revision":                 head(func(h *fsmpb.SnapshotHeader) { h.Revision = 5 }),
		"policy revision":          head(func(h *fsmpb.SnapshotHeader) { h.PolicyRevision-- }),
		"index":                    head(func(h *fsmpb.SnapshotHeader) { h.Index = 4 }),
		"version missing":          drop(version),
		"secret missing":           drop(secret),
		"policy missing":           drop(policy),
		"window entry missing":     drop(window),
		"anchor missing":           drop(anchors),
		"version twice":            twice(version),
		"secret twice":             twice(secret),
		"policy twice":             twice(policy),
		"window entry twice":       twice(window),
		"anchor twice":             twice(anchors),
		"value":                    func(r recs) recs { r[index(r, valued)].GetVersion().Value = []byte("evil"); return r },
		"undeleted":                func(r recs) recs { r[index(r, deleted)].GetVersion().Deleted = 0; return r },
		"current":                  func(r recs) recs { r[index(r, secret)].GetSecret().Current++; return r },
		"oldest":                   func(r recs) recs { r[index(r, secret)].GetSecret().Oldest = 9; return r },
		"max versions":             func(r recs) recs { r[index(r, secret)].GetSecret().MaxVersions = 1; return r },
		"inner versions": func(r recs) recs {
			s := r[index(r, secret)].GetSecret()
			s.Versions = []*fsmpb.Version{{Version: 1, Value: []byte("x")}}
			return r
		},
		"order": func(r recs) recs {
			i, j := index(r, policy), index(r, anchors)
			r[i], r[j] = r[j], r[i]
			return r
		},
		"window order": func(r recs) recs {
			i := index(r, window)
			r[i], r[i+1] = r[i+1], r[i]
			return r
		},
		"window too long": head(func(h *fsmpb.SnapshotHeader) { h.Settings.WindowEntries = 1 }),
		"anchor count":    func(r recs) recs { r[index(r, anchors)].GetAnchor().Count++; return r },
		"header twice":    func(r recs) recs { return append(recs{r[0]}, r...) },
		"count":           func(r recs) recs { r[len(r)-1].GetTrailer().Versions++; return r },
		"data hash":       func(r recs) recs { r[len(r)-1].GetTrailer().DataHash[5]++; return r },
		"all hash":        func(r recs) recs { r[len(r)-1].GetTrailer().AllHash = nil; return r },
	} {
		b := assemble(t, good[:magicLen], f(records(t, good)))
		if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(b)); !errors.Is(err, fsm.ErrCorruptSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(assemble(t, good[:magicLen], records(t, good)))); err != nil {
		t.Error("unchanged:", err)
	}
	newer := assemble(t, good[:magicLen], head(func(h *fsmpb.SnapshotHeader) { h.Level = fsm.Level + 1 })(records(t, good)))
	var unknown *fsm.ErrUnknownLevel
	if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(newer)); !errors.As(err, &unknown) || unknown.Level != fsm.Level+1 {
		t.Error(err)
	}
}

func TestSnapshotWriteError(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	err := founded(t, nil).View().WriteSnapshot(failing{full})
	if !errors.Is(err, full) {
		t.Fatal(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
