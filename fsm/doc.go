// Package fsm is the replicated state of a cluster: a deterministic state
// machine over ciphertext, the immutable views that it publishes, and its
// snapshots. It holds no key and knows no name: secrets and policies are filed
// under tokens, keyed hashes made elsewhere.
//
// # Assumes
//
// Apply is given the entries of one Raft log in order, each index once, by one
// goroutine. Whoever proposes has settled everything that is left to chance:
// nonces, times, ids, encryption, and the number of the version that a value is
// sealed under (NextVersion). A write id carries an index that a peer had
// published before the first attempt, and is unchanged in every retry.
//
// # Guarantees
//
//   - Apply is a function of (state, entry): no clock, randomness, map order,
//     regexp or I/O. Machines that applied the same entries give the same result
//     bytes, hashes and views. Nothing is configured per process.
//   - No bytes make Apply or Restore panic; bounds are checked before anything
//     is decoded. A malformed command has the result INVALID. A command of a
//     higher level stops the machine before anything of its entry is applied.
//   - A rejection changes nothing, carries in Result.Current what the writer
//     needs to decide again, and does not enter the write-id window.
//   - An entry becomes visible at once, as one View and one Delta. Views take no
//     lock and never change. What they hand out is shared: nobody may change it.
//   - A transaction changes all of its secrets or none; a rejection names the
//     operation that could not be and carries the present state of every secret
//     named. Its operations name different secrets, so their order decides nothing.
//   - A write id is applied at most once: its result is replayed while it is in
//     the window, and an id that may have left the window is refused.
//   - A snapshot is exactly the state at the view's index. Restore checks all of
//     it, both state hashes included, before it replaces anything.
//
// # Versions of a secret
//
// A put gets the number NextVersion; over the secret's limit the lowest numbers
// go. Delete hides versions and makes the highest live one current; undelete
// brings them back; destroy drops the value and keeps number and times, for
// good; purge removes the secret. These are SPIKE's documented rules (wire
// reference, section 3.1), with destroy and purge added. Two points where it is
// silent: after an undelete, oldest is the lowest live version, and a put to a
// wholly deleted secret makes oldest the version that it wrote.
//
// # Decisions and their cost
//
//   - One counter gives out all revisions and moves with every change, not with
//     every entry: two changes in one entry never look like one, and a revision
//     never returns after purge and re-creation. Costs 8 bytes in the state.
//   - The bounds of the write-id window and all other limits are replicated
//     settings. A flag on one peer would make peers differ. Costs a command to
//     change them.
//   - Trees are copied on write, once per entry: a reader keeps a consistent
//     state for nothing and a snapshot begins in O(1). Costs a copy of about one
//     leaf (1 KiB) per command on random tokens.
//   - The state hashes are sums of record hashes (sum): incremental, and without
//     memory of the order. They find divergence; they do not authenticate.
//     Their input is an encoding of our own, because protobuf promises no stable
//     one. Costs 32 bytes per record and per version for hashes kept.
//   - Records are protobuf messages, the same as in snapshots: no second model.
//     Costs about 100 bytes per message in memory.
//   - Unknown fields are refused instead of ignored: at a given level a command
//     means the same to every build, so a new field always needs a new level.
//   - Sizes are accounted by formula, not measured. The formula is part of the
//     level. Deletions, purges, seals and anchors are never refused for size.
package fsm
