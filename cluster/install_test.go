package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// behind has a cluster of three in which one peer is stopped and needs a
// snapshot; it returns the leader and that peer's id.
func behind(t *testing.T, tune func(id string, cfg *Config)) (c *testCluster, l *Node, late string) {
	t.Helper()
	c = newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		cfg.SnapshotBytes = 64 << 10
		if tune != nil {
			tune(id, cfg)
		}
	}
	c.startAll()
	l = c.leader()
	late = c.follower().cfg.ID
	c.stop(late)
	writeUntilCompacted(t, c, l, 20)
	return c, l, late
}

func writeUntilCompacted(t *testing.T, c *testCluster, l *Node, above uint64) {
	t.Helper()
	pad := strings.Repeat("x", 4096)
	eventually(t, "a snapshot and a short log", func() bool {
		for i := range 20 {
			c.propose(l, fmt.Sprint(i, pad))
		}
		first, err := l.store.FirstIndex()
		return err == nil && first > above
	})
}

func otherThan(c *testCluster, ids ...string) *Node {
	for id, n := range c.nodes {
		if !strings.Contains(strings.Join(ids, " "), id) {
			return n
		}
	}
	return nil
}

var patient = Timing{Heartbeat: time.Second, Election: time.Second, Lease: time.Second}

// One peer down, another inside an install that takes several times the
// heartbeat timeout: the leader keeps its majority, because the responder
// answers for the one that is busy; and nobody takes that for a Raft that does
// not move. Without the responder leadership is lost.
func TestInstallKeepsTheLeader(t *testing.T) {
	t.Parallel()
	for _, responder := range []bool{true, false} {
		t.Run(fmt.Sprintf("responder=%v", responder), func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			slow := ""
			c, l, late := behind(t, func(id string, cfg *Config) {
				cfg.Timing = patient
				cfg.Timing.Progress = time.Second
				cfg.unsafeNoResponder = !responder
				if id == slow {
					cfg.StateMachine.(*journal).holdRestore = release
				}
			})
			other := otherThan(c, l.cfg.ID, late)
			slow = late
			sent := l.Status().SnapshotIndex
			c.start(late)
			eventually(t, "the restore to begin", func() bool { return restores(c.sms[late]) == 1 })
			term := l.Status().Term
			// The leader loses its connections, and sends the same again.
			if responder {
				c.net.cut(l.cfg.ID, late)
				c.net.heal()
			}
			c.stop(other.cfg.ID)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			proposed := make(chan error, 1)
			go func() {
				_, err := l.Propose(ctx, []byte("meanwhile"))
				proposed <- err
			}()
			if !responder {
				eventually(t, "leadership to be lost", func() bool { return l.Status().State != Leads })
				close(release)
				<-proposed
				return
			}
			long := time.NewTimer(4 * patient.Heartbeat)
			<-long.C
			if s := l.Status(); s.State != Leads || s.Term != term {
				t.Errorf("leadership was lost: %v in term %d, was %d", s.State, s.Term, term)
			}
			close(release)
			if err := <-proposed; err != nil {
				t.Errorf("proposed meanwhile: %v", err)
			}
			c.same()
			if s := l.Status(); s.Term != term {
				t.Errorf("term %d, was %d", s.Term, term)
			}
			s := c.nodes[late].Status()
			installs := c.nodes[late].Stats().Installed
			if n := restores(c.sms[late]); (n != 1 || installs.Count != 1 || installs.Took <= 0 || installs.Bytes <= 0) && l.Status().SnapshotIndex == sent { // else there was a newer one to send
				t.Errorf("snapshot %d was restored %d times, in %d installs", sent, n, installs.Count)
			}
			if len(s.Alarms) > 0 {
				t.Errorf("alarms %v", s.Alarms)
			}
		})
	}
}

func restores(j *journal) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.restores
}

// While the stream of a snapshot crawls in, the main loop is free.
func TestSlowStreamLeavesTheMainLoopFree(t *testing.T) {
	t.Parallel()
	c, l, late := behind(t, nil)
	c.net.mu.Lock()
	c.net.drag[late] = 50 * time.Millisecond
	c.net.mu.Unlock()
	c.start(late)
	n := c.nodes[late]
	receiving := func() bool {
		s := n.transport.installs
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next != nil && s.raft == nil
	}
	eventuallyAt(t, time.Millisecond, "a stream", receiving)
	<-n.transport.probe()
	if !receiving() {
		t.Error("the main loop answered only after the stream")
	}
	c.net.mu.Lock()
	clear(c.net.drag)
	c.net.mu.Unlock()
	c.propose(l, "after")
	c.same()
	if files, _ := filepath.Glob(filepath.Join(c.dir, late, "install*")); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// loop stands for Raft's main loop and installs what it is given when told to.
type loop struct {
	tr  *transport
	got chan raft.RPC
}

func newLoop(t *testing.T, applied *fixedRaft) *loop {
	tr := newDeafTransport(t, time.Minute, func() (peek, bool) { return *applied, true })
	l := &loop{tr, make(chan raft.RPC)}
	go func() {
		for {
			select {
			case rpc := <-tr.Consumer():
				select {
				case l.got <- rpc:
				case <-tr.Done():
				}
			case <-tr.Done():
				return
			}
		}
	}()
	return l
}

func (l *loop) send(stream io.Reader, index uint64, size int64) <-chan raft.RPCResponse {
	answer := make(chan raft.RPCResponse, 1)
	req := &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("l")},
		Term: 7, LastLogIndex: index, LastLogTerm: 6, Size: size}
	l.tr.installs.take(raft.RPC{Command: req, Reader: io.LimitReader(stream, size), RespChan: answer}, req)
	return answer
}

// sendNow returns when the stream is read.
func (l *loop) sendNow(content []byte, index uint64) <-chan raft.RPCResponse {
	r, w := io.Pipe()
	answer := l.send(r, index, int64(len(content)))
	_, _ = w.Write(content)
	return answer
}

func (l *loop) finish(rpc raft.RPC) {
	rpc.Respond(&raft.InstallSnapshotResponse{Term: 7, Success: true}, nil)
}

func succeeded(r raft.RPCResponse) bool {
	s, ok := r.Response.(*raft.InstallSnapshotResponse)
	return ok && s.Success && r.Error == nil
}

