package cluster

import (
	"errors"
	"fmt"
)

// Errors of Propose, WaitRead and Call. Test with errors.Is; they arrive
// wrapped with the particulars.
var (
	// ErrNoLeader: no leader is known within the caller's time. A proposal that
	// fails so was certainly not proposed.
	ErrNoLeader = errors.New("the cluster has no leader now; try again")
	// ErrNotReady: this peer (or the leader) cannot serve yet: forming, stopping,
	// a leader that has not committed in its term, a read round without a
	// majority. A proposal that fails so was certainly not proposed.
	ErrNotReady = errors.New("the cluster is not ready; try again")
	// ErrOverloaded: the queue of proposals is full. Certainly not proposed.
	ErrOverloaded = errors.New("too many proposals wait already; slow down and try again")
	// ErrTooLarge: over a size limit; trying again does not help. Certainly not
	// proposed.
	ErrTooLarge = errors.New("larger than the limit")
	// ErrUnknownOutcome: the proposal was handed over and its fate is not known:
	// it may be applied now, later or never.
	ErrUnknownOutcome = errors.New("the outcome is unknown: it may or may not take effect; read before trying again")
	// ErrStopped: this peer has been shut down. Certainly not proposed.
	ErrStopped = errors.New("this peer has stopped")
	// ErrUnknownPeer: no member has this id.
	ErrUnknownPeer = errors.New("no such peer in this cluster")
	// ErrNoHandler: the called peer knows no RPC of this kind.
	ErrNoHandler = errors.New("the peer knows no such call")
)

// comeBack is how a peer whose data is of no use becomes a member again. The audit
// log beside that data is held against the cluster's anchor, and must stay.
const comeBack = "remove raft/ in its data directory, keep audit/, start it and take it in again: 'spikectl cluster remove', if it is a member still, then 'cluster join'"

// Errors of Start and of the data directory.
var (
	// ErrDirInUse: another process has the data directory locked.
	ErrDirInUse = errors.New("the data directory is in use by another process")
	// ErrForeignData: the data belongs to another peer or another cluster.
	ErrForeignData = errors.New("the data belongs to another peer or cluster")
	// ErrNewerFormat: written by a newer version of this software.
	ErrNewerFormat = errors.New("the data was written by a newer version; run that version, or " + comeBack)
	// ErrCorruptMarker: the marker file is damaged.
	ErrCorruptMarker = errors.New("the cluster marker of this peer is damaged: " + comeBack)
	// ErrCorruptSnapshot: the newest snapshot cannot be read back.
	ErrCorruptSnapshot = errors.New("the newest snapshot of this peer is damaged: " + comeBack)
	// ErrLostData: the marker says that this peer has voted, but its Raft data
	// is gone. Without it the peer could vote twice, so it must not start.
	ErrLostData = errors.New("the Raft data of this peer is gone: " + comeBack)
	// ErrWiped: this peer is empty, but the others have formed the cluster with
	// it: it lost its data. An operator removes it and adds it again, as a learner.
	ErrWiped = errors.New("this peer lost its data: the others have formed the cluster already: " + comeBack)
	// ErrDiskHangs: a write to the Raft log did not come back in Timing.Disk.
	ErrDiskHangs = errors.New("the disk of the Raft log hangs; this peer stops so that another can lead: look at the disk, then start it again")
	// ErrNoProgress: Raft on this peer does not move although it could. To be
	// started again; its data is whole.
	ErrNoProgress = errors.New("this peer makes no progress and must be started again")
	// ErrPeersDiffer: two peers were configured with different lists of peers.
	ErrPeersDiffer = errors.New("the peers are configured with different lists of peers; make them identical")
	// ErrRecovering: recovery was begun on this data and did not come to its end.
	ErrRecovering = errors.New("the recovery of this peer was interrupted; run the same 'spikectl cluster recover' again")
	// ErrSuperseded: an operator recovered the cluster without this peer.
	ErrSuperseded = errors.New("the cluster was recovered from another peer, and what this one holds is of the time before: " + comeBack)
	// ErrRemoved: this peer is no longer a member.
	ErrRemoved = errors.New("this peer was removed from the cluster")
	// ErrWrongPeer: the other side of a connection is not who it should be.
	ErrWrongPeer = errors.New("the other side is not the expected peer")
)

// ErrCorruptLog is returned by Start, and found in Err after a fail-stop, when
// an entry of the Raft log does not match its checksum or is missing.
type ErrCorruptLog struct {
	File   string
	Index  uint64
	Detail string
}

func (e *ErrCorruptLog) Error() string {
	return fmt.Sprintf("the Raft log %s is damaged at index %d (%s): the other peers hold the same data; %s",
		e.File, e.Index, e.Detail, comeBack)
}

// RemoteError is what a handler of another peer answered to Call.
type RemoteError struct {
	Peer, Kind, Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("peer %s refused %q: %s", e.Peer, e.Kind, e.Message)
}
