package audit

import (
	"errors"
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
