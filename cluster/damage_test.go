package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Whatever a disk does to the file of the log, a peer either starts with the
// very entries that it wrote or says what is wrong. It never panics, also not
// on a goroutine of a library.
func TestDamagedLogFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, err := openLog(dir, 1<<30)
	must(t, err)
	const entries = 60
	for i := range uint64(entries) {
		must(t, store.StoreLog(&raft.Log{Index: i + 1, Term: 1, Type: raft.LogCommand, Data: fmt.Appendf(nil, "command-%d-%0200d", i, i)}))
	}
	must(t, store.stable.SetUint64(keyTerm, 7))
	must(t, store.stable.SetUint64(keyVoteTerm, 6))
	must(t, store.stable.Set(keyVote, []byte("n1")))
	must(t, store.bolt.Close())
	good, err := os.ReadFile(filepath.Join(dir, logFile))
	must(t, err)
	random := rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano())))
	refused := 0
	for range 400 {
		damaged := append([]byte(nil), good...)
		what := ""
		switch random.IntN(7) {
		case 6: // in names or values of term and vote
			at := bytes.Index(damaged, stableKeys[random.IntN(3)]) + random.IntN(60)
			damaged[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf(" term or vote %d", at)
		case 5: // how many elements a page has
			at := random.IntN(len(damaged)/os.Getpagesize())*os.Getpagesize() + 10
			damaged[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf(" count %d", at)
		case 4: // in the head of a page, or in its table of elements
			at := random.IntN(len(damaged)/os.Getpagesize())*os.Getpagesize() + random.IntN(200)
			damaged[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf(" page %d", at)
		case 3: // in a head: bbolt would go back to the other one, which does not know of what was written last
			at := random.IntN(2)*os.Getpagesize() + pageHead + random.IntN(64)
			damaged[at] ^= byte(1 + random.IntN(255))
			what = fmt.Sprintf(" head %d", at)
		case 0: // some bits
			for range 1 + random.IntN(8) {
				at := random.IntN(len(damaged))
				damaged[at] ^= byte(1 + random.IntN(255))
				what += fmt.Sprintf(" flip %d", at)
			}
		case 1: // a sector of zeros or noise
			at := random.IntN(len(damaged)/512) * 512
			what = fmt.Sprintf(" sector %d", at)
			for i := range 512 {
				damaged[at+i] = byte(random.IntN(2) * random.IntN(256))
			}
		case 2:
			n := random.IntN(len(damaged))
			what = fmt.Sprintf(" cut at %d", n)
			damaged = damaged[:n]
		}
		sub := t.TempDir()
		must(t, os.WriteFile(filepath.Join(sub, logFile), damaged, 0o600))
		if !readsBack(t, sub, entries, what) {
			refused++
		}
	}
	if refused < 50 {
		t.Errorf("only %d of 400 damages were noticed", refused)
	}
}

func readsBack(t *testing.T, dir string, entries uint64, what string) bool {
	t.Helper()
	store, err := openLog(dir, 1<<30)
	if err != nil {
		return false
	}
	defer store.bolt.Close()
	if err := store.verify(context.Background(), 0); err != nil {
		return false
	}
	first, err1 := store.FirstIndex()
	last, err2 := store.LastIndex()
	if err1 != nil || err2 != nil {
		return false
	}
	for i := first; i <= last && first > 0; i++ {
		var l raft.Log
		if err := store.GetLog(i, &l); err != nil {
			t.Errorf("%s: verified, but entry %d: %v", what, i, err)
		} else if want := fmt.Sprintf("command-%d-%0200d", i-1, i-1); string(l.Data) != want {
			t.Errorf("%s: entry %d reads %q", what, i, l.Data)
		}
	}
	if last != entries {
		t.Errorf("%s: verified, but it ends at %d", what, last)
	}
	expectTermAndVote(t, store.stable, 7, 6, "n1")
	return true
}

// Power that is lost while bbolt makes the file of the log may leave its length without its pages. A peer that is new
// begins anew; one that was ever told to form must not.
func TestFirstStartCutShort(t *testing.T) {
	t.Parallel()
	page := os.Getpagesize()
	left := map[string][]byte{"nothing": {}, "zeros": make([]byte, 4*page), "one page": make([]byte, page)}
	c := newTestCluster(t, "n1", "n2", "n3")
	i := 0
	for _, b := range left {
		dir := filepath.Join(c.dir, c.peers[i].ID)
		must(t, os.MkdirAll(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, logFile), b, 0o600))
		i++
	}
	c.startAll()
	c.propose(c.leader(), "formed")
	c.same()
	id := c.peers[0].ID
	c.stop(id)
	path := filepath.Join(c.dir, id, logFile)
	for what, b := range left {
		must(t, os.WriteFile(path, b, 0o600))
		err := c.tryStart(id)
		var corrupt *ErrCorruptLog
		if !errors.As(err, &corrupt) && !errors.Is(err, ErrLostData) {
			t.Fatalf("a peer of a cluster started with %s for its log: %v", what, err)
		}
		if now, err := os.ReadFile(path); len(b) > 0 && (err != nil || !bytes.Equal(now, b)) {
			t.Errorf("%s: the file was changed (%v)", what, err)
		}
	}
	// Nor one that was prepared, whose file had been whole.
	other := t.TempDir()
	must(t, writeMarker(other, &peerpb.Marker{Phase: peerpb.Phase_PHASE_PREPARED, ClusterId: make([]byte, 16), Incarnation: 1, Self: "n9",
		Peers: []*peerpb.Member{{Id: "n9", Address: "a:1"}}}))
	must(t, os.WriteFile(filepath.Join(other, logFile), left["zeros"], 0o600))
	cfg := Config{ID: "n9", Dir: other, Listener: listen(t, "127.0.0.1:0"), Peers: []Peer{{"n9", "a:1"}}, Security: c.ca.identity(t, "n9"), StateMachine: &journal{}}
	var corrupt *ErrCorruptLog
	if _, err := Start(context.Background(), cfg); !errors.As(err, &corrupt) {
		t.Errorf("a prepared peer started with zeros for its log: %v", err)
	}
	// What is not nothing stays.
	odd := t.TempDir()
	must(t, os.WriteFile(filepath.Join(odd, logFile), append(make([]byte, 4*page), 1), 0o600))
	cfg.Dir, cfg.Listener = odd, listen(t, "127.0.0.1:0")
	if _, err := Start(context.Background(), cfg); !errors.As(err, &corrupt) {
		t.Errorf("a new peer started with something for its log: %v", err)
	}
}
