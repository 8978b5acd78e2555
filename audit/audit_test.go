package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/audit"
)

func open(t *testing.T, dir string, fileBytes int64) *audit.Log {
	t.Helper()
	log, err := audit.Open(audit.Config{Dir: dir, Peer: "nexus-1", FileBytes: fileBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func fill(t *testing.T, log *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if err := log.Append(audit.Record{Op: "secret.get", Request: fmt.Sprint(i), Decision: audit.Allow}, i%7 == 0); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, dir string, anchor *audit.Anchor) audit.Report {
	t.Helper()
	report, err := audit.Verify(dir, anchor)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChainAcrossFilesAndRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 3 {
		log := open(t, dir, 2000)
		fill(t, log, 20)
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		if err := log.Append(audit.Record{}, false); err == nil {
			t.Fatal("a closed log took a record")
		}
	}
	log := open(t, dir, 2000)
	anchor, err := log.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	report := verify(t, dir, &anchor)
	if len(report.Findings) != 0 || !report.Anchored || report.Count != anchor.Count || report.Files < 5 || report.Records != report.Count {
		t.Fatalf("%+v", report)
	}
	if parsed, err := audit.ParseAnchor(anchor.String()); err != nil || parsed != anchor {
		t.Fatal(parsed, err)
	}
}

// Invariant 8: an edit, a cut tail and an exchanged file show.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string, list []string)
		want   string
	}{
		"edit": {func(t *testing.T, _ string, list []string) {
			edit(t, list[1], func(b []byte) []byte { return bytes.Replace(b, []byte(`"allow"`), []byte(`"deny"`), 1) })
		}, "edited"},
		"line removed": {func(t *testing.T, _ string, list []string) {
			edit(t, list[1], func(b []byte) []byte {
				lines := bytes.SplitAfter(b, []byte("\n"))
				return bytes.Join(append(lines[:2:2], lines[3:]...), nil)
			})
		}, "missing"},
		"tail cut": {func(t *testing.T, _ string, list []string) {
			last := list[len(list)-1]
			edit(t, last, func(b []byte) []byte {
				return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1]
			})
		}, "tail was cut"},
		"last file removed": {func(t *testing.T, _ string, list []string) {
			if err := os.Remove(list[len(list)-1]); err != nil {
				t.Fatal(err)
			}
		}, "tail was cut"},
		"first file removed": {func(t *testing.T, _ string, list []string) {
			if err := os.Remove(list[0]); err != nil {
				t.Fatal(err)
			}
		}, "are missing"},
		"middle cut": {func(t *testing.T, _ string, list []string) {
			edit(t, list[1], func(b []byte) []byte {
				return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1]
			})
		}, "does not continue"},
		"files exchanged": {func(t *testing.T, dir string, list []string) {
			tmp := filepath.Join(dir, "x")
			for _, step := range [][2]string{{list[1], tmp}, {list[2], list[1]}, {tmp, list[2]}} {
				if err := os.Rename(step[0], step[1]); err != nil {
					t.Fatal(err)
				}
			}
		}, "exchanged"},
		"whole log of another life": {func(t *testing.T, dir string, list []string) {
			for _, f := range list {
				os.Remove(f)
			}
			log := open(t, dir, 2000)
			fill(t, log, 500)
			log.Close()
		}, "exchanged or rewritten"},
		"garbage": {func(t *testing.T, _ string, list []string) {
			edit(t, list[1], func(b []byte) []byte { b[len(b)/2] ^= 0xff; return b })
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			log := open(t, dir, 2000)
			fill(t, log, 60)
			anchor, err := log.Anchor()
			if err != nil {
				t.Fatal(err)
			}
			log.Close()
			c.damage(t, dir, files(t, dir))
			report := verify(t, dir, &anchor)
			var all []string
			for _, f := range report.Findings {
				all = append(all, f.Detail)
			}
			if len(all) == 0 || !strings.Contains(strings.Join(all, "\n"), c.want) {
				t.Errorf("findings %q, want one with %q", all, c.want)
			}
		})
	}
}

