// Package cluster makes several peers agree on one ordered log of opaque
// commands, and lets each of them know when it may answer a read. It is the
// only package that knows of Raft (github.com/hashicorp/raft).
//
// # Assumes
//
// Peers may stop, be cut off and come back at any time, but do not lie: who
// holds a peer's certificate is trusted to follow the protocol. An fsync that
// returns is durable. Clocks only decide how fast a leader is replaced; nothing
// here is decided by the time of day, and no lease is ever read from. What is
// measured is measured on the monotonic clock or in ticks, so that setting a
// clock changes nothing (certificates alone have their hours).
//
// # Guarantees
//
//   - A proposal that Propose acknowledged is on the disks of a majority and was
//     applied exactly once, in the same place on every peer. When Propose cannot
//     tell, it says so (ErrUnknownOutcome); its other errors mean that the
//     command will never be applied. Propose never proposes twice what may have
//     been proposed.
//   - After WaitRead the local state machine shows everything that was
//     acknowledged anywhere before WaitRead was called.
//   - The state machine sees entries in log order, once each in a life of the
//     process; a restart begins with the newest snapshot.
//   - A peer whose log, snapshot or state machine cannot be trusted stops: Done
//     is closed and Err says why. It does not vote or acknowledge meanwhile.
//   - A peer without data takes no part unless the cluster is being formed for
//     the first time, or an operator added it: then it comes in as a learner. A
//     voter that lost its data stays out until it was removed.
//
// # The parts
//
// port.go is the one TCP port: mutual TLS 1.3, then by ALPN Raft (stream.go,
// which adds a hello with the cluster's identity) or gRPC (rpc.go). Who a peer
// is comes from the certificate of the connection; Raft's own "addresses" are
// server ids, so that pools, votes and dials are all by identity, and where a
// peer lives is looked up at each dial.
//
// transport.go replaces the library's heartbeat handler; see there for why.
// install.go receives snapshots before Raft sees them. watchdog.go ends what the
// library does not end by itself.
// store.go keeps the log and checks every entry it reads. machine.go feeds the
// state machine. form.go forms the cluster once, join.go brings later peers in
// and finds out when this one was removed, membership.go and members.go change
// who belongs to the cluster, on whoever leads. queue.go gathers proposals
// into entries, read.go runs read-index rounds, node.go joins all of it and
// stops it in order.
//
// # What the indexes mean
//
// Raft's log also has entries that no state machine sees: elections, barriers,
// configurations. Everything said to callers counts commands only: Applied and
// the index of WaitRead are indexes of commands, and a snapshot carries the
// index of its last command (machine.go), because the library's own snapshot
// index may be that of a barrier and a peer restored there would disagree with
// one that applied the log. The library's AppliedIndex is not used: it counts
// what was handed to the state machine, not what has come out.
//
// # Decisions, and what they cost
//
//   - Heartbeats go through the library's main loop, with a responder for when
//     the loop is busy. Cost: a goroutine hop per Raft message, and a follower
//     with a hung disk looks alive to its leader, until its watchdog stops it.
//   - No pipelining (MaxRPCsInFlight 1): its deadlocks cost more than it gives on
//     a local network. Cost: throughput over links with long round trips.
//   - Our own read-index round, one per group of callers, rather than leader
//     leases or VerifyLeader, neither of which proves anything about now. Cost:
//     a round trip to the nearest other voter, two from a follower.
//   - A barrier when a reading follower lags on an idle cluster. Cost: an fsync
//     on a majority for such a read, instead of waiting out the commit timeout.
//   - Up to 256 commands share an entry, and two entries are under way. Cost: a
//     command may wait for the two before it; a lone one does not.
//   - Every entry is read and hashed at start. Cost: about a second per gigabyte
//     of log, which the snapshot threshold keeps far smaller.
//   - Damage ends the goroutine of the library that met it (store.go), because
//     the library would panic or go on. Cost: one may not hold a lock around a
//     call into the stores; the library does not.
//   - Snapshots by bytes, not by entries; about as many bytes of older entries
//     stay for followers that lag, and at least 64 entries. Cost: up to twice
//     the threshold on disk, and with commands of megabytes more than that.
//   - Retrying is inside: Propose and WaitRead wait for a leader as long as their
//     context allows. Cost: a caller without a deadline waits Timing.Patience.
package cluster
