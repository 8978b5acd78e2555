package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds one record when reading.
const maxLine = 64 << 10

// What can be wrong with a log.
const (
	Missing = "missing" // records are not there: a file, a line, the log's head or tail
	Altered = "altered" // a record, or a whole file, is not what was written
	Foreign = "foreign" // it is of another peer, or of another place than where it lies
	Broken  = "broken"  // the log itself says that it could not be continued
)

// Finding is one thing wrong with a log.
type Finding struct {
	Kind   string `json:"kind"`
	File   string `json:"file"` // or the name of an object
	Line   int    `json:"line,omitempty"`
	Detail string `json:"detail"`
}

// Report is what Verify saw.
type Report struct {
	Peer     string    `json:"peer"`
	Files    int       `json:"files"`
	Records  uint64    `json:"records"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Count    uint64    `json:"count"` // of the last record
	Head     string    `json:"head"`
	Anchored bool      `json:"anchored"` // an anchor was given and is in the log
	Findings []Finding `json:"findings"`
}

// Verify checks the chain of all files in dir and, when anchor is not nil, that
// the log contains the anchored point. The error is about reading; what is
// wrong with the log is in the findings.
func Verify(dir string, anchor *Anchor) (Report, error) {
	v, err := verifyDir(dir, anchor, nil)
	return v.report, err
}

type verified struct {
	report Report
	first  uint64          // number of the first record
	ends   map[Anchor]bool // of files
}

// verifyDir is Verify of a log that may go on from one of the points in joints.
func verifyDir(dir string, anchor *Anchor, joints map[Anchor]string) (v verified, err error) {
	files, err := list(dir)
	if err != nil {
		return v, err
	}
	if len(files) == 0 {
		return v, fmt.Errorf("%s holds no audit files", dir)
	}
	c := chain{joints: joints}
	v.ends = map[Anchor]bool{}
	for _, path := range files {
		name := filepath.Base(path)
		s, err := scanFile(path)
		if err != nil {
			return v, err
		}
		if s.records > 0 && fileName(s.first.Seq) != name {
			c.bad(Foreign, name, "the file's name does not fit its first record: it was renamed or exchanged")
		}
		if s.torn && path != files[len(files)-1] {
			c.bad(Altered, name, "the last record is incomplete")
		}
		c.add(name, s)
		if v.first == 0 {
			v.first = s.first.Seq
		}
		v.ends[s.last] = true
	}
	v.report = c.report
	report := &v.report
	if anchor != nil && anchor.Count > 0 {
		report.Anchored, err = contains(dir, *anchor)
		if err != nil {
			return v, err
		}
		if !report.Anchored {
			finding := Finding{Kind: Missing, File: filepath.Base(files[len(files)-1]), Detail: fmt.Sprintf("the log ends at record %d, but the cluster saw %d: its tail was cut", report.Count, anchor.Count)}
			if report.Count >= anchor.Count {
				finding.Kind, finding.Detail = Altered, fmt.Sprintf("record %d is not the one that the cluster saw: the log was exchanged or rewritten", anchor.Count)
			}
			report.Findings = append(report.Findings, finding)
		}
	}
	return v, nil
}

// chain holds the files of one log against one another, in their order.
type chain struct {
	report   Report
	joints   map[Anchor]string // points that the first file may go on from, besides the beginning
	previous *scan             // the file that reaches farthest
}

func (c *chain) bad(kind, name, detail string) {
	c.report.Findings = append(c.report.Findings, Finding{kind, name, 1, detail})
}

func (c *chain) add(name string, s *scan) {
	c.report.Files++
	c.report.Findings = append(c.report.Findings, s.findings...)
	first, joined, reach := s.first, false, uint64(0)
	for at := range c.joints {
		joined = joined || at.Count+1 == first.Seq && hex.EncodeToString(at.Head[:]) == first.Prev
		if at.Count < first.Seq {
			reach = max(reach, at.Count)
		}
	}
	switch before := c.previous; {
	case s.records == 0:
		c.bad(Missing, name, "the file has no records")
		return
	case s.breakDetail != "":
		c.bad(Broken, name, "the chain was broken here: "+s.breakDetail)
	case before == nil && first.Seq == 1 && first.Prev == hex.EncodeToString(make([]byte, sha256.Size)), before == nil && joined:
	case before == nil && first.Seq == 1:
		c.bad(Altered, name, "the first record does not begin a log: it was edited")
	case before == nil && reach+1 == first.Seq:
		c.bad(Altered, name, fmt.Sprintf("the file does not continue %s: one of them was edited or exchanged", c.at(reach)))
	case before == nil:
		c.bad(Missing, name, fmt.Sprintf("records %d to %d are missing", reach+1, first.Seq-1))
	case s.peer != before.peer && !before.unread:
		c.bad(Foreign, name, fmt.Sprintf("the file is of peer %q, the one before of %q", s.peer, before.peer))
	case first.Seq > before.last.Count+1:
		c.bad(Missing, name, fmt.Sprintf("records %d to %d are missing: the file does not continue the one before it", before.last.Count+1, first.Seq-1))
	case first.Seq <= before.last.Count:
		c.bad(Altered, name, fmt.Sprintf("the file does not continue the one before it, which has records to %d: the log was begun anew, or one of them was edited or exchanged", before.last.Count))
	case first.Prev != hex.EncodeToString(before.last.Head[:]) && !before.unread:
		c.bad(Altered, name, "the file does not continue the one before it: one of them was cut, edited or exchanged")
	}
	if c.report.Records == 0 {
		c.report.From, c.report.Peer = s.from, s.peer
	}
	c.report.Records += s.records
	if c.previous == nil || s.last.Count >= c.previous.last.Count {
		c.report.To, c.report.Count, c.report.Head = s.to, s.last.Count, hex.EncodeToString(s.last.Head[:])
		c.previous = s
	}
}

// at names a joint after so many records.
func (c *chain) at(count uint64) (name string) {
	for at, n := range c.joints {
		if at.Count == count && n > name {
			name = n
		}
	}
	return name
}

// unread stands for a file that is there and cannot be read.
func (c *chain) unread(last uint64) {
	c.report.Files++
	c.previous = &scan{unread: true, last: Anchor{Count: last}}
}

// ParseAnchor reads "count:head".
func ParseAnchor(s string) (Anchor, error) {
	count, head, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(count, 10, 64)
	raw, err2 := hex.DecodeString(head)
	if err != nil || err2 != nil || len(raw) != sha256.Size {
		return Anchor{}, errors.New("an anchor is written COUNT:HEAD, a number and 64 hexadecimal digits")
	}
	return Anchor{n, [sha256.Size]byte(raw)}, nil
}

// scan is the result of reading one file.
type scan struct {
	peer        string
	first       Record
	last        Anchor
	records     uint64
	goodBytes   int64 // up to the last whole record
	torn        bool  // an unfinished line follows
	hole        bool  // more follows after it
	from, to    time.Time
	breakDetail string
	findings    []Finding
	unread      bool // it cannot be read; of the rest only last.Count is known, from its name
}

func scanFile(path string) (*scan, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return scanLines(filepath.Base(path), file, nil)
}

// scanLines reads one file and checks the chain within it. An unfinished last
// line is torn, and so is one with zeros, which no record has, with all that
// follows: a power loss leaves them where a page that was not durable is not on
// the disk, and a later one is. That excuses no more than a log that was cut off
// there, which the anchor shows. each, when not nil, is called with the point
// that the chain is at after each record.
func scanLines(name string, from io.Reader, each func(Anchor)) (*scan, error) {
	s := &scan{}
	err := eachLine(from, func(n int, line []byte, whole bool) bool {
		if !whole || bytes.IndexByte(line, 0) >= 0 {
			s.torn, s.hole = true, whole
			return false
		}
		var r Record
		bad := func(kind, detail string) {
			s.findings = append(s.findings, Finding{kind, name, n, detail})
		}
		if err := json.Unmarshal(line, &r); err != nil {
			bad(Altered, "the line is not a record")
			return false
		}
		if s.records == 0 {
			s.first, s.peer, s.from = r, r.Peer, r.Time
			if r.Op == OpBreak {
				s.breakDetail = r.Detail
			}
			if r.Op != OpFile && r.Op != OpBreak {
				bad(Missing, "the file does not begin with its opening record: its head was cut")
			}
			if r.Format > Format {
				bad(Altered, fmt.Sprintf("the file has format %d, newer than the %d this program knows", r.Format, Format))
				return false
			}
		} else {
			if r.Seq != s.last.Count+1 {
				bad(Missing, fmt.Sprintf("record %d follows record %d: records are missing or out of order", r.Seq, s.last.Count))
			}
			if r.Prev != hex.EncodeToString(s.last.Head[:]) {
				bad(Altered, fmt.Sprintf("record %d does not continue the chain: it or the record before it was edited", r.Seq))
			}
			if r.Peer != s.peer {
				bad(Foreign, fmt.Sprintf("record %d is of peer %q", r.Seq, r.Peer))
			}
		}
		s.last = Anchor{r.Seq, sha256.Sum256(line)}
		if each != nil {
			each(s.last)
		}
		s.to = r.Time
		s.records++
		s.goodBytes += int64(len(line)) + 1
		return true
	})
	return s, err
}

// contains tells whether the record that anchor names is in the log.
func contains(dir string, anchor Anchor) (bool, error) {
	files, err := list(dir)
	if err != nil {
		return false, err
	}
	for i := len(files) - 1; i >= 0; i-- {
		if filepath.Base(files[i]) > fileName(anchor.Count) {
			continue
		}
		file, err := os.Open(files[i])
		if err != nil {
			return false, err
		}
		defer file.Close()
		found := false
		err = eachLine(file, func(_ int, line []byte, whole bool) bool {
			found = whole && sha256.Sum256(line) == anchor.Head
			return !found
		})
		return found, err
	}
	return false, nil
}

func eachLine(from io.Reader, visit func(n int, line []byte, whole bool) (more bool)) error {
	reader := bufio.NewReaderSize(from, maxLine)
	for n := 1; ; n++ {
		line, err := reader.ReadSlice('\n')
		switch {
		case err == nil:
			if !visit(n, line[:len(line)-1], true) {
				return nil
			}
		case err == io.EOF:
			if len(line) > 0 {
				visit(n, line, false)
			}
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			visit(n, line, true) // too long for a record
			return nil
		default:
			return err
		}
	}
}

const filePrefix, fileSuffix = "audit-", ".jsonl"

func fileName(first uint64) string { return fmt.Sprintf("%s%020d%s", filePrefix, first, fileSuffix) }

// list returns the log's files in order.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filePrefix) && strings.HasSuffix(e.Name(), fileSuffix) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	sort.Strings(files)
	return files, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func seekEnd(f *os.File) error {
	_, err := f.Seek(0, io.SeekEnd)
	return err
}

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }
