package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultFileBytes is the size at which a file is closed and the next begun.
const DefaultFileBytes = 64 << 20

// maxPending bounds what may wait for a disk that does not take it.
const maxPending = 4 << 20

// AnchorEvery is the number of records after which an anchor is due.
const AnchorEvery = 1024

// Config says where and how a Log is kept.
type Config struct {
	Dir       string // created with mode 0700
	Peer      string // the peer that writes it: in each record
	FileBytes int64  // rotation; 0 means DefaultFileBytes
	Now       func() time.Time
}

// Log is an open audit log. Any number of goroutines may use it.
type Log struct {
	cfg Config
	due chan struct{} // holds a token when AnchorEvery records came since the last anchor

	mu       sync.Mutex // guards what follows
	at       Anchor     // after the last record chained
	begun    bool       // by Open: there was no record
	chunks   []chunk    // chained, not yet written; the last is open for more
	pending  int        // bytes in chunks
	size     int64      // of the current file once chunks are written
	anchored uint64     // count at the last anchor
	failed   error      // an fsync failed, or the log is closed: for good
	stalled  error      // the last write failed; nil again once one succeeds

	lost     chan struct{} // closed when an fsync has failed
	failures atomic.Uint64 // of Append

	writing, syncing coalescer
	file             *os.File // owned by the running write; under writing's run lock
	written          int64    // good bytes in file; owned like file
	half             bool     // more than that may be there; owned like file
}

// chunk is a run of records that go to one file.
type chunk struct {
	file  string // when set: close the current file and create this one first
	bytes []byte
}

// ErrDamaged says that existing files do not form a chain that can be continued.
var ErrDamaged = errors.New("the audit log is damaged: run 'spikectl audit verify', then move the directory away to begin a new chain")

// ErrNotDurable says that an fsync has failed: the log takes nothing any more
// until it is opened anew.
var ErrNotDurable = errors.New("the audit log could not be made durable, restart the peer")

// Open continues the log in cfg.Dir, or begins one. A last line that a crash
// left unfinished is cut off, and a last file without a whole line is removed:
// they were never acknowledged. So are zeros, and what follows them, which is
// kept beside the file: see scanLines.
func Open(cfg Config) (*Log, error) {
	if cfg.FileBytes <= 0 {
		cfg.FileBytes = DefaultFileBytes
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit directory: %w", err)
	}
	l := &Log{cfg: cfg, due: make(chan struct{}, 1), lost: make(chan struct{})}
	if err := l.resume(); err != nil {
		return nil, err
	}
	if err := l.flush(true); err != nil {
		return nil, err
	}
	return l, nil
}

// resume goes on where the newest file with a record ends. A crash or a full
// disk in the midst of a rotation leaves a file without one; what came before it
// stays closed all the same, because closed files may have copies elsewhere.
func (l *Log) resume() error {
	files, err := list(l.cfg.Dir)
	if err != nil {
		return err
	}
	for closed := false; len(files) > 0; files, closed = files[:len(files)-1], true {
		path := files[len(files)-1]
		scan, err := scanFile(path)
		if err != nil {
			return err
		}
		if scan.records > 0 || len(scan.findings) > 0 {
			if err := l.reopen(path, scan); err != nil {
				return err
			}
			if closed {
				l.rotate("")
			}
			return nil
		}
		if err := errors.Join(os.Remove(path), syncDir(l.cfg.Dir)); err != nil {
			return err
		}
	}
	l.begun = true
	l.rotate("")
	return nil
}

// Begun tells that Open found no records and began the log.
func (l *Log) Begun() bool { return l.begun }

