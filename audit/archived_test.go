package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/spike-ha/spike-ha/audit"
)

// copies are those of the closed files of a log.
func copies(t *testing.T, dir string, incarnation uint64) (parts []audit.Part) {
	t.Helper()
	list, err := audit.Closed(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first, last, err := audit.Span(path)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, audit.Part{Name: fmt.Sprintf("%d/%d-%d", incarnation, first, last), Incarnation: incarnation, First: first, Last: last,
			Read: func(read func(io.Reader) error) error { return read(bytes.NewReader(b)) }})
	}
	return parts
}

func archived(t *testing.T, parts []audit.Part) *audit.Archived {
	t.Helper()
	a, err := audit.VerifyArchived("nexus-1", parts, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// find insists on one finding of a kind, or none when it is empty.
func find(t *testing.T, what string, r audit.Report, kind string) {
	t.Helper()
	if kind == "" && len(r.Findings) > 0 || kind != "" && (len(r.Findings) != 1 || r.Findings[0].Kind != kind) {
		t.Errorf("%s: %+v, want %q", what, r.Findings, kind)
	}
}

func TestVerifyArchived(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 2000)
	fill(t, log, 60)
	anchor, err := log.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	early := copies(t, dir, 1)
	fill(t, log, 60)
	all := copies(t, dir, 1)
	if len(early) < 5 || len(all) < len(early)+5 {
		t.Fatal(len(early), len(all))
	}
	local := func(what string, parts []audit.Part, dir string, current bool, kind string) {
		t.Helper()
		r, err := archived(t, parts).VerifyLocal(dir, nil, current)
		if err != nil {
			t.Fatal(err)
		}
		find(t, what, r, kind)
	}
	with, err := audit.VerifyArchived("nexus-1", all, 1, &anchor)
	if err != nil || !with.Report.Anchored {
		t.Errorf("%+v, %v", with, err)
	}
	find(t, "whole", with.Report, "")
	anchor.Head[0]++
	if with, err = audit.VerifyArchived("nexus-1", all, 1, &anchor); err != nil {
		t.Fatal(err)
	}
	find(t, "another anchor", with.Report, audit.Altered)
	if with, err = audit.VerifyArchived("nexus-1", all, 2, &anchor); err != nil {
		t.Fatal(err)
	}
	find(t, "an anchor of another incarnation", with.Report, "")
	find(t, "without the first", archived(t, all[1:]).Report, audit.Missing)
	find(t, "without one", archived(t, append(all[:2:2], all[3:]...)).Report, audit.Missing)
	renamed := append([]audit.Part{}, all...)
	renamed[1].Last++
	if len(archived(t, renamed).Report.Findings) == 0 {
		t.Error("a copy whose name says more records")
	}
	for err, kind := range map[error]string{audit.ErrAltered: audit.Altered, audit.ErrMissing: audit.Missing} {
		bad := append([]audit.Part{}, all...)
		bad[2].Read = func(func(io.Reader) error) error { return err }
		find(t, err.Error(), archived(t, bad).Report, kind)
	}
	lost := errors.New("the store is away")
	bad := append([]audit.Part{}, all...)
	bad[2].Read = func(func(io.Reader) error) error { return lost }
	if _, err := audit.VerifyArchived("nexus-1", bad, 1, nil); !errors.Is(err, lost) {
		t.Errorf("the store's error: %v", err)
	}
	other, err := audit.VerifyArchived("nexus-2", all[:1], 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	find(t, "of another peer", other.Report, audit.Foreign)

	// The same log goes on in the next incarnation, all of it or what is left; or another begins there.
	fill(t, log, 60)
	next := copies(t, dir, 2)
	find(t, "all of it again", archived(t, append(all[:len(all):len(all)], next...)).Report, "")
	find(t, "going on", archived(t, append(all[:len(all):len(all)], next[len(all):]...)).Report, "")
	find(t, "going on with a gap", archived(t, append(all[:len(all):len(all)], next[len(all)+1:]...)).Report, audit.Missing)
	anew := t.TempDir()
	second := open(t, anew, 2000)
	fill(t, second, 60)
	find(t, "another", archived(t, append(all[:len(all):len(all)], copies(t, anew, 2)...)).Report, "")
	find(t, "another that goes on as if it were this one", archived(t, append(all[:1:1], copies(t, anew, 2)[1:]...)).Report, map[bool]string{true: audit.Altered, false: audit.Missing}[copies(t, anew, 2)[1].First == all[0].Last+1])

	// With the log itself.
	local("the log", all, dir, true, "")
	local("another log", all, anew, true, audit.Altered)
	local("another log of a later incarnation", all, anew, false, "")
	files := files(t, dir)
	for _, f := range files[:len(early)] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	local("old files moved away", all, dir, true, "")
	local("just those that were copied", early, dir, true, "")
	local("one more than those that were copied", early[:len(early)-1], dir, true, audit.Missing)
	log.Close()
	for _, f := range files[len(all)-1:] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	local("cut", all, dir, true, audit.Missing)
}

// A file that was closed once does not grow, whatever a crash leaves of the one after it.
func TestClosedFilesStayClosed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := open(t, dir, 0)
	fill(t, log, 5)
	count := log.Count()
	log.Close()
	path := files(t, dir)[0]
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(dir, fmt.Sprintf("audit-%020d.jsonl", count+1))
	if err := os.WriteFile(next, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := audit.Closed(dir); err != nil || len(list) != 0 {
		t.Errorf("closed before a record is in the next: %v, %v", list, err)
	}
	if err := os.WriteFile(next, []byte(`{"seq`), 0o600); err != nil { // of which the crash leaves half
		t.Fatal(err)
	}
	if list, err := audit.Closed(dir); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	log = open(t, dir, 0)
	fill(t, log, 5)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the closed file has grown, %v", err)
	}
	if first, last, err := audit.Span(path); err != nil || first != 1 || last != count {
		t.Errorf("%d to %d, %v", first, last, err)
	}
	find(t, "the log", verify(t, dir, nil), "")
}
