package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bbolterrors "go.etcd.io/bbolt/errors"
)

func aBolt(t *testing.T) (*raftboltdb.BoltStore, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), logFile)
	bolt, err := raftboltdb.NewBoltStore(path)
	must(t, err)
	t.Cleanup(func() { must(t, bolt.Close()) })
	return bolt, path
}

func expectTermAndVote(t *testing.T, s raft.StableStore, term, voteTerm uint64, vote string) {
	t.Helper()
	gotTerm, err1 := s.GetUint64(keyTerm)
	gotVoteTerm, err2 := s.GetUint64(keyVoteTerm)
	gotVote, err3 := s.Get(keyVote)
	if gotTerm != term || gotVoteTerm != voteTerm || string(gotVote) != vote || errors.Join(err1, err2, err3) != nil {
		t.Errorf("term %d, vote in %d for %q (%v); want %d, %d, %q", gotTerm, gotVoteTerm, gotVote, errors.Join(err1, err2, err3), term, voteTerm, vote)
	}
}

// Term and vote are there when the file is opened again; whatever bit of one flips, and wherever it ends, nobody votes by it.
func TestTermAndVote(t *testing.T) {
	t.Parallel()
	bolt, path := aBolt(t)
	s, err := openStable(bolt, path)
	must(t, err)
	if _, err := s.GetUint64(keyTerm); !errors.Is(err, raftboltdb.ErrKeyNotFound) { // the library looks at its text
		t.Errorf("a new file's term: %v", err)
	}
	must(t, s.SetUint64(keyTerm, 7))
	must(t, s.SetUint64(keyVoteTerm, 6))
	must(t, s.Set(keyVote, []byte("nexus-1")))
	s, err = openStable(bolt, path)
	must(t, err)
	expectTermAndVote(t, s, 7, 6, "nexus-1")

	for i, key := range stableKeys {
		good, err := bolt.Get(key)
		must(t, err)
		golden(t, []string{"term", "vote-term", "vote"}[i], good)
		refused := func(what string, b []byte) {
			t.Helper()
			must(t, bolt.Set(key, b))
			var corrupt *ErrCorruptLog
			switch s, err := openStable(bolt, path); {
			case errors.As(err, &corrupt), errors.Is(err, ErrNewerFormat):
			default:
				t.Errorf("%s of %x: %+v, %v", what, b, s, err)
			}
		}
		for at := range good {
			for bit := range 8 {
				b := append([]byte(nil), good...)
				b[at] ^= 1 << bit
				refused("a flipped bit", b)
			}
			if i < 2 && at != 8 || i == 2 && at > len("nexus-1") { // 8 bytes, or a name, are what a version before had; their length shows in their page
				refused("the beginning", good[:at])
			}
		}
		must(t, bolt.Set(key, good))
	}
	expectTermAndVote(t, s, 7, 6, "nexus-1")
}

// What a version before has written is read, and has a checksum then; it reads what this one writes, when somebody goes back.
func TestTermAndVoteOfBefore(t *testing.T) {
	t.Parallel()
	bolt, path := aBolt(t)
	must(t, bolt.SetUint64(keyTerm, 9))
	must(t, bolt.SetUint64(keyVoteTerm, 8))
	must(t, bolt.Set(keyVote, []byte("nexus-2")))
	for range 2 {
		s, err := openStable(bolt, path)
		must(t, err)
		expectTermAndVote(t, s, 9, 8, "nexus-2")
		for _, key := range stableKeys {
			if _, summed, err := s.read(key); err != nil || !summed {
				t.Errorf("%s has no checksum (%v)", key, err)
			}
		}
	}
	term, err1 := bolt.GetUint64(keyTerm)
	voteTerm, err2 := bolt.GetUint64(keyVoteTerm)
	if term != 9 || voteTerm != 8 || err1 != nil || err2 != nil {
		t.Errorf("a version before reads %d and %d (%v, %v)", term, voteTerm, err1, err2)
	}
}

// A peer whose vote is damaged does not start: it could vote twice in a term.
func TestDamagedVote(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l := c.leader()
	c.propose(l, "only")
	id := l.cfg.ID
	c.stop(id)
	path := filepath.Join(c.dir, id, logFile)
	bolt, err := raftboltdb.NewBoltStore(path)
	must(t, err)
	voteTerm, err := bolt.Get(keyVoteTerm)
	must(t, err)
	voteTerm[7] ^= 1
	must(t, bolt.Set(keyVoteTerm, voteTerm))
	must(t, bolt.Close())
	var corrupt *ErrCorruptLog
	if err := c.tryStart(id); !errors.As(err, &corrupt) {
		t.Errorf("started: %v", err)
	}
}

// Who voted for nobody has voted: what is read back is not nil, which the library would take for no vote yet.
func TestVoteForNobody(t *testing.T) {
	t.Parallel()
	bolt, path := aBolt(t)
	s, err := openStable(bolt, path)
	must(t, err)
	for _, vote := range [][]byte{nil, {}} {
		must(t, s.Set(keyVote, vote))
		s, err = openStable(bolt, path)
		must(t, err)
		if got, err := s.Get(keyVote); err != nil || got == nil || len(got) != 0 {
			t.Errorf("a vote for nobody is read as %#v, %v", got, err)
		}
	}
}

// A peer that cannot read what it voted ends, rather than never to vote again.
func TestDamagedVoteAtRunTimeStopsThePeer(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	f := c.follower()
	damage := func() { // as a transaction: what bbolt writes meanwhile must not be hit
		b, err := f.store.bolt.Get(keyVoteTerm)
		if err == nil {
			b[len(b)-1]++ // an exclusive or would mend it the second time
			err = f.store.bolt.Set(keyVoteTerm, b)
		}
		if err != nil && !errors.Is(err, bbolterrors.ErrDatabaseNotOpen) && !errors.Is(err, raftboltdb.ErrKeyNotFound) { // it has just ended, or not voted yet
			t.Error(err)
		}
	}
	eventually(t, "the peer to end", func() bool {
		select {
		case <-f.Done():
			return true
		default:
		}
		damage() // again: who stands for election itself writes its vote anew
		for id, n := range c.nodes {
			if n.leads() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				for other := range c.nodes {
					if other != id && other != f.cfg.ID {
						_ = n.TransferLeadership(ctx, other) // which asks the others for their votes
					}
				}
			}
		}
		return false
	})
	var corrupt *ErrCorruptLog
	if err := f.Err(); !errors.As(err, &corrupt) {
		t.Errorf("it stopped because of: %v", err)
	}
	delete(c.nodes, f.cfg.ID)
	c.propose(c.leader(), "others go on")
	var again *ErrCorruptLog
	if err := c.tryStart(f.cfg.ID); !errors.As(err, &again) {
		t.Errorf("started again: %v", err)
	}
}
