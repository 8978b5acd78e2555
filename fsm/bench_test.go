package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"runtime"
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

// BenchmarkApply puts new secrets of 256 bytes, 256 to an entry, into a state
// of 100,000.
func BenchmarkApply(b *testing.B) {
	const per = 256
	m := founded(b, nil)
	index := uint64(1)
	for n := uint64(0); n < 100_000; n += per {
		index++
		apply(b, m, index, entryOfPuts(b, index, n, per)...)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += per {
		b.StopTimer()
		index++
		entry := entryOfPuts(b, index, 1_000_000+uint64(done), per)
		b.StartTimer()
		if _, err := m.Apply(index, 1, entry); err != nil {
			b.Fatal(err)
		}
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
