package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Closed lists the paths of the closed files in dir, oldest first: no Log writes
// to them any more. Those are the ones before the last that has anything in it.
func Closed(dir string) ([]string, error) {
	files, err := list(dir)
	if err != nil {
		return nil, err
	}
	for ; len(files) > 0; files = files[:len(files)-1] {
		// The one before an empty file is closed only once a record is in that: until
		// then it may be taken back.
		info, err := os.Stat(files[len(files)-1])
		if err != nil {
			return nil, err
		}
		if info.Size() > 0 {
			return files[:len(files)-1], nil
		}
	}
	return nil, nil
}

// Span tells which records a closed file has, by its name and its last line.
func Span(path string) (first, last uint64, err error) {
	unknown := func(why any) (uint64, uint64, error) {
		return 0, 0, fmt.Errorf("%s: it cannot be told which records are in this file: %v; 'spikectl audit verify' says more", filepath.Base(path), why)
	}
	number := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), filePrefix), fileSuffix)
	if first, err = strconv.ParseUint(number, 10, 64); err != nil {
		return unknown("its name was changed")
	}
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	tail := make([]byte, min(end, maxLine+1))
	if _, err := file.ReadAt(tail, end-int64(len(tail))); err != nil {
		return 0, 0, err
	}
	whole := bytes.HasSuffix(tail, []byte("\n"))
	tail = bytes.TrimSuffix(tail, []byte("\n"))
	var r Record
	if err := json.Unmarshal(tail[bytes.LastIndexByte(tail, '\n')+1:], &r); err != nil || !whole {
		return unknown("its last line is no record")
	}
	if r.Seq < first {
		return unknown("its last record does not fit its name")
	}
	return first, r.Seq, nil
}

var (
	// ErrAltered: what was to be read is not what was written.
	ErrAltered = errors.New("it was altered, or exchanged")
	// ErrMissing: it is not there.
	ErrMissing = errors.New("it is not there")
)

// Part is a copy of a closed file of a peer's log.
type Part struct {
	Name        string // of the copy, for findings
	Incarnation uint64 // copies of one incarnation are one chain
	First, Last uint64 // numbers of its records, as its place says
	// Read has read read all of it. Errors: those of read; ErrAltered and ErrMissing become findings, others end the verification.
	Read func(read func(io.Reader) error) error
}

// Archived is what VerifyArchived found out about the copies of one peer's log.
type Archived struct {
	Report Report
	joints map[Anchor]string // points at which files end, and the names of their copies
	newest map[Anchor]string // those of the newest incarnation
}

// VerifyArchived checks the copies of a peer's log: each file in itself, and without a gap from the log's beginning on, or from where a copy of
// an earlier incarnation ends. The anchor, if not nil, is that of an incarnation. That the newest copies are there shows by it only if the anchored
// record is in them, and else by the log itself (VerifyLocal). The error is about reading.
func VerifyArchived(peer string, parts []Part, incarnation uint64, anchor *Anchor) (*Archived, error) {
	a := &Archived{joints: map[Anchor]string{}}
	parts = slices.SortedFunc(slices.Values(parts), func(x, y Part) int {
		return cmp.Or(cmp.Compare(x.Incarnation, y.Incarnation), cmp.Compare(x.First, y.First), cmp.Compare(x.Last, y.Last))
	})
	var c *chain
	for i, p := range parts {
		if i == 0 || p.Incarnation != parts[i-1].Incarnation {
			next := &chain{joints: a.joints}
			if c != nil {
				next.report = c.report
			}
			c, a.newest = next, map[Anchor]string{}
		}
		var of *Anchor
		if p.Incarnation == incarnation {
			of = anchor
		}
		if err := a.part(c, peer, p, of); err != nil {
			return nil, err
		}
	}
	if c != nil {
		a.Report = c.report
	}
	a.Report.Peer = peer
	return a, nil
}

func (a *Archived) part(c *chain, peer string, p Part, anchor *Anchor) error {
	var s *scan
	other := false // than the anchored record
	err := p.Read(func(r io.Reader) (err error) {
		s, err = scanLines(p.Name, r, func(at Anchor) {
			if anchor != nil && at.Count == anchor.Count {
				other = at != *anchor
				c.report.Anchored = !other
			}
		})
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what scanLines left after a line that is no record
		}
		return err
	})
	bad := func(kind, detail string) {
		c.report.Findings = append(c.report.Findings, Finding{Kind: kind, File: p.Name, Detail: detail})
	}
	switch {
	case errors.Is(err, ErrMissing):
		return nil // as if it had not been listed: the next one does not go on
	case errors.Is(err, ErrAltered):
		bad(Altered, fmt.Sprintf("records %d to %d cannot be read: %v", p.First, p.Last, err))
		c.unread(p.Last)
		return nil
	case err != nil:
		return err
	}
	if s.records > 0 && len(s.findings) == 0 && (s.first.Seq != p.First || s.last.Count != p.Last) || s.torn {
		bad(Altered, fmt.Sprintf("it has records %d to %d, whole, and not those of its name: it was altered before it was archived", s.first.Seq, s.last.Count))
	}
	if s.records > 0 && s.peer != peer {
		bad(Foreign, fmt.Sprintf("its records are of the peer %q", s.peer))
	}
	if other {
		bad(Altered, fmt.Sprintf("record %d is not the one that the cluster saw: the log was exchanged or rewritten", anchor.Count))
	}
	c.add(p.Name, s)
	a.joints[s.last], a.newest[s.last] = p.Name, p.Name
	return nil
}

// VerifyLocal is Verify of the log itself: it may also begin where a copy ends, because older files were moved away, and must have all that
// was copied from where it begins. current says that the newest copies are of the incarnation that the cluster is of now; a peer may begin its log anew in a
// new one, and then it need not have what was copied before.
func (a *Archived) VerifyLocal(dir string, anchor *Anchor, current bool) (Report, error) {
	v, err := verifyDir(dir, anchor, a.joints)
	if err != nil || !current {
		return v.report, err
	}
	var lost Anchor // the first copied point that is not in the log
	reaches := uint64(0)
	for at := range a.newest {
		reaches = max(reaches, at.Count)
		if at.Count >= v.first && !v.ends[at] && (lost.Count == 0 || at.Count < lost.Count) {
			lost = at
		}
	}
	bad := func(kind, detail string) {
		v.report.Findings = append(v.report.Findings, Finding{Kind: kind, Detail: detail})
	}
	switch {
	case lost.Count > v.report.Count:
		bad(Missing, fmt.Sprintf("the log ends at record %d, and the archive has its records to %d: its tail was cut", v.report.Count, reaches))
	case lost.Count > 0:
		bad(Altered, fmt.Sprintf("the records to %d are not those that the archive has in %s: the log was cut, exchanged or rewritten", lost.Count, a.newest[lost]))
	}
	return v.report, nil
}
