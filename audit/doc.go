// Package audit keeps a durable, tamper-evident record of each decision.
//
// A Log is a directory of JSON-lines files. Each line carries the SHA-256 of
// the line before it, across files too, so an edited, missing or exchanged line
// or file breaks the chain; the newest head and count are anchored in the
// replicated state (by node), so that cutting the tail shows as well. Verify
// checks all of that without any key.
//
// Assumes: one process per directory; the caller hands over paths already
// hashed, unless the operator chose clear ones; nobody passes values.
// Guarantees: when Append returns nil the record was given to the operating
// system, and with durable it was also fsynced; a record that could not be
// written is an error, so that no answer leaves without it. A failed write is
// retried by the next Append; after a failed fsync the log refuses everything
// until the process is restarted, because the kernel may have dropped the
// pages it could not write; Open writes the newest file anew.
//
// Decision: records are chained by hash rather than signed. A thief of the disk
// who also controls the cluster's leader could rewrite both chain and anchor;
// the cost of a signature per record is not worth that narrow case.
package audit