func TestTornLastLineIsCutOff(t *testing.T) {
	t.Parallel()
	for name, tail := range map[string]string{"half a record": `{"seq":99,"ti`, "zeros": "\x00\x00\x00\n", "zeros without end": "\x00\x00"} {
		dir := t.TempDir()
		log := open(t, dir, 0)
		fill(t, log, 5)
		log.Close()
		edit(t, files(t, dir)[0], func(b []byte) []byte { return append(b, tail...) })
		log = open(t, dir, 0)
		fill(t, log, 5)
		log.Close()
		if report := verify(t, dir, nil); len(report.Findings) != 0 || report.Records != 11 {
			t.Errorf("%s: %+v", name, report)
		}
	}
}

// Of pages that were not durable a power loss may leave a later one alone.
func TestHoleInTheTail(t *testing.T) {
	t.Parallel()
	for _, lost := range []int{4096, 128 << 10} { // bytes
		dir := t.TempDir()
		log := open(t, dir, 0)
		fill(t, log, 5)
		anchor, err := log.Anchor() // durable
		if err != nil {
			t.Fatal(err)
		}
		for log.Count() < 2000 {
			fill(t, log, 100)
		}
		log.Close()
		var rest []byte
		edit(t, files(t, dir)[0], func(b []byte) []byte {
			clear(b[8192 : 8192+lost])
			rest = b[bytes.LastIndexByte(b[:8192], '\n')+1:]
			return b
		})
		log = open(t, dir, 0)
		kept := log.Count()
		if kept <= anchor.Count || kept >= 1000 {
			t.Errorf("of 2000 records there are %d", kept)
		}
		fill(t, log, 5)
		if ok, err := log.Reconcile(anchor); err != nil || !ok {
			t.Errorf("what was durable is said to be lost: %v", err)
		}
		log.Close()
		if report := verify(t, dir, &anchor); len(report.Findings) != 0 || report.Count != kept+5 {
			t.Errorf("%+v", report)
		}
		aside, err := filepath.Glob(filepath.Join(dir, "*.torn-at-*"))
		if err != nil || len(aside) != 1 {
			t.Fatal(aside, err)
		}
		if got, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(got, rest) {
			t.Errorf("%d bytes were set aside, of %d: %v", len(got), len(rest), err)
		}
	}
}

// A crash, or a full disk, in the midst of a rotation leaves a file without a
// whole record. It must not keep the peer from starting.
func TestRotationCutShort(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"empty": "", "half a record": `{"seq":7,"ti`, "zeros": "\x00\x00\x00\x00"} {
		for _, before := range []int{0, 5} {
			t.Run(fmt.Sprintf("%s after %d", name, before), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				next := 1
				if before > 0 {
					log := open(t, dir, 0)
					fill(t, log, before)
					next = int(log.Count()) + 1
					log.Close()
				}
				cut := filepath.Join(dir, fmt.Sprintf("audit-%020d.jsonl", next))
				if err := os.WriteFile(cut, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				log := open(t, dir, 400)
				fill(t, log, 5)
				anchor, err := log.Anchor()
				if err != nil {
					t.Fatal(err)
				}
				if report := verify(t, dir, &anchor); len(report.Findings) != 0 || !report.Anchored {
					t.Fatalf("%+v", report)
				}
			})
		}
	}
}

func TestOpenRefusesADamagedChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 0)
	fill(t, log, 5)
	log.Close()
	edit(t, files(t, dir)[0], func(b []byte) []byte { return bytes.Replace(b, []byte(`"allow"`), []byte(`"xllow"`), 1) })
	before, _ := os.ReadFile(files(t, dir)[0])
	if _, err := audit.Open(audit.Config{Dir: dir, Peer: "nexus-1"}); err == nil || !strings.Contains(err.Error(), "spikectl audit verify") {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(files(t, dir)[0]); !bytes.Equal(before, after) {
		t.Fatal("the damaged file was changed")
	}
	other := t.TempDir()
	open(t, other, 0).Close()
	if _, err := audit.Open(audit.Config{Dir: other, Peer: "nexus-2"}); err == nil {
		t.Fatal("another peer's log was continued")
	}
}

