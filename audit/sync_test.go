package audit

import (
	"errors"
	"os"
	"testing"
)

// The fsync of a rotation reports a lost page once; an fsync of the same file
// that was under way for a durable record then succeeds, and must not count.
func TestNoFsyncCountsAfterAFailedOne(t *testing.T) {
	t.Parallel()
	l, err := Open(Config{Dir: t.TempDir(), Peer: "nexus-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lost := errors.New("a page was lost")
	l.fail(lost)
	if err := l.sync(); !errors.Is(err, lost) {
		t.Fatalf("an fsync after a failed one answered %v", err)
	}
}

// A disk that takes nothing for a while, not even that half a record goes
// away again, leaves a log that goes on when it is well.
func TestWritesGoOnAfterAReadOnlySpell(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, Peer: "nexus-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Append(Record{Op: "before"}, true); err != nil {
		t.Fatal(err)
	}
	well := l.file
	if l.file, err = os.Open(well.Name()); err != nil { // takes nothing
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Append(Record{Op: "meanwhile"}, true); err == nil {
			t.Fatal("a record that could not be written was acknowledged")
		}
	}
	if l.Err() == nil {
		t.Error("the log says that it is well")
	}
	if _, err := well.WriteString(`{"seq":`); err != nil { // half a record did get there
		t.Fatal(err)
	}
	l.file.Close()
	l.file = well
	if err := l.Append(Record{Op: "after"}, true); err != nil {
		t.Fatal(err)
	}
	if report, err := Verify(dir, nil); err != nil || len(report.Findings) != 0 || report.Records != 6 || l.Err() != nil {
		t.Errorf("%+v, %v, %v", report, err, l.Err())
	}
}
