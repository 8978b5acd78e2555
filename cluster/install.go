package cluster

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	spoolFile    = "install.spool" // unlinked as soon as it is made
	installsLoop = 3               // in a row, without following the log in between: an alarm
	spoolReserve = 64 << 20        // bytes of disk that an install leaves for the log
)

var (
	errSuperseded = errors.New("the leader has sent a newer snapshot meanwhile")
	errShort      = errors.New("the stream of the snapshot ended early")
)

// installs receives snapshots for Raft. The library would read them from the
// network in its main loop, deaf to all else as long as the leader and the
// network take. Here the stream goes to a file first, and the loop gets the
// file: it is busy for a local copy and the state machine's Restore. Meanwhile
// the responder answers the leader's heartbeats.
//
// At most two are under way: one in Raft's hands, and the newest other one.
// A leader sends one at a time to a peer, so another from it means that it gave up
// the one before, typically because the restore takes longer than its patience.
// Sending the same again then joins what is under way here, or is answered yes
// at once when the peer has it by now: else a peer that restores slowly would
// begin again and again. It also never goes back to a snapshot that it is past.
//
// Safe for concurrent use.
type installs struct {
	dir   string
	limit int64 // Config.MaxSnapshotBytes
	peek  func() (peek, bool)
	out   chan<- raft.RPC // to the main loop
	done  <-chan struct{} // the transport has closed
	begin func() bool     // counts a goroutine, see Node.begin
	end   func()
	log   *slog.Logger

	alarms    *alarms
	installed func(index, term uint64) // Raft has taken a snapshot
	counters  *counters

	mu   sync.Mutex // guards the rest
	raft *install   // in Raft's hands, or offered to it
	busy bool       // the main loop has taken it
	next *install   // being received, or waiting for Raft
	row  int        // taken since this peer last followed the log
}

// installKey tells whether two requests are for the same.
type installKey struct {
	leader                string
	term, index, lastTerm uint64
	size                  int64
}

type install struct {
	key     installKey
	begun   time.Time
	file    *os.File
	spooled bool          // guarded by installs.mu
	gone    chan struct{} // closed when superseded
	done    chan struct{} // closed when resp is there
	resp    raft.RPCResponse
}

// take answers an InstallSnapshot request, some time later.
func (s *installs) take(rpc raft.RPC, req *raft.InstallSnapshotRequest) {
	if !s.begin() {
		rpc.Respond(nil, ErrStopped)
		return
	}
	go func() {
		defer s.end()
		resp, joined := s.run(rpc.Reader, req)
		// The connection goes on after the answer: what is left of the stream must not
		// be taken for requests.
		_, _ = io.Copy(io.Discard, rpc.Reader)
		if resp.Response == nil {
			resp.Response = &raft.InstallSnapshotResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
		}
		if !errors.Is(resp.Error, errSuperseded) && !errors.Is(resp.Error, ErrStopped) && !joined {
			if resp.Error != nil {
				s.counters.installFailures.Add(1)
			}
			s.again(resp.Error)
		}
		if resp.Error != nil {
			s.log.Warn("a snapshot was not installed", "from", string(req.ID), "index", req.LastLogIndex, "bytes", req.Size, "reason", resp.Error)
		}
		rpc.Respond(resp.Response, resp.Error)
	}()
}

// run also tells whether the answer is that of another request for the same.
func (s *installs) run(stream io.Reader, req *raft.InstallSnapshotRequest) (resp raft.RPCResponse, joined bool) {
	key := installKey{string(req.ID), req.Term, req.LastLogIndex, req.LastLogTerm, req.Size}
	if resp, ok := s.known(key); ok {
		return resp, true
	}
	mine, same, err := s.open(key)
	switch {
	case err != nil:
		return raft.RPCResponse{Error: err}, false
	case same != nil:
		_, _ = io.Copy(io.Discard, stream)
		return s.join(same), true
	}
	defer func() { _ = mine.file.Close() }()
	n, err := io.Copy(mine.file, io.LimitReader(stream, req.Size))
	if err == nil && n != req.Size {
		err = fmt.Errorf("%w: %d of %d bytes", errShort, n, req.Size)
	}
	if err == nil {
		_, err = mine.file.Seek(0, io.SeekStart)
	}
	if s.turn(mine, err) {
		s.hand(mine, req)
	}
	return mine.resp, false
}

// known answers yes for what this peer has already: everything up to the
// snapshot's index was given to its state machine, was committed, and so is what
// the sender's snapshot holds. That is true whoever this peer takes for the
// leader; only the term, read last, must be the sender's: of another the main
// loop has to hear, or the sender.
func (s *installs) known(key installKey) (raft.RPCResponse, bool) {
	r, ok := s.peek()
	if !ok || r.AppliedIndex() < key.index || r.CurrentTerm() != key.term {
		return raft.RPCResponse{}, false
	}
	return raft.RPCResponse{Response: &raft.InstallSnapshotResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: key.term, Success: true,
	}}, true
}

