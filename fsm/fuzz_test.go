package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// FuzzApply gives any bytes to a machine that has something of everything, and
// to its twin: no panic, a decodable result, equal states, and no change unless
// the result is OK.
func FuzzApply(f *testing.F) {
	m, a, gone, p := ready(f)
	for _, c := range []*fsmpb.Command{found(nil), with(1, 2, put("a", a, 3, "x")), del("a", a, 1, 0), undel("gone", gone),
		destroy("a", a, 1, 2), purge("a", a), with(1, 2, all(put("a", a, 3, "x"), put("new", 0, 1, "y"), del("gone", gone, 1))), all(destroy("a", a, 2), purge("gone", gone)), putPolicy("p", p, "x"), delPolicy("p", p), begin(2, shareID(1)), commit(2),
		setSeal(true, 0), anchor("nexus-1", 11), putSettings(1, &fsmpb.Settings{WindowEntries: 1})} {
		f.Add(encode(f, c))
	}
	raised := fsm.New(fsm.Options{})
	if err := raised.Restore(bytes.NewReader(snapshot(f, m.View()))); err != nil {
		f.Fatal(err)
	}
	want(f, do(f, raised, raise(3)), fsmpb.Code_OK)
	want(f, do(f, raised, drill(7, "")), fsmpb.Code_OK)
	for _, c := range []*fsmpb.Command{replace(1, "sealed keyring", "x", 2), reseal(resealed("a", a, 1, "x"), resealed("a", a, 2, "y")), resealPolicy("p", p, "x"),
		abandon(2), commitFor(2, 9), drill(8, "why"), drill(7, ""), putSettings(raised.View().SettingsRevision(), &fsmpb.Settings{Archive: &fsmpb.ArchiveCare{DrillSeconds: new(uint64), Daily: 7}})} {
		f.Add(encode(f, c))
	}
	want(f, do(f, raised, raise(3)), fsmpb.Code_OK)
	from := archived(f).View()
	staged := chunks(1, from, 1200)
	want(f, do(f, raised, beginRestore(1, from)), fsmpb.Code_OK)
	for _, c := range append(staged[:len(staged):len(staged)], beginRestore(2, from), commitRestore(1, from, raised), abandonRestore(1), abandonRestore(2)) {
		f.Add(encode(f, c))
	}
	for _, c := range staged[:len(staged)-1] { // the last one is left to find
		want(f, do(f, raised, c), fsmpb.Code_OK)
	}
	base := snapshot(f, raised.View())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, twin := fsm.New(fsm.Options{}), fsm.New(fsm.Options{})
		for _, x := range []*fsm.Machine{m, twin} {
			if err := x.Restore(bytes.NewReader(base)); err != nil {
				t.Fatal(err)
			}
		}
		_, before := m.View().Hashes()
		index := m.View().Index() + 1
		raw, err := m.Apply(index, 1, [][]byte{b, b})
		raw2, err2 := twin.Apply(index, 1, [][]byte{bytes.Clone(b), b})
		if (err == nil) != (err2 == nil) {
			t.Fatal(err, err2)
		}
		if err != nil {
			return
		}
		equal(t, m.View(), twin.View())
		changed := false
		for i := range raw {
			if !bytes.Equal(raw[i], raw2[i]) {
				t.Fatal("results differ")
			}
			r, err := fsm.DecodeResult(raw[i])
			if err != nil || r.Code == fsmpb.Code_CODE_UNSPECIFIED || (r.Code == fsmpb.Code_OK) != (r.Current == nil) {
				t.Fatal(r, err)
			}
			changed = changed || r.Code == fsmpb.Code_OK
		}
		if _, after := m.View().Hashes(); !changed && after != before {
			t.Fatal("a rejection changed the state")
		}
		// Whatever was accepted must be restorable.
		if err := twin.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
			t.Fatal(err)
		}
		equal(t, m.View(), twin.View())
	})
}

// FuzzRestore gives any bytes to Restore, and the same records with a trailer
// whose stream hash fits, so that the checks behind it are reached: no panic, no
// half-way change, and what is accepted can be written and restored again.
func FuzzRestore(f *testing.F) {
	f.Add(snapshot(f, fsm.New(fsm.Options{}).View()))
	f.Add(snapshot(f, founded(f, nil).View()))
	f.Add(snapshot(f, full(f).View()))
	f.Add(snapshot(f, staging(f).View()))
	f.Fuzz(func(t *testing.T, b []byte) {
		tryRestore(t, b)
		if fitting, ok := refit(b); ok {
			tryRestore(t, fitting)
		}
	})
}

func tryRestore(t *testing.T, b []byte) {
	m := founded(t, nil)
	before := m.View()
	if err := m.Restore(bytes.NewReader(b)); err != nil {
		if m.View() != before {
			t.Fatal("an error changed the machine")
		}
		return
	}
	again := fsm.New(fsm.Options{})
	if err := again.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	equal(t, m.View(), again.View())
}

// refit gives the trailer at the end of b, if there is one, a stream hash that fits.
func refit(b []byte) (out []byte, ok bool) {
	if len(b) < magicLen {
		return nil, false
	}
	for rest := b[magicLen:]; len(rest) > 0; {
		raw, n := protowire.ConsumeBytes(rest)
		if n < 0 {
			return nil, false
		}
		var rec fsmpb.SnapshotRecord
		if n == len(rest) && proto.Unmarshal(raw, &rec) == nil && rec.GetTrailer() != nil {
			head := b[:len(b)-n]
			h := sha256.Sum256(head)
			rec.GetTrailer().StreamHash = h[:]
			raw, _ = proto.Marshal(&rec)
			return protowire.AppendBytes(bytes.Clone(head), raw), true
		}
		rest = rest[n:]
	}
	return nil, false
}

// FuzzRestoreRecord puts any record in the place of one of a good snapshot.
func FuzzRestoreRecord(f *testing.F) {
	good := snapshot(f, staging(f).View())
	recs := records(f, good)
	for i, r := range recs {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, raw)
		f.Add(i+1, raw)
	}
	f.Fuzz(func(t *testing.T, at int, raw []byte) {
		out := bytes.Clone(good[:magicLen])
		for i, r := range recs {
			b := raw
			if i != at {
				b, _ = proto.Marshal(r)
			}
			out = protowire.AppendBytes(out, b)
		}
		if fitting, ok := refit(out); ok {
			tryRestore(t, fitting)
		}
	})
}
