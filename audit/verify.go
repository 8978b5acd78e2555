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

// Finding is one thing wrong with a log.
type Finding struct {
	File   string `json:"file"`
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
	files, err := list(dir)
	if err != nil {
		return Report{}, err
	}
	if len(files) == 0 {
		return Report{}, fmt.Errorf("%s holds no audit files", dir)
	}
	report := Report{Files: len(files)}
	var previous *scan
	for _, path := range files {
		s, err := scanFile(path)
		if err != nil {
			return Report{}, err
		}
		report.Findings = append(report.Findings, s.findings...)
		bad := func(detail string) {
			report.Findings = append(report.Findings, Finding{filepath.Base(path), 1, detail})
		}
		switch {
		case s.records == 0:
			bad("the file has no records")
		case fileName(s.first.Seq) != filepath.Base(path):
			bad("the file's name does not fit its first record: it was renamed or exchanged")
		case s.breakDetail != "":
			bad("the chain was broken here: " + s.breakDetail)
		case previous == nil && s.first.Prev != hex.EncodeToString(make([]byte, sha256.Size)):
			bad(fmt.Sprintf("records 1 to %d are missing", s.first.Seq-1))
		case previous != nil && s.peer != previous.peer:
			bad(fmt.Sprintf("the file is of peer %q, the one before of %q", s.peer, previous.peer))
		case previous != nil && (s.first.Seq != previous.last.Count+1 || s.first.Prev != hex.EncodeToString(previous.last.Head[:])):
			bad("the file does not continue the one before it: one of them was cut, edited or exchanged")
		}
		if s.torn && path != files[len(files)-1] {
			bad("the last record is incomplete")
		}
		if report.Records == 0 {
			report.From, report.Peer = s.from, s.peer
		}
		report.Records += s.records
		report.To, report.Count, report.Head = s.to, s.last.Count, hex.EncodeToString(s.last.Head[:])
		previous = s
	}
	if anchor != nil && anchor.Count > 0 {
		report.Anchored, err = contains(dir, *anchor)
		if err != nil {
			return Report{}, err
		}
		if !report.Anchored {
			detail := fmt.Sprintf("the log ends at record %d, but the cluster saw %d: its tail was cut", report.Count, anchor.Count)
			if report.Count >= anchor.Count {
				detail = fmt.Sprintf("record %d is not the one that the cluster saw: the log was exchanged or rewritten", anchor.Count)
			}
			report.Findings = append(report.Findings, Finding{File: filepath.Base(files[len(files)-1]), Detail: detail})
		}
	}
	return report, nil
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
	from, to    time.Time
	breakDetail string
	findings    []Finding
}

// scanFile reads one file and checks the chain within it. An unfinished last
// line, or zeros after the last one (as a power loss can leave), is torn.
func scanFile(path string) (*scan, error) {
	s := &scan{}
	err := eachLine(path, func(n int, line []byte, whole bool) bool {
		if !whole || len(bytes.Trim(line, "\x00")) == 0 {
			s.torn = true
			return false
		}
		var r Record
		bad := func(detail string) {
			s.findings = append(s.findings, Finding{filepath.Base(path), n, detail})
		}
		if err := json.Unmarshal(line, &r); err != nil {
			bad("the line is not a record")
			return false
		}
		if s.records == 0 {
			s.first, s.peer, s.from = r, r.Peer, r.Time
			if r.Op == OpBreak {
				s.breakDetail = r.Detail
			}
			if r.Op != OpFile && r.Op != OpBreak {
				bad("the file does not begin with its opening record: its head was cut")
			}
			if r.Format > Format {
				bad(fmt.Sprintf("the file has format %d, newer than the %d this program knows", r.Format, Format))
				return false
			}
		} else {
			if r.Seq != s.last.Count+1 {
				bad(fmt.Sprintf("record %d follows record %d: records are missing or out of order", r.Seq, s.last.Count))
			}
			if r.Prev != hex.EncodeToString(s.last.Head[:]) {
				bad(fmt.Sprintf("record %d does not continue the chain: it or the record before it was edited", r.Seq))
			}
			if r.Peer != s.peer {
				bad(fmt.Sprintf("record %d is of peer %q", r.Seq, r.Peer))
			}
		}
		s.last = Anchor{r.Seq, sha256.Sum256(line)}
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
		found := false
		err := eachLine(files[i], func(_ int, line []byte, whole bool) bool {
			found = whole && sha256.Sum256(line) == anchor.Head
			return !found
		})
		return found, err
	}
	return false, nil
}

func eachLine(path string, visit func(n int, line []byte, whole bool) (more bool)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, maxLine)
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
			visit(n, []byte("the line is too long"), true) // not a record
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
