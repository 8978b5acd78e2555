package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Format is the version of the record format; Verify refuses newer ones.
const Format = 1

// Phases of an operation.
const (
	PhaseDecision = "decision" // a read, or a refusal: recorded once
	PhaseIntent   = "intent"   // a change is about to be proposed
	PhaseOutcome  = "outcome"  // what became of it, with its Raft index
)

// Decisions.
const (
	Allow  = "allow"
	Deny   = "deny"   // the caller may not
	Refuse = "refuse" // nobody may now: sealed, not ready, invalid
)

// Operations of the log itself.
const (
	OpFile  = "audit.file"  // the first record of each file
	OpBreak = "audit.break" // the chain restarts: see Detail
)

// Record is one line. Seq, Time, Peer and Prev are set by the Log.
type Record struct {
	Seq      uint64    `json:"seq"` // from 1, without gaps: also the count of records so far
	Time     time.Time `json:"time"`
	Peer     string    `json:"peer"`
	Request  string    `json:"request,omitempty"` // request id, as answered to the caller
	Caller   string    `json:"caller,omitempty"`  // SPIFFE id
	Op       string    `json:"op"`                // "secret.get", "policy.put", …
	Phase    string    `json:"phase,omitempty"`
	Path     string    `json:"path,omitempty"` // "hmac:…", or clear by choice; absent while sealed
	Decision string    `json:"decision,omitempty"`
	By       string    `json:"by,omitempty"`      // the role or the hashed policy that allowed it
	Result   string    `json:"result,omitempty"`  // outcome: "ok" or an error code
	Version  uint64    `json:"version,omitempty"` // outcome of a write: the version
	Index    uint64    `json:"index,omitempty"`   // Raft index: of the view decided on, or of the change
	Detail   string    `json:"detail,omitempty"`  // of the log's own records; which member was changed
	Format   int       `json:"format,omitempty"`  // in OpFile records
	Prev     string    `json:"prev"`              // hex SHA-256 of the previous line, without its newline
}

// Anchor names a point of a chain: after Count records its head was Head.
type Anchor struct {
	Count uint64
	Head  [sha256.Size]byte
}

// String is "count:head", as commands take and print it.
func (a Anchor) String() string { return uitoa(a.Count) + ":" + hex.EncodeToString(a.Head[:]) }
