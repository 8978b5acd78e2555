package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// What an archive of the log needs: its committed commands, in order, and a way
// back from a state to a cluster.

// ErrCompacted: the commands asked for are in a snapshot by now, and not in the log.
var ErrCompacted = errors.New("the log does not go back that far any more")

// Entry is one committed entry of the log: commands that are applied together.
type Entry struct {
	Index, Term uint64
	Data        []byte // read it with Commands
}

// Commands are the commands of an entry, in order.
func (e Entry) Commands() ([][]byte, error) { return decodeEnvelope(e.Data) }

// Entries returns the entries with commands that follow index after, in order,
// as far as this peer has applied them, until they come to maxBytes, one at
// least. All commands up to index through are among them or before them. With
// nothing new, through is after. Errors: ErrCompacted, ErrNotReady.
func (n *Node) Entries(after uint64, maxBytes int) (list []Entry, through uint64, err error) {
	if n.raft.Load() == nil {
		return nil, after, ErrNotReady
	}
	through = after
	last := n.machine.applied.Load()
	if last <= after {
		return nil, after, nil
	}
	if first, err := n.store.FirstIndex(); err != nil {
		return nil, after, err
	} else if first == 0 || after+1 < first {
		return nil, after, ErrCompacted
	}
	for size := 0; through < last && size < maxBytes; {
		var l raft.Log
		switch err := n.cache.GetLog(through+1, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
			return nil, after, ErrCompacted
		case err != nil:
			return nil, after, err
		}
		through++
		if l.Type == raft.LogCommand {
			list = append(list, Entry{l.Index, l.Term, l.Data})
			size += len(l.Data)
		}
	}
	return list, through, nil
}

// ErrDirExists: a data directory is to be made where something is already.
var ErrDirExists = errors.New("there is something in this directory already")

// Seeding says what a data directory is made of.
type Seeding struct {
	Dir         string // must not exist, or be empty
	ID, Address string // of the peer
	ClusterID   [16]byte
	Incarnation uint64 // one that no peer of this cluster has had
	// Index and Term are where the log goes on: higher than anything that any
	// peer of the cluster can have had, where a state may be older than what was
	// acknowledged.
	Index, Term uint64
	// StateIndex and StateTerm are of the last command that went into State.
	StateIndex, StateTerm uint64
	State                 Snapshot
	Logger                *slog.Logger // default: discard
}

// Seed makes the data directory of a peer that is a cluster of its own, from a
// state that came from elsewhere; other peers join it. The directory appears
// whole or not at all. Errors: ErrDirExists, ErrInvalidChange (the address).
func Seed(ctx context.Context, s Seeding) error {
	if err := validAddress(s.Address); err != nil {
		return err
	}
	if s.ID == "" || s.ClusterID == [16]byte{} || s.Incarnation == 0 || s.Term == 0 || s.Index < s.StateIndex || s.Term < s.StateTerm {
		return fmt.Errorf("%w: a seed without an identity, or whose log ends before its state", ErrInvalidChange)
	}
	if list, err := os.ReadDir(s.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	} else if len(list) > 0 {
		return fmt.Errorf("%w: %s", ErrDirExists, s.Dir)
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	staging := filepath.Clean(s.Dir) + ".seed"
	if err := os.RemoveAll(staging); err != nil { // of an attempt that was cut short
		return err
	}
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return err
	}
	err := s.write(ctx, staging)
	if err == nil {
		err = syncDir(staging)
	}
	if err == nil {
		err = os.Rename(staging, s.Dir) // over an empty directory, too
	}
	if err == nil {
		return syncDir(filepath.Dir(filepath.Clean(s.Dir)))
	}
	_ = os.RemoveAll(staging)
	return fmt.Errorf("make the data of peer %s: %w", s.ID, err)
}

func (s Seeding) write(ctx context.Context, dir string) error {
	snapshots, err := openSnapshots(dir, raftLogger(s.Logger))
	if err != nil {
		return err
	}
	sink, err := seedSink(snapshots, s.ID, s.Address, s.Index, s.Term)
	if err != nil {
		return err
	}
	if err := (&machineSnapshot{state: s.State, index: s.StateIndex, term: s.StateTerm}).Persist(sink); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	log, err := openLog(dir, 1<<62)
	if err != nil {
		return err
	}
	// Else the first leader would begin a term lower than that of what it has.
	err = log.stable.SetUint64(keyTerm, s.Term)
	if err = errors.Join(err, log.bolt.Close()); err != nil {
		return err
	}
	return writeMarker(dir, &peerpb.Marker{Phase: peerpb.Phase_PHASE_STARTED, ClusterId: s.ClusterID[:], Incarnation: s.Incarnation,
		Self: s.ID, Peers: []*peerpb.Member{{Id: s.ID, Address: s.Address}}})
}

// seedSink begins a snapshot of a cluster that has one member.
func seedSink(snapshots raft.SnapshotStore, id, address string, index, term uint64) (raft.SnapshotSink, error) {
	conf := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(address)}}}
	_, encoder := raft.NewInmemTransport("") // writes addresses into a field that only old versions read
	return snapshots.Create(raft.SnapshotVersionMax, index, term, conf, index, encoder)
}
