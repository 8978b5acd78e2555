package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func aSnapshot(t *testing.T, s *checkedSnapshots, index uint64) string {
	t.Helper()
	_, trans := raft.NewInmemTransport("")
	sink, err := s.Create(1, index, 4, raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: "nexus-1", Address: "a:1"}, {Suffrage: raft.Nonvoter, ID: "nexus-2", Address: "b:2"},
	}}, 7, trans)
	must(t, err)
	_, err = fmt.Fprintf(sink, "the state at %d", index)
	must(t, err)
	must(t, sink.Close())
	return filepath.Join(s.dir, sink.ID())
}

// No damage to any file of a snapshot changes what it says: whatever bit flips and wherever a file ends, it is
// what it was, or it is refused, by List and by Open.
func TestDamagedSnapshotFiles(t *testing.T) {
	t.Parallel()
	s, err := openSnapshots(t.TempDir(), raftLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	aSnapshot(t, s, 9)
	dir := aSnapshot(t, s, 10)
	good, err := s.List()
	must(t, err)
	read := func(what string) (refused bool) {
		t.Helper()
		list, listed := s.List()
		if listed == nil && !reflect.DeepEqual(withoutPeers(list), withoutPeers(good)) {
			t.Errorf("%s: %+v", what, list[0])
		}
		meta, rc, opened := s.Open(filepath.Base(dir))
		if opened == nil {
			must(t, rc.Close())
			if !reflect.DeepEqual(withoutPeers([]*raft.SnapshotMeta{meta}), withoutPeers(good)) {
				t.Errorf("%s: opened %+v", what, meta)
			}
		}
		for _, err := range []error{listed, opened} {
			if err != nil && !errors.Is(err, ErrCorruptSnapshot) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("%s: %v", what, err)
			}
		}
		return listed != nil || opened != nil
	}
	for _, name := range []string{"meta.json", sumFile, "state.bin"} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		must(t, err)
		for at := range whole {
			for bit := range 8 {
				damaged := append([]byte(nil), whole...)
				damaged[at] ^= 1 << bit
				must(t, os.WriteFile(path, damaged, 0o600))
				if what := fmt.Sprintf("%s: bit %d of byte %d (%q)", name, bit, at, damaged); !read(what) && name != "meta.json" {
					t.Errorf("%s: not noticed", what)
				}
			}
			must(t, os.WriteFile(path, whole[:at], 0o600))
			if what := fmt.Sprintf("%s cut off at %d", name, at); !read(what) && at < len(whole)-1 { // but for the end of the line
				t.Errorf("%s: not noticed", what)
			}
		}
		must(t, os.WriteFile(path, whole, 0o600))
		if read(name + " as it was") {
			t.Errorf("%s as it was is refused", name)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, sumFile), append([]byte{2}, make([]byte, 40)...), 0o600))
	if _, err := s.List(); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("a checksum of a later version: %v", err)
	}
}

// withoutPeers leaves out what the library keeps for versions that nobody has, and does not read.
func withoutPeers(list []*raft.SnapshotMeta) (plain []raft.SnapshotMeta) {
	for _, m := range list {
		c := *m
		c.Peers = nil
		plain = append(plain, c)
	}
	return plain
}

// Snapshots of versions that wrote no checksum of the description are read.
func TestSnapshotWithoutChecksum(t *testing.T) {
	t.Parallel()
	s, err := openSnapshots(t.TempDir(), raftLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	dir := aSnapshot(t, s, 9)
	must(t, os.Remove(filepath.Join(dir, sumFile)))
	list, err := s.List()
	must(t, err)
	if len(list) != 1 || list[0].Index != 9 {
		t.Errorf("listed %+v", list)
	}
}

// A peer whose snapshot names another member than it did does not start: as a leader it would rename that member everywhere.
func TestDamagedSnapshotDescription(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "only")
	must(t, l.snapshot(l.raft.Load()))
	id := l.cfg.ID
	c.stop(id)
	list, err := filepath.Glob(filepath.Join(c.dir, id, "snapshots", "*", "meta.json"))
	must(t, err)
	for _, path := range list {
		b, err := os.ReadFile(path)
		must(t, err)
		at := len(`{"Version":1,"ID":"`)
		for ; string(b[at:at+4]) != `"n3"`; at++ {
		}
		b[at+1] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
	}
	if err := c.tryStart(id); len(list) == 0 || !errors.Is(err, ErrCorruptSnapshot) {
		t.Errorf("started from %d damaged snapshots: %v", len(list), err)
	}
}

