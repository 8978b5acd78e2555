// Package planted holds defects on purpose, so that tests/jepsen can show that
// it finds such. Programs are built with the tag planted for it, and have the
// one that SPIKE_PLANTED names; in every other build Is is a constant that the
// compiler removes with what hangs on it, and the environment is not read.
package planted

// Defect is a promise that is not kept.
type Defect string

// The defects, each of a kind that shipped somewhere.
const (
	ReadWithoutRound  Defect = "read-without-round"  // a peer answers from what it has applied itself
	LeaderUnasked     Defect = "leader-unasked"      // a leader takes itself for the leader without asking the voters
	VerifyLeader      Defect = "verify-leader"       // a leader asks by the library's VerifyLeader, which counts learners
	HeartbeatFastPath Defect = "heartbeat-fast-path" // the library answers heartbeats: hashicorp/raft#695
	CachedDecision    Defect = "cached-decision"     // who was allowed once stays allowed for a while
	OlderPolicies     Defect = "older-policies"      // who may do what is decided by the policies of the publication before the one whose data is read
	NoWriteIDs        Defect = "no-write-ids"        // a retried write is applied again
	LostWrite         Defect = "lost-write"          // a write that another one came before is acknowledged, and dropped
	KeysStay          Defect = "keys-stay"           // a peer goes on serving when an operator seals the cluster
	NoFsync           Defect = "no-fsync"            // a peer acknowledges what is only in the memory of the operating system
)

// All lists every defect.
var All = []Defect{ReadWithoutRound, LeaderUnasked, VerifyLeader, HeartbeatFastPath, CachedDecision, OlderPolicies, NoWriteIDs, LostWrite, KeysStay, NoFsync}
