// Package store is the door to everything: each operation of SPIKE HA is spelled
// here, in one order: view → authorise → audit → act.
//
// A read establishes the read index, takes the view published at or after it
// and both authorises and reads on that one view. A change is decided on the
// present view and carries what it was decided on; when the state machine finds
// that any of it has moved, the change is decided again with the values that
// came with the rejection. A negative answer (denied, missing, conflict) is
// given only after a read-index round, because the present view may be old.
// The newest changes are published along with all else; a watch is a read of
// them, decided anew for each batch (watch.go).
//
// The surfaces (package api) decode and encode; they cannot forget to authorise
// or to audit, because there is no other way in.
//
// Assumes of its collaborators what the interfaces Log, Keys, Recorder and
// Operator say. Keeps no durable state: the path index and the compiled
// policies are derived from the replicated records while this process is
// unsealed, and published together with the view they belong to.
//
// Decisions: the publication happens inside the state machine's Apply, so
// "applied" and "published" are one index and nothing can be read between them;
// the cost is one decryption per new name on the apply path. Writers to one path
// queue on each peer rather than race; the cost is that one slow writer delays
// the others of that path, never those of another.
package store