// A file of a snapshot that the system does not hand out, now, is no damage: nobody is told to remove the data for it.
func TestUnreadableSnapshotIsNotDamaged(t *testing.T) {
	t.Parallel()
	s, err := openSnapshots(t.TempDir(), raftLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	dir := aSnapshot(t, s, 9)
	for _, name := range []string{"meta.json", sumFile, "state.bin"} {
		path := filepath.Join(dir, name)
		must(t, os.Rename(path, path+".away"))
		must(t, os.Symlink(name, path)) // a loop: for root, too
		_, listed := s.List()
		_, _, opened := s.Open(filepath.Base(dir))
		for _, err := range []error{listed, opened} {
			if !errors.Is(err, syscall.ELOOP) || errors.Is(err, ErrCorruptSnapshot) {
				t.Errorf("%s cannot be read: %v", name, err)
			}
		}
		must(t, os.Remove(path))
		if name != sumFile { // versions before had none
			_, listed = s.List()
			_, _, opened = s.Open(filepath.Base(dir))
			for _, err := range []error{listed, opened} {
				if !errors.Is(err, ErrCorruptSnapshot) {
					t.Errorf("%s is missing: %v", name, err)
				}
			}
		}
		must(t, os.Rename(path+".away", path))
	}
	must(t, os.Rename(s.dir, s.dir+".away"))
	if _, err := s.List(); err == nil || errors.Is(err, ErrCorruptSnapshot) {
		t.Errorf("there is no directory: %v", err)
	}
}

// An older snapshot is nobody's business: neither that it is damaged, nor that it is gone when it is opened.
func TestDamageToAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	s, err := openSnapshots(t.TempDir(), raftLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	older, newest := aSnapshot(t, s, 99), aSnapshot(t, s, 100)
	for _, harm := range []func(){
		func() {},
		func() { must(t, os.WriteFile(filepath.Join(older, "state.bin"), []byte("x"), 0o600)) },
		func() { must(t, os.WriteFile(filepath.Join(older, "meta.json"), []byte("{"), 0o600)) },
		func() { must(t, os.Remove(filepath.Join(older, "meta.json"))) },
		func() { must(t, os.RemoveAll(older)) },
	} {
		harm()
		list, err := s.List()
		if err != nil || len(list) != 1 || list[0].Index != 100 {
			t.Fatalf("listed %+v, %v", list, err)
		}
		if _, rc, err := s.Open(filepath.Base(older)); err == nil {
			must(t, rc.Close())
		} else if errors.Is(err, ErrCorruptSnapshot) {
			t.Errorf("the older one: %v", err)
		}
	}
	must(t, os.Remove(filepath.Join(newest, "meta.json")))
	older = aSnapshot(t, s, 98)
	if list, err := s.List(); !errors.Is(err, ErrCorruptSnapshot) {
		t.Errorf("listed %+v, %v, older than %s", list, err, newest)
	}
}

// A leader that cannot bring a follower back, because its snapshot is damaged, ends, so that another one leads.
func TestDamagedSnapshotAtRunTimeStopsThePeer(t *testing.T) {
	t.Parallel()
	for find, place := range map[string][]byte{"meta.json": []byte(`"Index":`), "state.bin": nil} { // most of what the library says is not read by anybody
		t.Run(find, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, "n1", "n2", "n3")
			c.tune = func(id string, cfg *Config) {
				cfg.SnapshotBytes = 64 << 10
				reluctant(id, cfg)
			}
			c.startAll()
			l, late := c.leader(), c.follower().cfg.ID
			c.stop(late)
			writeUntilCompacted(t, c, l, 20)
			damaged := map[string]bool{}
			damage := func() (making bool) { // all that there are; one may still be made
				list, err := filepath.Glob(filepath.Join(l.cfg.Dir, "snapshots", "*", find))
				must(t, err)
				for _, path := range list {
					if strings.HasSuffix(filepath.Dir(path), ".tmp") {
						making = true
					} else if b, err := os.ReadFile(path); err == nil && !damaged[path] { // else it was dropped meanwhile
						b[bytes.Index(b, place)+len(place)] ^= 1
						must(t, os.WriteFile(path, b, 0o600))
						damaged[path] = true
					}
				}
				return making
			}
			eventually(t, "all snapshots to be damaged", func() bool { return !damage() && len(damaged) > 0 })
			c.start(late) // needs the snapshot; the library asks one that was silent for long after ten seconds only
			for end := time.After(time.Minute); l.Err() == nil; damage() {
				select {
				case <-l.Done():
				case <-time.After(5 * time.Millisecond):
				case <-end:
					t.Fatalf("the peer goes on with %d damaged snapshots: %+v", len(damaged), l.Status())
				}
			}
			<-l.Done()
			if !errors.Is(l.Err(), ErrCorruptSnapshot) {
				t.Errorf("it stopped because of: %v", l.Err())
			}
			delete(c.nodes, l.cfg.ID)
			c.propose(c.leader(), "others go on")
			c.same()
		})
	}
}