func TestReconcile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 0)
	fill(t, log, 10)
	anchor, _ := log.Anchor()
	fill(t, log, 3)
	if ok, err := log.Reconcile(anchor); !ok || err != nil {
		t.Fatal(ok, err)
	}
	log.Close()
	edit(t, files(t, dir)[0], func(b []byte) []byte { return b[:bytes.IndexByte(b, '\n')+1] })
	log = open(t, dir, 0)
	if ok, err := log.Reconcile(anchor); ok || err != nil {
		t.Fatal(ok, err)
	}
	fill(t, log, 1)
	if log.Count() <= anchor.Count {
		t.Fatalf("count %d fell behind the anchor %d", log.Count(), anchor.Count)
	}
	next, _ := log.Anchor()
	report := verify(t, dir, &next)
	if len(report.Findings) != 1 || !strings.Contains(report.Findings[0].Detail, "broken") || !report.Anchored {
		t.Fatalf("%+v", report)
	}
}

// A directory that was lost altogether shows as well, and as what it is.
func TestReconcileNewLog(t *testing.T) {
	t.Parallel()
	log := open(t, t.TempDir(), 0)
	fill(t, log, 10)
	anchor, _ := log.Anchor()
	dir := t.TempDir()
	log = open(t, dir, 0)
	fill(t, log, 2)
	if ok, err := log.Reconcile(anchor); ok || err != nil || !log.Begun() {
		t.Fatal(ok, err, log.Begun())
	}
	report := verify(t, dir, nil)
	if len(report.Findings) != 1 || !strings.Contains(report.Findings[0].Detail, "begun anew after the cluster's anchor "+anchor.String()) || report.Count <= anchor.Count {
		t.Fatalf("%+v", report)
	}
	log.Close()
	if open(t, dir, 0).Begun() {
		t.Error("a log that goes on was begun")
	}
}

// An answer must not leave when its record cannot be written, and the log must
// heal when the disk does.
func TestWriteFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 500)
	fill(t, log, 10)
	// Rotation needs a new file: a directory without write permission does not
	// stop root, so the name itself is taken instead.
	var taken []string
	for seq := log.Count() + 1; seq < log.Count()+20; seq++ {
		name := filepath.Join(dir, fmt.Sprintf("audit-%020d.jsonl", seq))
		if os.Mkdir(name, 0o700) == nil {
			taken = append(taken, name)
		}
	}
	var failed int
	for range 10 {
		if log.Append(audit.Record{Op: "x"}, false) != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("no append failed although no file could be created")
	}
	if log.Err() == nil {
		t.Fatal("the log does not say that it cannot be written")
	}
	for _, name := range taken {
		os.Remove(name)
	}
	if err := log.Append(audit.Record{Op: "x"}, true); err != nil {
		t.Fatal("the log did not heal:", err)
	}
	if err := log.Err(); err != nil {
		t.Fatal("healed, the log still says:", err)
	}
	anchor, err := log.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	if report := verify(t, dir, &anchor); len(report.Findings) != 0 {
		t.Fatalf("%+v", report)
	}
}

func TestConcurrentAppends(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 20_000)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { fill(t, log, 100) })
	}
	wg.Wait()
	select {
	case <-log.Due():
	case <-time.After(10 * time.Second):
		t.Fatal("no anchor came due")
	}
	anchor, err := log.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	if report := verify(t, dir, &anchor); len(report.Findings) != 0 || report.Records < 1600 {
		t.Fatalf("%+v", report)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{\"seq\":1}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "audit-00000000000000000001.jsonl"), b, 0o600)
		if report, err := audit.Verify(dir, nil); err == nil && len(report.Findings) == 0 && report.Records == 0 {
			t.Fatal("a log without records was found good")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, durable := range []bool{false, true} {
		b.Run(fmt.Sprintf("durable=%v", durable), func(b *testing.B) {
			log, err := audit.Open(audit.Config{Dir: b.TempDir(), Peer: "nexus-1"})
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := log.Append(audit.Record{Op: "secret.get", Caller: "spiffe://example.org/workload/web", Path: "hmac:0123456789abcdef", Decision: audit.Allow}, durable); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
