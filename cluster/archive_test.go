package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// follow reads what comes after an index, in pieces of few bytes.
func follow(n *Node, after uint64) (commands []string, through uint64, err error) {
	for {
		list, next, err := n.Entries(after, 8)
		if err != nil {
			return nil, after, err
		}
		for _, e := range list {
			if e.Index <= after || e.Index > next {
				return nil, after, fmt.Errorf("entry %d is not after %d, up to %d", e.Index, after, next)
			}
			batch, err := e.Commands()
			if err != nil {
				return nil, after, err
			}
			for _, c := range batch {
				commands = append(commands, string(c))
			}
		}
		if next == after {
			return commands, next, nil
		}
		after = next
	}
}

// Every peer gives out the same commands, those that were committed, once each, in order; from where one left off
// another goes on. What was compacted is not given out as if there were nothing.
func TestEntries(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	var want []string
	for i := range 40 {
		want = append(want, fmt.Sprint("command ", i))
		c.propose(c.leader(), want[i])
	}
	c.same()
	for id, n := range c.nodes {
		half, at, err := follow(n, 0)
		must(t, err)
		if !slices.Equal(half, want) {
			t.Fatalf("%s: %q", id, half)
		}
		if at != n.Status().AppliedIndex {
			t.Errorf("%s: through %d, applied %d", id, at, n.Status().AppliedIndex)
		}
		list, through, err := n.Entries(at, 1<<20)
		if err != nil || len(list) > 0 || through != at {
			t.Errorf("%s has more after the end: %v, %d, %v", id, list, through, err)
		}
		if _, through, err := n.Entries(at+100, 1<<20); err != nil || through != at+100 {
			t.Errorf("%s, after the end: %d, %v", id, through, err)
		}
	}
	l := c.leader()
	_, middle, err := l.Entries(0, 100)
	must(t, err)
	c.propose(c.leader(), "one more")
	c.same()
	var rest []string
	for _, n := range c.nodes {
		got, _, err := follow(n, middle)
		must(t, err)
		if rest != nil && !slices.Equal(got, rest) {
			t.Fatalf("%q and %q", got, rest)
		}
		rest = got
	}
	must(t, l.cache.DeleteRange(1, middle+1))
	if _, _, err := l.Entries(middle, 1<<20); !errors.Is(err, ErrCompacted) {
		t.Errorf("from before the first entry: %v", err)
	}
	if got, _, err := follow(l, middle+1); err != nil || !slices.Equal(got, rest[len(rest)-len(got):]) || len(got) == 0 {
		t.Errorf("from the first entry: %q, %v", got, err)
	}
}

// A directory made of a state is a cluster of its own, which others join; its log goes on above the state, its
// terms too.
func TestSeed(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	dir := filepath.Join(c.dir, "n1")
	seed := Seeding{Dir: dir, ID: "n1", Address: c.address("n1"), ClusterID: [16]byte{1, 2}, Incarnation: 9, Index: 5000, Term: 70, StateIndex: 12, StateTerm: 4,
		State: journalSnapshot{entries: [][]byte{[]byte("a"), []byte("b")}, index: 12}}
	must(t, os.MkdirAll(dir+".seed", 0o700)) // of an attempt that was cut short
	must(t, os.WriteFile(filepath.Join(dir+".seed", "junk"), nil, 0o600))
	for what, bad := range map[string]func(*Seeding){
		"address": func(s *Seeding) { s.Address = "nowhere" }, "index": func(s *Seeding) { s.Index = 11 }, "term": func(s *Seeding) { s.Term = 3 },
		"incarnation": func(s *Seeding) { s.Incarnation = 0 }, "id": func(s *Seeding) { s.ID = "" },
	} {
		wrong := seed
		bad(&wrong)
		if err := Seed(context.Background(), wrong); !errors.Is(err, ErrInvalidChange) {
			t.Errorf("a wrong %s: %v", what, err)
		}
	}
	failing := seed
	failing.State = failingSnapshot{}
	if err := Seed(context.Background(), failing); !errors.Is(err, errSnapshotFails) {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a part of a data directory is there")
	}
	must(t, Seed(context.Background(), seed))
	if err := Seed(context.Background(), seed); !errors.Is(err, ErrDirExists) {
		t.Fatalf("over data: %v", err)
	}
	c.start("n1")
	l := c.leader()
	c.propose(l, "c")
	if s := l.Status(); s.ClusterID != seed.ClusterID || s.Incarnation != 9 || s.Term <= 70 || s.AppliedIndex <= 5000 || len(s.Members) != 1 {
		t.Errorf("%+v", s)
	}
	if got := c.sms["n1"].all(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("%q", got)
	}
}

var errSnapshotFails = errors.New("the disk is full, say")

type failingSnapshot struct{}

func (failingSnapshot) Write(w io.Writer) error {
	_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
	return errSnapshotFails
}
