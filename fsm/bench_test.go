package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// entryOfPuts builds one entry of first puts of 256-byte values, the way a
// proposer would send them: with write ids and a basis.
func entryOfPuts(t testing.TB, index, first uint64, n int) [][]byte {
	policies, generation := uint64(0), uint64(0)
	entry := make([][]byte, n)
	for i := range entry {
		tok := numbered(first + uint64(i))
		id := sha256.Sum256(append([]byte("id"), tok[:]...))
		entry[i] = encode(t, &fsmpb.Command{
			TimeUnixNano: 1_700_000_000_000_000_000 + int64(i),
			WriteId:      &fsmpb.WriteID{Id: id[:16], Index: index - 1, Request: id[:]},
			Basis:        &fsmpb.Basis{PolicyRevision: &policies, SealGeneration: &generation},
			Op: &fsmpb.Command_PutSecret{PutSecret: &fsmpb.PutSecret{
				Token: tok[:], PathKeyId: id[:8], Name: bytes.Repeat([]byte{1}, 80),
				Version: 1, Value: bytes.Repeat([]byte{2}, 256),
			}},
		})
	}
	return entry
}

func numbered(n uint64) fsm.Token {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, n))
}

// BenchmarkApply puts secrets of 256 bytes, 256 to an entry: new ones into an
// empty state and into one of 100,000, and further versions of those.
func BenchmarkApply(b *testing.B) {
	const per, many = 256, 1 << 17
	for _, c := range []struct {
		name   string
		before uint64
		first  uint64
	}{{"new/empty", 0, 0}, {"new/131072", many, many}} {
		b.Run(c.name, func(b *testing.B) {
			m := founded(b, nil)
			index := uint64(1)
			for n := uint64(0); n < c.before; n += per {
				index++
				apply(b, m, index, entryOfPuts(b, index, n, per)...)
			}
			var entries [][][]byte
			for n := 0; n < b.N; n += per {
				entries = append(entries, entryOfPuts(b, index+1+uint64(n/per), c.first+uint64(n), per))
			}
			measureApply(b, m, index, entries)
		})
	}
	b.Run("update/131072", func(b *testing.B) {
		m := founded(b, nil)
		index, n := uint64(1), uint64(0)
		for ; n < many; n += per {
			index++
			apply(b, m, index, entryOfPuts(b, index, n, per)...)
		}
		var entries [][][]byte
		rev, version := uint64(1), uint64(2) // revisions were given out in order, founding had 1
		for n, at := 0, uint64(0); n < b.N; n += per {
			var entry [][]byte
			for range per {
				tok := numbered(at)
				p := &fsmpb.PutSecret{Token: tok[:], Version: version, ExpectedRevision: rev + at + 1, Value: bytes.Repeat([]byte{3}, 256)}
				entry = append(entry, encode(b, &fsmpb.Command{Op: &fsmpb.Command_PutSecret{PutSecret: p}}))
				if at++; at == many {
					at, rev, version = 0, rev+many, version+1
				}
			}
			entries = append(entries, entry)
		}
		measureApply(b, m, index, entries)
	})
}

func measureApply(b *testing.B, m *fsm.Machine, index uint64, entries [][][]byte) {
	runtime.GC()
	b.ReportAllocs()
	b.ResetTimer()
	var last [][]byte
	for _, entry := range entries {
		index++
		var err error
		if last, err = m.Apply(index, 1, entry); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if r, err := fsm.DecodeResult(last[len(last)-1]); err != nil || r.Code != fsmpb.Code_OK {
		b.Fatal(r, err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
}

// BenchmarkGet looks one of 100,000 secrets up in a view.
func BenchmarkGet(b *testing.B) {
	m := founded(b, nil)
	apply(b, m, 2, entryOfPuts(b, 2, 0, 100_000)...)
	v, t := m.View(), numbered(77_777)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := v.Secret(t); !ok {
			b.Fatal("not there")
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	m := founded(b, nil)
	apply(b, m, 2, entryOfPuts(b, 2, 0, 100_000)...)
	var stream bytes.Buffer
	if err := m.View().WriteSnapshot(&stream); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(stream.Len()))
		for b.Loop() {
			if err := m.View().WriteSnapshot(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(stream.Len()))
		for b.Loop() {
			if err := fsm.New(fsm.Options{}).Restore(bytes.NewReader(stream.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestMemory holds the promise that 100,000 secrets of 256 bytes fit a process
// of 200 MiB: what they keep alive must stay under half of that, because the
// collector lets the heap double.
func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := founded(t, nil)
	const per = 250
	for i := range uint64(100_000 / per) {
		apply(t, m, 2+i, entryOfPuts(t, 2+i, i*per, per)...)
	}
	resident, _ := os.ReadFile("/proc/self/status") // Linux only, and only told
	if i := bytes.Index(resident, []byte("VmHWM:")); i >= 0 {
		line, _, _ := bytes.Cut(resident[i:], []byte("\n"))
		t.Logf("peak resident memory of the test process: %s", bytes.Fields(line)[1:])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	live := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)
	accounted, _ := m.View().Size()
	t.Logf("%d secrets, %d results for retries: %.1f MiB live, %.1f MiB accounted for, %.1f MiB from the system",
		m.View().SecretCount(), m.View().WindowLen(), live, float64(accounted)/(1<<20), float64(after.Sys)/(1<<20))
	if live > 100 {
		t.Errorf("%.1f MiB live", live)
	}
	runtime.KeepAlive(m)
}

// BenchmarkRestoreInPlace stages 100,000 secrets of 256 bytes and swaps them in.
func BenchmarkRestoreInPlace(b *testing.B) {
	from := founded(b, nil)
	for i := range 1000 {
		var entry [][]byte
		for n := range 100 {
			entry = append(entry, encode(b, put(fmt.Sprint("a", i, " ", n), 0, 1, strings.Repeat("x", 256))))
		}
		apply(b, from, from.View().Index()+1, entry...)
	}
	m := leveled(b)
	list := chunks(1, from.View(), 250<<10)
	for b.Loop() {
		want(b, do(b, m, beginRestore(1, from.View())), fsmpb.Code_OK)
		for _, c := range list {
			want(b, do(b, m, c), fsmpb.Code_OK)
		}
		want(b, do(b, m, commitRestore(1, from.View(), m)), fsmpb.Code_OK)
	}
	b.ReportMetric(float64(len(list)), "chunks/op")
}
