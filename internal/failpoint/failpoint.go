// Package failpoint lets a test kill a process at a named step, to see that the same command completes what the
// crash cut short. Programs are built with the tag failpoints for it; in every other build Hit is an empty function
// that the compiler inlines away, and the environment is not read.
//
// With the tag, SPIKE_FAILPOINT=name[@n] has the process kill itself, by SIGKILL, the n-th time (the first, without
// n) that it reaches the step: no deferred function runs, nothing is flushed. Several are separated by commas. With
// SPIKE_FAILPOINT=@FILE it looks into that file at each step, and removes it when it dies of it, so that a process can
// be told while it runs, and lives when it is started again. "freeze NAME" in the file has it stop there, as SIGSTOP
// does, until it is sent SIGCONT, and go on.
package failpoint

// Name is a step at which a process can be killed. What a name says happened "before" has not begun, and what it
// says happened "after" is done as far as this process knows.
type Name string

// Freeze stands before a step in the file when the process is to freeze there rather than to die.
const Freeze = "freeze "

// The steps of giving a cluster its share set: init and rekey run the same ones.
const (
	SealBeginBefore  Name = "seal.begin.before"  // the share set is not in the log
	SealBeginAfter   Name = "seal.begin.after"   // it is pending, and no Keeper has a share
	SealPlaceOne     Name = "seal.place.one"     // one more Keeper has its share and gave it back
	SealPlaceAfter   Name = "seal.place.after"   // all Keepers have theirs
	SealCommitBefore Name = "seal.commit.before" // the new keyring is sealed, and not in the log
	SealCommitAfter  Name = "seal.commit.after"  // set and keyring are in the log, and no Keeper knows it
	SealSettleAfter  Name = "seal.settle.after"  // the Keepers know that their share is the current one
	SealAbandon      Name = "seal.abandon"       // a failed rekey is about to take its pending set back
)

// The steps of a rotation, by command, by age or after a rekey.
const (
	SealReplaceBefore Name = "seal.replace.before" // the keyring with the new (or the archived) keys is not in the log
	SealReplaceAfter  Name = "seal.replace.after"  // it is
	NodeResealBefore  Name = "node.reseal.before"  // a batch is encrypted anew, and not in the log
	NodeResealAfter   Name = "node.reseal.after"   // it is
	NodeArchiveBefore Name = "node.archive.before" // nothing uses the retired keys, and live peers still have them
)

// The steps of keeping Keepers full, of restoring from recovery shares, and of an operator's seal and unseal.
const (
	SealRefillBefore     Name = "seal.refill.before"     // the leader is about to look at the Keepers
	SealRefillAfter      Name = "seal.refill.after"      // it gave those that lacked theirs their shares
	SealRestoreCollected Name = "seal.restore.collected" // a threshold of recovery shares is there, and the root key is not
	SealRestoreUnsealed  Name = "seal.restore.unsealed"  // this peer is unsealed by them, and no Keeper has a share
	NodeSealBefore       Name = "node.seal.before"       // the operator's seal is not in the log
	NodeSealAfter        Name = "node.seal.after"        // it is, and is not acknowledged
	NodeUnsealBefore     Name = "node.unseal.before"     // the operator's unseal is not in the log
	NodeUnsealAfter      Name = "node.unseal.after"      // it is, and is not acknowledged
)

// The steps of a restore into the running cluster.
const (
	NodeRestoreBegin        Name = "node.restore.begin"         // the staging area is in the log, and empty
	NodeRestoreChunk        Name = "node.restore.chunk"         // one more chunk is in it
	NodeRestoreCommitBefore Name = "node.restore.commit.before" // all is staged, and the state is the one of before
	NodeRestoreCommitAfter  Name = "node.restore.commit.after"  // what was staged is the state, and that is not acknowledged
)

// The steps of a Keeper.
const (
	KeeperPlaceBefore  Name = "keeper.place.before"  // a share arrived, and is not held
	KeeperPlaceAfter   Name = "keeper.place.after"   // it is held, and not acknowledged
	KeeperFetchBefore  Name = "keeper.fetch.before"  // a share was asked for
	KeeperSettleBefore Name = "keeper.settle.before" // the older share is still held
	KeeperSettleAfter  Name = "keeper.settle.after"  // it is dropped, and that is not acknowledged
)

// The steps of replication.
const (
	ClusterLogBefore      Name = "cluster.log.before"      // entries are about to be written to the log
	ClusterLogAfter       Name = "cluster.log.after"       // they are synced
	ClusterVoteBefore     Name = "cluster.vote.before"     // a term or a vote is about to be written
	ClusterVoteAfter      Name = "cluster.vote.after"      // it is synced, and nobody has been told
	ClusterApplyBefore    Name = "cluster.apply.before"    // a committed entry is about to be applied
	ClusterApplyAfter     Name = "cluster.apply.after"     // it is applied, and its proposer does not know
	ClusterSnapshotBefore Name = "cluster.snapshot.before" // a snapshot is about to be written
	ClusterSnapshotAfter  Name = "cluster.snapshot.after"  // it is written, and neither synced nor in its place
	ClusterRestoreBefore  Name = "cluster.restore.before"  // a snapshot is about to be read, at a start or from the leader
	ClusterRestoreAfter   Name = "cluster.restore.after"   // it is the state
)

// The steps of a read.
const (
	ClusterReadConfirmed Name = "cluster.read.confirmed" // a majority is in the leader's term, and no answer has left
	ClusterReadApplied   Name = "cluster.read.applied"   // a peer has applied the read index, and has not read
)

// The steps of shipping to the archive.
const (
	SnapshotPutBefore Name = "snapshot.put.before" // an object is about to be put
	SnapshotPutAfter  Name = "snapshot.put.after"  // it is there, and this process does not know
)

// The steps of a cluster that begins from its archive.
const (
	ClusterColdClaimed Name = "cluster.cold.claimed" // the incarnation is claimed, and nothing of the state is here
	ClusterColdSeeded  Name = "cluster.cold.seeded"  // the state is here, and Raft has not run
	ClusterColdTakeIn  Name = "cluster.cold.takein"  // Raft runs, and the other peers are not all taken in
)

// All lists every step. Every one of them is reached by a test.
var All = []Name{
	SealBeginBefore, SealBeginAfter, SealPlaceOne, SealPlaceAfter, SealCommitBefore, SealCommitAfter, SealSettleAfter, SealAbandon,
	SealReplaceBefore, SealReplaceAfter, NodeResealBefore, NodeResealAfter, NodeArchiveBefore,
	SealRefillBefore, SealRefillAfter, SealRestoreCollected, SealRestoreUnsealed,
	NodeSealBefore, NodeSealAfter, NodeUnsealBefore, NodeUnsealAfter,
	NodeRestoreBegin, NodeRestoreChunk, NodeRestoreCommitBefore, NodeRestoreCommitAfter,
	KeeperPlaceBefore, KeeperPlaceAfter, KeeperFetchBefore, KeeperSettleBefore, KeeperSettleAfter,
	ClusterLogBefore, ClusterLogAfter, ClusterVoteBefore, ClusterVoteAfter, ClusterApplyBefore, ClusterApplyAfter,
	ClusterSnapshotBefore, ClusterSnapshotAfter, ClusterRestoreBefore, ClusterRestoreAfter,
	ClusterReadConfirmed, ClusterReadApplied, SnapshotPutBefore, SnapshotPutAfter,
	ClusterColdClaimed, ClusterColdSeeded, ClusterColdTakeIn,
}