// reopen opens a file for appending if its chain can be continued.
func (l *Log) reopen(path string, scan *scan) error {
	if len(scan.findings) > 0 {
		return fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	if scan.peer != l.cfg.Peer {
		return fmt.Errorf("%s belongs to peer %q, not to %q: %w", path, scan.peer, l.cfg.Peer, ErrDamaged)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if scan.hole {
		err = setAside(file, scan.goodBytes)
	}
	if err == nil {
		err = errors.Join(file.Truncate(scan.goodBytes), rewrite(file, scan.goodBytes), seekEnd(file))
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.written, l.size, l.at = file, scan.goodBytes, scan.goodBytes, scan.last
	return nil
}

// setAside copies what is cut off behind a hole to a file of its own: if it was
// not a power loss that made the hole, which Reconcile finds out, these are
// records that somebody will want to see.
func setAside(file *os.File, from int64) (err error) {
	aside, err := os.OpenFile(fmt.Sprintf("%s.torn-at-%d", file.Name(), from), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(aside, io.NewSectionReader(file, from, 1<<62))
	return errors.Join(err, aside.Sync(), aside.Close(), syncDir(filepath.Dir(file.Name())))
}

// rewrite writes over a file what is in it, so that the next fsync holds for all
// of it: after an fsync that failed, in a process before this one, the kernel
// shows pages that it has not written and will not write.
func rewrite(file *os.File, size int64) error {
	page := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(page)) {
		page = page[:min(int64(len(page)), size-at)]
		if _, err := file.ReadAt(page, at); err != nil {
			return err
		}
		if _, err := file.WriteAt(page, at); err != nil {
			return err
		}
	}
	return nil
}

// Append chains r and writes it; with durable it is fsynced too. Concurrent
// calls share writes and fsyncs.
func (l *Log) Append(r Record, durable bool) error {
	err := l.append(r, durable)
	if err != nil {
		l.failures.Add(1)
	}
	return err
}

// Failures is how often Append failed.
func (l *Log) Failures() uint64 { return l.failures.Load() }

func (l *Log) append(r Record, durable bool) error {
	l.mu.Lock()
	if err := l.failed; err != nil {
		l.mu.Unlock()
		return err
	}
	if l.pending > maxPending {
		l.mu.Unlock()
		return errors.New("the audit log cannot be written: too many records wait for the disk")
	}
	if l.size >= l.cfg.FileBytes {
		l.rotate("")
	}
	l.chain(r)
	if l.at.Count-l.anchored >= AnchorEvery {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
	l.mu.Unlock()
	return l.flush(durable)
}

// chain gives r its place and adds it to the open chunk. Under mu.
func (l *Log) chain(r Record) {
	r.Seq, r.Time, r.Peer = l.at.Count+1, l.cfg.Now().UTC(), l.cfg.Peer
	r.Prev = hex.EncodeToString(l.at.Head[:])
	line, err := json.Marshal(r)
	if err != nil { // a Record has only marshallable fields
		panic(err)
	}
	l.at = Anchor{r.Seq, sha256.Sum256(line)}
	if len(l.chunks) == 0 {
		l.chunks = append(l.chunks, chunk{})
	}
	open := &l.chunks[len(l.chunks)-1]
	open.bytes = append(append(open.bytes, line...), '\n')
	l.pending += len(line) + 1
	l.size += int64(len(line)) + 1
}

// rotate begins a new file, whose first record says so. Under mu.
func (l *Log) rotate(breakDetail string) {
	l.chunks = append(l.chunks, chunk{file: filepath.Join(l.cfg.Dir, fileName(l.at.Count+1))})
	l.size = 0
	if breakDetail != "" {
		l.chain(Record{Op: OpBreak, Format: Format, Detail: breakDetail})
		return
	}
	l.chain(Record{Op: OpFile, Format: Format})
}

func (l *Log) flush(durable bool) error {
	err := l.writing.do(l.write)
	if err == nil && durable {
		err = l.syncing.do(l.sync)
	}
	return err
}

// write hands everything chained so far to the operating system.
func (l *Log) write() error {
	l.mu.Lock()
	chunks := l.chunks
	l.chunks, l.pending = nil, 0
	failed := l.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	for i := range chunks {
		if err := l.writeChunk(&chunks[i]); err != nil {
			l.mu.Lock() // keep what is left for the next try, in order
			l.chunks = append(chunks[i:], l.chunks...)
			for _, c := range chunks[i:] {
				l.pending += len(c.bytes)
			}
			l.stalled = fmt.Errorf("the audit log cannot be written: %w", err)
			err = l.stalled
			l.mu.Unlock()
			return err
		}
	}
	l.mu.Lock()
	l.stalled = nil
	l.mu.Unlock()
	return nil
}

func (l *Log) writeChunk(c *chunk) error {
	// Of a write that failed a part may be there: what came next would be chained
	// to half a line.
	if l.half {
		if err := errors.Join(l.file.Truncate(l.written), seekEnd(l.file)); err != nil {
			return err
		}
		l.half = false
	}
	if c.file != "" {
		if l.file != nil {
			if err := l.file.Sync(); err != nil {
				return l.fail(err)
			}
		}
		next, err := os.OpenFile(c.file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := syncDir(l.cfg.Dir); err != nil {
			return errors.Join(err, next.Close(), os.Remove(c.file))
		}
		if l.file != nil {
			if err := l.file.Close(); err != nil {
				return errors.Join(err, next.Close(), os.Remove(c.file))
			}
		}
		l.file, l.written, c.file = next, 0, ""
	}
	if _, err := l.file.Write(c.bytes); err != nil {
		l.half = true
		return err
	}
	l.written += int64(len(c.bytes))
	return nil
}

// sync fsyncs what write has written. It holds the write's run lock only to
// learn the file, so that records of reads do not wait for the disk.
func (l *Log) sync() error {
	l.writing.run.Lock()
	file := l.file
	l.writing.run.Unlock()
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) { // closed: rotated, and synced then
		return l.fail(err)
	}
	// The kernel reports a lost page to one fsync only: if that was the one of a
	// rotation, this one has proved nothing.
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: %w", ErrNotDurable, err)
		close(l.lost)
	}
	return l.failed
}

// Anchor fsyncs everything appended before the call and returns that point.
func (l *Log) Anchor() (Anchor, error) {
	l.mu.Lock()
	at := l.at
	l.mu.Unlock()
	if err := l.flush(true); err != nil {
		return Anchor{}, err
	}
	l.mu.Lock()
	l.anchored = max(l.anchored, at.Count)
	l.mu.Unlock()
	return at, nil
}

// Due delivers when AnchorEvery records came since the last anchor.
func (l *Log) Due() <-chan struct{} { return l.due }

// Count is the number of records so far.
func (l *Log) Count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at.Count
}

// Err is why the log takes no records now, or nil: a failure for good, or one of
// the last write, which is tried again with each record.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	return l.stalled
}

// Lost is closed when the log takes no records any more for good, with
// ErrNotDurable, and was not closed.
func (l *Log) Lost() <-chan struct{} { return l.lost }

// Reconcile compares the log with the anchor that the cluster holds for it.
// When the log does not contain that point it was cut, exchanged or lost: a new
// file begins with an OpBreak record that says so, its count continues after
// the anchor, and ok is false. Verify reports the break for ever.
func (l *Log) Reconcile(anchor Anchor) (ok bool, err error) {
	if anchor.Count == 0 {
		return true, nil
	}
	found, err := contains(l.cfg.Dir, anchor)
	if err != nil || found {
		return found, err
	}
	l.mu.Lock()
	had := l.at
	l.at.Count = max(l.at.Count, anchor.Count)
	detail := fmt.Sprintf("the cluster's anchor %s is not in this log, which ended at %s", anchor, had)
	if l.begun {
		detail = fmt.Sprintf("begun anew after the cluster's anchor %s: the log of before was not here", anchor)
	}
	l.rotate(detail)
	l.mu.Unlock()
	return false, l.flush(true)
}

// Close makes everything durable and refuses what comes later.
func (l *Log) Close() error {
	err := l.flush(true)
	l.mu.Lock()
	if l.failed == nil {
		l.failed = errors.New("the audit log is closed")
	}
	l.mu.Unlock()
	l.writing.run.Lock()
	defer l.writing.run.Unlock()
	return errors.Join(err, l.file.Close())
}

// coalescer lets concurrent callers share runs of one function.
type coalescer struct {
	run  sync.Mutex // held by the run in progress
	mu   sync.Mutex // guards next
	next *round
}

type round struct {
	done chan struct{}
	err  error
}

// do returns after a run of f that began after do was called.
func (c *coalescer) do(f func() error) error {
	c.mu.Lock()
	if r := c.next; r != nil {
		c.mu.Unlock()
		<-r.done
		return r.err
	}
	r := &round{done: make(chan struct{})}
	c.next = r
	c.mu.Unlock()

	c.run.Lock() // meanwhile others join r
	defer c.run.Unlock()
	c.mu.Lock()
	c.next = nil
	c.mu.Unlock()
	r.err = f()
	close(r.done)
	return r.err
}