func TestInstallsGoThroughAFile(t *testing.T) {
	t.Parallel()
	l := newLoop(t, &fixedRaft{raft.Follower, "l", 7})
	content := bytes.Repeat([]byte("snapshot"), 1000)
	answer := l.send(bytes.NewReader(content), 100, int64(len(content)))
	rpc := <-l.got
	if got, err := io.ReadAll(rpc.Reader); err != nil || !bytes.Equal(got, content) {
		t.Errorf("Raft reads %d bytes, %v", len(got), err)
	}
	// The same again, while it is under way: the same answer, nothing for Raft.
	again := l.sendNow(content, 100)
	l.finish(rpc)
	if !succeeded(<-answer) || !succeeded(<-again) {
		t.Error("refused")
	}
	if n := l.tr.installs.counters.installed.count.Load(); n != 1 {
		t.Errorf("counted %d", n)
	}
	entries, err := os.ReadDir(l.tr.installs.dir)
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

// What is cut short, too large, or known already never reaches Raft.
func TestInstallsThatAreNotForRaft(t *testing.T) {
	t.Parallel()
	l := newLoop(t, &fixedRaft{raft.Follower, "l", 7}) // has applied 40
	for _, tc := range []struct {
		name        string
		bytes, size int64
		index       uint64
		want        error
	}{
		{"short", 10, 11, 100, errShort},
		{"too large", 10, 1<<20 + 1, 100, ErrTooLarge},
		{"negative", 0, -1, 100, ErrTooLarge},
		{"known", 10, 10, 40, nil},
		{"known since long", 10, 10, 4, nil},
	} {
		stream := bytes.NewReader(make([]byte, tc.bytes))
		select {
		case r := <-l.send(stream, tc.index, tc.size):
			if !errors.Is(r.Error, tc.want) || tc.want == nil && !succeeded(r) {
				t.Errorf("%s: %+v", tc.name, r)
			}
		case <-l.got:
			t.Errorf("%s: it reached Raft", tc.name)
		}
		if stream.Len() > 0 && tc.size > 0 {
			t.Errorf("%s: %d bytes of the stream are left, to be read as requests", tc.name, stream.Len())
		}
	}
	l.tr.installs.limit = 1 << 60 // more than any disk has free
	select {
	case r := <-l.send(bytes.NewReader(nil), 100, 1<<59):
		if r.Error == nil || !strings.Contains(r.Error.Error(), "no room") {
			t.Errorf("more than the disk has room for: %+v", r)
		}
	case <-l.got:
		t.Error("more than the disk has room for reached Raft")
	}
	// Of another term the main loop must hear, or the sender.
	for _, other := range []fixedRaft{{raft.Follower, "l", 6}, {raft.Follower, "l", 8}, {raft.Candidate, "", 8}} {
		l := newLoop(t, &other)
		l.send(bytes.NewReader(nil), 4, 0)
		l.finish(<-l.got)
	}
}

// A newer snapshot takes the place of one that still waits, or whose stream the
// leader has left; what Raft has begun it ends.
func TestNewestInstallWins(t *testing.T) {
	t.Parallel()
	l := newLoop(t, &fixedRaft{raft.Follower, "l", 7})
	first := l.send(strings.NewReader("first"), 100, 5)
	inRaft := <-l.got
	left, w := io.Pipe() // a connection that nobody closes
	abandoned := l.send(left, 101, 1000)
	_, err := w.Write([]byte("begun"))
	must(t, err)
	waits := l.sendNow([]byte("waits"), 102)
	_ = w.Close()
	if r := <-abandoned; r.Error == nil {
		t.Errorf("a superseded stream: %+v", r)
	}
	newest := l.sendNow([]byte("newest"), 103)
	if r := <-waits; !errors.Is(r.Error, errSuperseded) && !errors.Is(r.Error, os.ErrClosed) {
		t.Errorf("superseded while it waited: %+v", r)
	}
	l.finish(inRaft)
	rpc := <-l.got
	if got, _ := io.ReadAll(rpc.Reader); string(got) != "newest" {
		t.Errorf("Raft got %q next", got)
	}
	l.finish(rpc)
	if !succeeded(<-first) || !succeeded(<-newest) {
		t.Error("refused")
	}
}

// Snapshot after snapshot without the log in between is an alarm; following the
// log ends it.
func TestAlarmForAnInstallLoop(t *testing.T) {
	t.Parallel()
	l := newLoop(t, &fixedRaft{raft.Follower, "l", 7}) // its log reaches to 42
	for i := range uint64(installsLoop) {
		if a := l.tr.installs.alarms.list(); len(a) > 0 {
			t.Errorf("after %d: %v", i, a)
		}
		answer := l.send(strings.NewReader("x"), 100+i, 1)
		l.finish(<-l.got)
		<-answer
	}
	if a := l.tr.installs.alarms.list(); len(a) != 1 || a[0].Kind != AlarmSnapshotLoop {
		t.Errorf("alarms %v", a)
	}
	for _, req := range []*raft.AppendEntriesRequest{
		{Term: 7}, // a heartbeat
		{Term: 7, PrevLogEntry: 50, LeaderCommitIndex: 50},                                // does not join on
		{Term: 7, PrevLogEntry: 40, Entries: make([]*raft.Log, 5), LeaderCommitIndex: 50}, // on its way
	} {
		l.tr.installs.follows(req)
		if len(l.tr.installs.alarms.list()) != 1 {
			t.Errorf("%+v ended the alarm", req)
		}
	}
	l.tr.installs.follows(&raft.AppendEntriesRequest{Term: 7, PrevLogEntry: 42, LeaderCommitIndex: 42})
	if a := l.tr.installs.alarms.list(); len(a) != 0 {
		t.Errorf("alarms %v", a)
	}
}

// A peer whose log contradicts a snapshot at its very index would be sent it for
// ever (hashicorp/raft#697). It asks to be started again, and then comes up.
func TestLogThatContradictsASnapshot(t *testing.T) {
	t.Parallel()
	c, l, late := withTail(t, func(_, last uint64) uint64 { return last + 20 })
	c.start(late)
	n := c.nodes[late]
	select {
	case <-n.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on: %+v", n.Status())
	}
	if !errors.Is(n.Err(), ErrNoProgress) {
		t.Fatalf("stopped because of %v", n.Err())
	}
	delete(c.nodes, late)
	c.start(late)
	c.propose(l, "after")
	c.same()
	if c.sms[late].has("never") {
		t.Error("applied what was never committed")
	}
}

// What a peer wrote of an earlier term, and what was never committed, does not stay in its log when a later snapshot is installed:
// it would send it to others, one day when it leads.
func TestLogThatEndsBeforeASnapshot(t *testing.T) {
	t.Parallel()
	c, l, late := withTail(t, func(first, _ uint64) uint64 { return first - 1 })
	c.start(late)
	c.propose(l, "after")
	c.same()
	c.stop(late)
	store, err := openLog(filepath.Join(c.dir, late), 1<<30)
	must(t, err)
	defer store.bolt.Close()
	first, last, err := store.bounds()
	must(t, err)
	for i := first; i <= last; i++ {
		var e raft.Log
		if err := store.GetLog(i, &e); err == nil && bytes.Contains(e.Data, []byte("never")) {
			t.Fatalf("the log, from %d to %d, has entry %d of term %d, which was never committed", first, last, i, e.Term)
		}
	}
}

// withTail has a stopped peer that needs a snapshot, and whose log has entries of an earlier term that were never committed: up to
// an index that end chooses, who knows the first and the last one of the leader's log.
func withTail(t *testing.T, end func(first, last uint64) uint64) (c *testCluster, l *Node, late string) {
	t.Helper()
	c = newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.SnapshotBytes = 64 << 10 }
	c.startAll()
	l = c.leader()
	late = c.follower().cfg.ID
	c.propose(l, "before")
	c.same()
	term := l.Status().Term
	c.stop(late)
	eventually(t, "a later term", func() bool {
		l = c.leader()
		if l.Status().Term > term {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.TransferLeadership(ctx, otherThan(c, l.cfg.ID).cfg.ID)
		return false
	})
	writeUntilCompacted(t, c, l, 20)

	store, err := openLog(filepath.Join(c.dir, late), 1<<30)
	must(t, err)
	defer func() { must(t, store.bolt.Close()) }()
	last, err := store.LastIndex()
	must(t, err)
	first, _, err := l.store.bounds()
	must(t, err)
	for i := last + 1; i <= end(first, l.Status().LastIndex); i++ {
		must(t, store.StoreLog(&raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: encodeEnvelope([][]byte{[]byte("never")})}))
	}
	return c, l, late
}

func TestDropDiverging(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before      []uint64 // indexes, all of term 1
		index, term uint64
		first, last uint64 // afterwards
	}{
		"it has the snapshot's entry":  {[]uint64{1, 2, 3, 4}, 3, 1, 1, 4},
		"it has another one there":     {[]uint64{1, 2, 3, 4}, 3, 2, 0, 0},
		"it ends before the snapshot":  {[]uint64{1, 2, 3}, 9, 2, 0, 0},
		"a gap before what follows":    {[]uint64{1, 2, 10, 11}, 9, 2, 10, 11},
		"it begins after the snapshot": {[]uint64{10, 11}, 9, 2, 10, 11},
		"it is empty":                  {nil, 9, 2, 0, 0},
		"there is no snapshot":         {[]uint64{1, 2}, 0, 0, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := openLog(t.TempDir(), 1<<20)
			must(t, err)
			defer store.bolt.Close()
			for _, i := range c.before {
				must(t, store.StoreLog(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand}))
			}
			must(t, store.dropDiverging(c.index, c.term))
			if first, last, err := store.bounds(); err != nil || first != c.first || last != c.last {
				t.Errorf("from %d to %d is left (%v), want %d to %d", first, last, err, c.first, c.last)
			}
		})
	}
}