// open makes the file that key's stream goes to, or finds that the same is
// under way. What else was waiting gives way.
func (s *installs) open(key installKey) (mine, same *install, err error) {
	if key.size < 0 || key.size > s.limit {
		return nil, nil, fmt.Errorf("%w: snapshot of %d bytes, at most %d", ErrTooLarge, key.size, s.limit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raft != nil && s.raft.key == key {
		return nil, s.raft, nil
	}
	if s.next != nil && s.next.key == key && s.next.spooled {
		return nil, s.next, nil
	}
	if s.next != nil && s.next.key.term > key.term {
		return nil, nil, errSuperseded
	}
	if s.next != nil {
		close(s.next.gone)
		_ = s.next.file.Close() // ends the copy, and gives the room back
		s.next = nil
	}
	// Raft makes a copy of its own.
	if err := room(s.dir, 2*key.size+spoolReserve); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(s.dir, spoolFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := os.Remove(path); err != nil { // nothing stays, whatever happens
		_ = f.Close()
		return nil, nil, err
	}
	s.next = &install{key: key, begun: time.Now(), file: f, gone: make(chan struct{}), done: make(chan struct{})}
	return s.next, nil, nil
}

func room(dir string, need int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < uint64(need) {
		return fmt.Errorf("no room for a snapshot: %s has %d bytes free, %d are needed", dir, free, need)
	}
	return nil
}

func (s *installs) join(same *install) raft.RPCResponse {
	select {
	case <-same.done:
		return same.resp
	case <-s.done:
		return raft.RPCResponse{Error: ErrStopped}
	}
}

// turn waits until Raft has no other in its hands. It is false when mine is not
// for Raft: err says so, or something newer came.
func (s *installs) turn(mine *install, err error) bool {
	for {
		s.mu.Lock()
		before := s.raft
		select {
		case <-mine.gone:
			err = errSuperseded
		default:
		}
		if err != nil {
			if s.next == mine {
				s.next = nil
			}
			s.mu.Unlock()
			mine.settle(raft.RPCResponse{Error: err})
			return false
		}
		mine.spooled = true
		if before == nil {
			s.raft, s.next = mine, nil
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
		select {
		case <-before.done:
		case <-mine.gone:
		case <-s.done:
			err = ErrStopped
		}
	}
}

// hand gives mine to the main loop and waits for what it says.
func (s *installs) hand(mine *install, req *raft.InstallSnapshotRequest) {
	resp, ok := s.known(mine.key)
	if !ok {
		answer := make(chan raft.RPCResponse, 1)
		resp = raft.RPCResponse{Error: ErrStopped}
		select {
		case s.out <- raft.RPC{Command: req, Reader: mine.file, RespChan: answer}:
			s.mu.Lock()
			s.busy = true
			s.mu.Unlock()
			select {
			case resp = <-answer:
			case <-s.done:
			}
		case <-s.done:
		}
		if r, is := resp.Response.(*raft.InstallSnapshotResponse); is && r.Success && resp.Error == nil {
			s.counters.installed.note(time.Since(mine.begun), mine.key.size)
			s.installed(mine.key.index, mine.key.lastTerm)
		}
	}
	s.mu.Lock()
	s.raft, s.busy = nil, false
	s.mu.Unlock()
	mine.settle(resp)
}

// again counts one more snapshot after which this peer does not follow the log
// yet.
func (s *installs) again(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.row++; s.row < installsLoop {
		return
	}
	why := "the leader compacts its log faster than a snapshot is sent and restored"
	if err != nil {
		why = "the last one failed: " + err.Error()
	}
	s.alarms.raise(AlarmSnapshotLoop, fmt.Sprintf("%d snapshots in a row, and this peer never got to follow the leader's log (%s): "+
		"look at this peer's disk and network; a larger snapshot threshold on all peers keeps more of the log", s.row, why))
}

func (i *install) settle(resp raft.RPCResponse) {
	i.resp = resp
	close(i.done)
}

// underWay tells whether Raft's main loop is inside an install. One that it has
// not taken yet is no excuse for taking nothing.
func (s *installs) underWay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy
}

// follows looks at the entries that the leader sends: once they reach to what it
// has committed, and join on to what is here, this peer follows.
func (s *installs) follows(req *raft.AppendEntriesRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.row == 0 || req.LeaderCommitIndex == 0 || req.PrevLogEntry+uint64(len(req.Entries)) < req.LeaderCommitIndex {
		return
	}
	if r, ok := s.peek(); !ok || req.PrevLogEntry > r.LastIndex() {
		return
	}
	s.row = 0
	s.alarms.clear(AlarmSnapshotLoop)
}
