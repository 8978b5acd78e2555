// Package snapshot keeps archives of a cluster in buckets: snapshots of the whole state, segments of the committed log
// between them, closed files of the peers' audit logs, and the keyring that opens them all; and reads them back.
//
// A bucket holds, below a prefix of the operator's choice, immutable objects under these names:
//
//	v1/<cluster id>/<incarnation>/snapshot/<last>-<term>
//	v1/<cluster id>/<incarnation>/log/<first>-<last>
//	v1/<cluster id>/<incarnation>/keyring/<index>-<first 8 digits of its hash>
//	v1/<cluster id>/<incarnation>/claim
//	v1/<cluster id>/<incarnation>/audit/<peer>/<first>-<last>
//
// numbers in 20 digits, so that the order of names is that of the log. Each begins with a readable header (which cluster, which
// part of its log, when, by whom) and goes on with a stream that is encrypted and authenticated under the keyring's archive
// key, the header included. So an object is believed for what its header says or not at all, wherever it lies; and nothing but the header
// is readable without the root key. The keyring itself is under the root key alone: restoring takes the newest one, its shares, and any
// archive. A claim says who begins the incarnation, and is authenticated by nothing (claim.go). An audit object has the bytes of one closed file of
// a peer's audit log, which holds records first to last (auditlog.go).
//
// Committed entries never differ between peers, so it does no harm when two peers ship at once: the ranges they write may
// overlap, and a reader takes any that go on where it is.
//
// The package assumes a Bucket that stores an object whole or not at all, and nothing else: not that lists are fresh, nor
// that the store is honest. It guarantees that what it reads back is what a holder of the archive key wrote, complete from a snapshot to
// the index asked for, or an error that names the object. It imports no other package of ours; keys and state come as
// small interfaces.
package snapshot
