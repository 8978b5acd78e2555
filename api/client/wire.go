package client

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// Headers of native and SPIKE routes alike.
const (
	// HeaderRequestID carries the request id that the audit records have.
	HeaderRequestID = "Spike-Request-Id"
	// HeaderIndex carries the Raft index that the answering peer had published; in
	// requests, beside HeaderIdempotencyKey, one that the client saw before its
	// first attempt.
	HeaderIndex = "Spike-Index"
	// HeaderWriteID carries, in requests that change something, 32 hexadecimal
	// digits that stay the same over all attempts, a dot, and an index that the
	// client saw in an answer before its first attempt (0 when it saw none, which
	// is right on the first attempt only).
	HeaderWriteID = "Spike-Write-Id"
	// HeaderIdempotencyKey carries, in place of HeaderWriteID, a name of the
	// client's own for one change: 1 to 128 printable ASCII characters.
	HeaderIdempotencyKey = "Idempotency-Key"
	// HeaderTimeout carries, in requests, for how many milliseconds the peer may
	// work on it, if that is less than it would anyway. A client that waits a
	// little longer than that hears what became of it.
	HeaderTimeout = "Spike-Timeout"
)

// Headers of consistency, native and SPIKE routes alike.
const (
	// HeaderToken carries, in every answer of a peer that has its keys, what the
	// answer stands on, and in reads of level AtIndex what the answer must
	// stand on at least. Opaque, and of no use to another cluster.
	HeaderToken = "Spike-Index-Token"
	// HeaderConsistency asks for a level: Linearizable, which is the default, or AtIndex.
	HeaderConsistency = "Spike-Consistency"

	Linearizable = "linearizable"
	AtIndex      = "index"
)

// Routes of the native API. All but health, status and settings are POST with a JSON
// object: names of secrets are secrets too, and a body, unlike a URL, ends up in
// no log on the way.
const (
	RouteSecretPut      = "/v1/secrets/put"
	RouteSecretGet      = "/v1/secrets/get"
	RouteSecretList     = "/v1/secrets/list"
	RouteSecretDelete   = "/v1/secrets/delete"
	RouteSecretUndelete = "/v1/secrets/undelete"
	RouteSecretDestroy  = "/v1/secrets/destroy"
	RouteSecretPurge    = "/v1/secrets/purge"
	RouteSecretMetadata = "/v1/secrets/metadata"
	RouteSecretTransact = "/v1/secrets/transact"
	RouteSecretWatch    = "/v1/secrets/watch"
	RoutePolicyPut      = "/v1/policies/put"
	RoutePolicyGet      = "/v1/policies/get"
	RoutePolicyDelete   = "/v1/policies/delete"
	RoutePolicyList     = "/v1/policies/list"
	RouteCipherEncrypt  = "/v1/cipher/stream/encrypt" // bytes in, bytes out, of any length
	RouteCipherDecrypt  = "/v1/cipher/stream/decrypt"
	RouteInit           = "/v1/sys/init"
	RouteSettings       = "/v1/sys/settings" // GET
	RouteSettingsPut    = "/v1/sys/settings/put"
	RouteHealth         = "/v1/sys/health" // GET
	RouteStatus         = "/v1/sys/status" // GET
	RouteRecover        = "/v1/sys/recover"
	RouteRestore        = "/v1/sys/restore"
	RouteSeal           = "/v1/sys/seal"
	RouteUnseal         = "/v1/sys/unseal"
	RouteMemberAdd      = "/v1/sys/members/add"
	RouteMemberPromote  = "/v1/sys/members/promote"
	RouteMemberDemote   = "/v1/sys/members/demote"
	RouteMemberRemove   = "/v1/sys/members/remove"
	RouteMemberTransfer = "/v1/sys/members/transfer"
	RouteMemberDrain    = "/v1/sys/members/drain"
	RouteMemberUndrain  = "/v1/sys/members/undrain"
	RouteKeys           = "/v1/sys/keys" // GET
	RouteKeyRotate      = "/v1/sys/keys/rotate"
	RouteKeyPrune       = "/v1/sys/keys/prune"
	RouteKeyRekey       = "/v1/sys/keys/rekey"
	RouteKeyRekeyCancel = "/v1/sys/keys/rekey/cancel"

	// RoutesOfOperators begin with this; a drained peer answers them still.
	RoutesOfOperators = "/v1/sys/"
)

// Routes of the SPIKE protocol; the operation is the query parameter "action".
const (
	WireSecrets  = "/v1/store/secrets"
	WireMetadata = "/v1/store/secrets/metadata"
	WirePolicy   = "/v1/acl/policy"
	WireEncrypt  = "/v1/cipher/encrypt"
	WireDecrypt  = "/v1/cipher/decrypt"
	WireRecover  = "/v1/operator/recover"
	WireRestore  = "/v1/operator/restore"
	WireVerify   = "/v1/bootstrap/verify"
)

// Failure is the body of a native answer that is not 200.
type Failure struct {
	Code    secret.Code    `json:"code"`
	Message string         `json:"message"`
	Reason  string         `json:"reason,omitempty"`
	Current secret.Version `json:"currentVersion,omitempty"` // of a conflict
	// Operation is which operation of a transaction could not be, from 1.
	Operation int    `json:"operation,omitempty"`
	Request   string `json:"requestId,omitempty"`
}

// PutRequest asks to write the next version of a secret.
type PutRequest struct {
	Path   string            `json:"path"`
	Values map[string]string `json:"values"`
	// ExpectedVersion, when given, must be the current version (0: none is live).
	ExpectedVersion *secret.Version `json:"expectedVersion,omitempty"`
}

// ChangeAnswer says what a change came to.
type ChangeAnswer struct {
	Version  secret.Version   `json:"version,omitempty"`
	Versions []secret.Version `json:"versions,omitempty"`
	Index    uint64           `json:"index"`
}

// PathRequest names a secret and, where it makes sense, one version.
type PathRequest struct {
	Path    string         `json:"path"`
	Version secret.Version `json:"version,omitempty"`
}

// VersionsRequest names versions of a secret.
type VersionsRequest struct {
	Path     string           `json:"path"`
	Versions []secret.Version `json:"versions"`
}

// Operation is one change of a transaction. Op is "put", "delete", "destroy" or
// "purge".
type Operation struct {
	Op     string            `json:"op"`
	Path   string            `json:"path"`
	Values map[string]string `json:"values,omitempty"` // of a put
	// Versions are what delete (none: the current one) and destroy are about.
	Versions []secret.Version `json:"versions,omitempty"`
	// ExpectedVersion, when given, must be the current version (0: none is live).
	ExpectedVersion *secret.Version `json:"expectedVersion,omitempty"`
}

// TransactRequest asks for all of the operations or none: at most 64, on as many
// secrets, with at most 1 MiB of values.
type TransactRequest struct {
	Operations []Operation `json:"operations"`
}

// TransactAnswer has one result per operation, in order.
type TransactAnswer struct {
	Operations []OperationAnswer `json:"operations"`
	Index      uint64            `json:"index"`
}

// OperationAnswer says what one operation came to.
type OperationAnswer struct {
	Op       string           `json:"op"`
	Path     string           `json:"path"`
	Version  secret.Version   `json:"version,omitempty"`
	Versions []secret.Version `json:"versions,omitempty"`
}

// SecretAnswer is one version of a secret.
type SecretAnswer struct {
	Values  json.RawMessage `json:"values"` // an object of strings
	Version secret.Version  `json:"version"`
	Created time.Time       `json:"createdTime"`
	Index   uint64          `json:"index"`
}

// ListRequest asks for the paths that begin with Prefix.
type ListRequest struct {
	Prefix string `json:"prefix"`
}

// ListAnswer lists paths, sorted.
type ListAnswer struct {
	Keys  []string `json:"keys"`
	Index uint64   `json:"index"`
}

// WatchRequest asks for changes of the secret at Path, or of all whose paths begin
// with Prefix (all there are, when both are empty).
type WatchRequest struct {
	Path   string `json:"path,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	// After is the index after which changes are wanted: that of any answer of the
	// cluster. 0: from now on.
	After uint64 `json:"after,omitempty"`
	// Incarnation is that of the WatchAnswer that After is from; 0: not checked.
	Incarnation uint64 `json:"incarnation,omitempty"`
	// WaitSeconds is how long to wait while there is no change; more than 20 is 20.
	WaitSeconds uint32 `json:"waitSeconds,omitempty"`
}

// WatchAnswer has all changes after the index asked for, up to Index: whole
// entries of the log, in its order. There may be none. The next request goes on
// after Index, at any peer.
type WatchAnswer struct {
	Events      []Event `json:"events"`
	Index       uint64  `json:"index"`
	Incarnation uint64  `json:"incarnation"`
}

// Event is one change of a secret, without its values. Several may have one
// index: they took effect at once, in the order in which they are listed.
type Event struct {
	Index    uint64           `json:"index"`
	Time     time.Time        `json:"time"` // of the peer that was asked for the change
	Kind     string           `json:"kind"` // "put", "deleted", "undeleted", "destroyed", "purged"
	Path     string           `json:"path"`
	Versions []secret.Version `json:"versions,omitempty"` // that were changed; all of them when purged
}

// MetadataAnswer describes a secret and all its versions.
type MetadataAnswer struct {
	CurrentVersion secret.Version  `json:"currentVersion"`
	OldestVersion  secret.Version  `json:"oldestVersion"`
	Created        time.Time       `json:"createdTime"`
	Updated        time.Time       `json:"updatedTime"`
	MaxVersions    int             `json:"maxVersions"`
	Versions       []VersionAnswer `json:"versions"`
	Index          uint64          `json:"index"`
}

// VersionAnswer describes one version.
type VersionAnswer struct {
	Version   secret.Version `json:"version"`
	Created   time.Time      `json:"createdTime"`
	Deleted   *time.Time     `json:"deletedTime"`
	Destroyed bool           `json:"destroyed"`
}

// Policy is a policy in requests and answers; the times only in answers.
type Policy struct {
	Name        string         `json:"name" yaml:"name"`
	SPIFFEID    secret.Pattern `json:"spiffeId" yaml:"spiffeId"`
	Path        secret.Pattern `json:"path" yaml:"path"`
	Permissions []string       `json:"permissions" yaml:"permissions"`
	Created     *time.Time     `json:"createdTime,omitempty" yaml:"-"`
	Updated     *time.Time     `json:"updatedTime,omitempty" yaml:"-"`
}

// NameRequest names a policy.
type NameRequest struct {
	Name string `json:"name"`
}

// PoliciesAnswer lists policies, sorted by name.
type PoliciesAnswer struct {
	Policies []Policy `json:"policies"`
}

// InitRequest asks to give a new cluster its root key. Shares and Threshold: 0
// means as many as Keepers, and more than half.
type InitRequest struct {
	Shares           int  `json:"shares"`
	Threshold        int  `json:"threshold"`
	AllowSingleShare bool `json:"allowSingleShare,omitempty"` // a threshold of 1 with more than one share
}

// Settings hold for the whole cluster.
type Settings struct {
	MaxVersions     uint32 `json:"maxVersions"` // of secrets created from now on
	StateLimitBytes uint64 `json:"stateLimitBytes"`
	WireRecovery    bool   `json:"wireRecovery"` // recovery shares in the clear on the SPIKE wire
	IndexReads      bool   `json:"indexReads"`   // reads of level "index"
	Index           uint64 `json:"index"`

	// Of the archive: 'spikectl snapshot schedule'.
	ArchiveSnapshotSeconds uint64    `json:"archiveSnapshotSeconds"` // 0: as each peer is configured
	ArchiveDrillSeconds    uint64    `json:"archiveDrillSeconds"`    // 0: never
	Retention              Retention `json:"retention"`
}

// SettingsRequest names the settings to change.
type SettingsRequest struct {
	MaxVersions     *uint32 `json:"maxVersions,omitempty"`
	StateLimitBytes *uint64 `json:"stateLimitBytes,omitempty"`
	WireRecovery    *bool   `json:"wireRecovery,omitempty"`
	IndexReads      *bool   `json:"indexReads,omitempty"`

	ArchiveSnapshotSeconds *uint64 `json:"archiveSnapshotSeconds,omitempty"`
	ArchiveDrillSeconds    *uint64 `json:"archiveDrillSeconds,omitempty"`
	KeepHourly             *uint32 `json:"keepHourly,omitempty"`
	KeepDaily              *uint32 `json:"keepDaily,omitempty"`
	KeepWeekly             *uint32 `json:"keepWeekly,omitempty"`
	KeepMonthly            *uint32 `json:"keepMonthly,omitempty"`
	KeepMinimum            *uint32 `json:"keepMinimum,omitempty"`
}

// Reasons of a conflict that pass with time.
const (
	ReasonNotCaughtUp    = "not_caught_up"    // a learner that is to be promoted lags
	ReasonDraining       = "draining"         // the peer that was asked is being drained
	ReasonChangeUnderWay = "change_under_way" // somebody else changes the members
)

// ReasonRemoved: the peer is no member of the cluster any more.
const ReasonRemoved = "removed"

// ReasonNoSuchHost says that no peer was asked, because its name does not resolve.
const ReasonNoSuchHost = "no_such_host"

// MemberRequest names a member, or in a transfer the next leader ("": any voter).
type MemberRequest struct {
	ID string `json:"id"`
}

// RecoverRequest asks for all shares of the root key, each encrypted to one of
// the recipients in turn: public keys of age, native or hybrid. When a single
// recipient would get enough shares for the root key, OneHolder has to allow it.
type RecoverRequest struct {
	Recipients []string `json:"recipients"`
	OneHolder  bool     `json:"oneHolder,omitempty"`
}

// RecoverAnswer holds the recovery files, in the order of their shares.
type RecoverAnswer struct {
	Files []RecoveryFile `json:"files"`
}

// RecoveryFile is the file of one share.
type RecoveryFile struct {
	Share   int    `json:"share"` // its number, from 1
	Name    string `json:"name"`
	For     string `json:"for"`
	Content string `json:"content"`
}

// RestoreRequest gives one share back. Cluster and Set, ids of 16 bytes, say what
// it is a share of, where that is known.
type RestoreRequest struct {
	Index   int    `json:"index"`
	Share   []byte `json:"share"`
	Cluster []byte `json:"cluster,omitempty"`
	Set     []byte `json:"set,omitempty"`
}

// String keeps the share out of logs.
func (r RestoreRequest) String() string { return fmt.Sprintf("share %d (withheld)", r.Index) }

// GoString keeps the share out of logs.
func (r RestoreRequest) GoString() string { return r.String() }

// ArchiveStatus is how far the archive is.
type ArchiveStatus struct {
	Active        bool      `json:"active"`        // this peer ships
	Location      string    `json:"location"`      // without options and credentials
	Shipped       uint64    `json:"shipped"`       // all up to this index is there
	BehindSeconds float64   `json:"behindSeconds"` // how old the oldest change is that is not there: what would be lost now
	Snapshot      uint64    `json:"snapshot"`      // index of the newest snapshot; 0: none is known
	SnapshotTime  time.Time `json:"snapshotTime"`
	Error         string    `json:"error,omitempty"` // of the last attempt, until one succeeds
	Since         time.Time `json:"since"`           // when an attempt succeeded last

	SnapshotSeconds float64 `json:"snapshotSeconds"`  // age at which the newest snapshot has a successor
	Pruned          *Pruned `json:"pruned,omitempty"` // what retention did last, as long as this peer leads

	Audit *AuditArchive `json:"audit,omitempty"` // this peer's own audit log; nil until it had its keys
}

// AuditArchive is how a peer's audit log stands in the archive.
type AuditArchive struct {
	Waiting int       `json:"waiting"`         // closed files that are not there yet
	Error   string    `json:"error,omitempty"` // of the last attempt, until one succeeds
	Since   time.Time `json:"since"`           // when an attempt succeeded last
}

// RestoreAnswer says how far a restore has come.
type RestoreAnswer struct {
	Collected int   `json:"collected"`
	Remaining int   `json:"remaining"`
	Given     []int `json:"given"` // numbers of the shares collected so far
	Restored  bool  `json:"restored"`
}

// PruneKeysRequest says which archived keys to drop: those that left the live
// peers before then.
type PruneKeysRequest struct {
	Before time.Time `json:"before"`
}

// PruneKeysAnswer says how many there were.
type PruneKeysAnswer struct {
	Pruned int `json:"pruned"`
}

// SealRequest names the peer to seal or unseal; empty: the cluster.
type SealRequest struct {
	Peer string `json:"peer,omitempty"`
}

// AddMemberRequest names a peer that is to join, and its peer port.
type AddMemberRequest struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

// Health is what one peer says of itself, to any trusted identity.
type Health struct {
	Peer        string `json:"peer"`
	Formed      bool   `json:"formed"`      // the cluster exists
	Current     bool   `json:"current"`     // since it started, this peer has learnt from a majority how the cluster stands
	Initialised bool   `json:"initialised"` // it has a root key; means something when current
	Sealed      bool   `json:"sealed"`      // this peer has no keys
	Leader      bool   `json:"leader"`
	LeaderKnown bool   `json:"leaderKnown"`       // there is one, this peer or another
	Removed     bool   `json:"removed,omitempty"` // it is no member any more
	Draining    bool   `json:"draining,omitempty"`
	Version     string `json:"version"`
}

// Status is the whole cluster as one peer sees it.
type Status struct {
	AskedPeer   string         `json:"askedPeer"`
	ClusterID   string         `json:"clusterId"`
	Incarnation uint64         `json:"incarnation"`
	Leader      string         `json:"leader"`
	Term        uint64         `json:"term"`
	Level       uint32         `json:"level"` // format level: the lowest that a member knew when it last rose
	Initialised bool           `json:"initialised"`
	Sealed      bool           `json:"sealedByOperator"`
	Threshold   int            `json:"threshold"`
	Shares      int            `json:"shares"`
	Tolerance   int            `json:"failureTolerance"` // voters that may still fail, whichever they are: a majority is left, and one of it with keys
	Secrets     int            `json:"secrets"`
	Policies    int            `json:"policies"`
	StateBytes  uint64         `json:"stateBytes"`
	StateLimit  uint64         `json:"stateLimitBytes"`
	Peers       []PeerStatus   `json:"peers"`
	Keepers     []KeeperStatus `json:"keepers"`
	Alarms      []Alarm        `json:"alarms,omitempty"` // of the cluster as a whole; see PeerStatus for those of a peer
	// Drill is the last restore of the archive that was tried, and Verified the last one that succeeded; null: there was none.
	Drill    *DrillAnswer `json:"drill,omitempty"`
	Verified *DrillAnswer `json:"verified,omitempty"`
}

// PeerStatus is one peer; Reachable false leaves only what the asked one knows.
type PeerStatus struct {
	ID           string    `json:"id"`
	Address      string    `json:"address"` // of its peer port
	Reachable    bool      `json:"reachable"`
	State        string    `json:"state"` // leader, follower, candidate, forming, …
	Voter        bool      `json:"voter"`
	Sealed       bool      `json:"sealed"`
	Draining     bool      `json:"draining,omitempty"` // for maintenance: votes, and leaves clients and leadership to others
	Reason       string    `json:"reason,omitempty"`   // why it does not serve
	Term         uint64    `json:"term"`
	CommitIndex  uint64    `json:"commitIndex"`
	AppliedIndex uint64    `json:"appliedIndex"`
	Lag          uint64    `json:"lag"`                // entries that the leader has committed and that are not applied
	LastContact  float64   `json:"lastContactSeconds"` // since it heard the leader; 0 on the leader, -1: never
	LastTerm     uint64    `json:"lastTerm"`           // of the newest entry of its log, committed or not
	LastIndex    uint64    `json:"lastIndex"`          // the same
	DataHash     string    `json:"dataHash"`           // of secrets and policies at appliedIndex
	StateHash    string    `json:"stateHash"`          // of everything at appliedIndex
	AuditCount   uint64    `json:"auditRecords"`
	AuditAnchor  string    `json:"auditAnchor"` // count:head, as the cluster holds it
	AuditFault   string    `json:"auditFault,omitempty"`
	SVIDExpiry   time.Time `json:"svidExpiry"`
	Version      string    `json:"version"`
	Level        uint32    `json:"level"` // newest format level that it knows
	Damaged      int       `json:"damagedRecords,omitempty"`
	Alarms       []Alarm   `json:"alarms,omitempty"`   // that are on
	ShareSet     string    `json:"shareSet,omitempty"` // id of the set whose root key it uses; missing while it has none
	Keepers      []string  `json:"keepers,omitempty"`  // that it knows, whether or not they have a share
	// Archive is how shipping into the archive stands, at the peer that does it;
	// at others it says that it is configured, and not active.
	Archive *ArchiveStatus `json:"archive,omitempty"`
}

// Alarm is something that goes on at a peer and wants an operator. It ends when
// its cause does.
type Alarm struct {
	Kind   string    `json:"kind"` // snapshot-loop, disk-stalls, memory-not-locked; of the cluster: keepers-few, archive-drill-failed
	Detail string    `json:"detail"`
	Since  time.Time `json:"since"`
}

// KeeperStatus is one Keeper as the asked peer found it.
type KeeperStatus struct {
	Name   string `json:"name"`
	Index  int    `json:"shareIndex"`
	Health string `json:"health"` // good, held, empty, wrong, stale, foreign, unreachable, unknown
	Detail string `json:"detail,omitempty"`
	// ShareSet is the id of the set that its share is of; "" when it has none.
	ShareSet string `json:"shareSet,omitempty"`
	// LastContact is when the asked peer had an answer from it last; nil: never.
	LastContact *time.Time `json:"lastContact,omitempty"`
}

// RotateRequest asks for new keys; no purposes mean all that can be rotated.
type RotateRequest struct {
	Purposes []string `json:"purposes,omitempty"`
}

// KeysAnswer describes the keys of the cluster, without the keys.
type KeysAnswer struct {
	Epochs []KeyEpoch `json:"epochs"`
	// Stale of the Records that are under any data key are under a retired one and
	// are being re-encrypted.
	Stale   int `json:"stale"`
	Records int `json:"records"`
	// ShareSet is the one whose root key opens the keys, Pending one that a rekey
	// has begun and not committed: until it is, or is cancelled, no key is rotated.
	ShareSet *ShareSet `json:"shareSet,omitempty"`
	Pending  *ShareSet `json:"pending,omitempty"`
	// Inherited keys are in use that were made under a root key of before, and are
	// rotated by themselves once every peer uses the present one.
	Inherited bool `json:"inherited,omitempty"`
}

// ShareSet describes the shares of a root key, without the shares.
type ShareSet struct {
	ID        string   `json:"id"`
	Shares    int      `json:"shares"`
	Threshold int      `json:"threshold"`
	Keepers   []string `json:"keepers"` // of share 1, 2, …; empty where none has it
}

// RekeyRequest asks for a new root key.
type RekeyRequest struct {
	// ID is 16 random bytes in hex, the same in each repetition: what was committed
	// is not done again then.
	ID string `json:"id"`
	// Shares and Threshold: 0 means as many as Keepers, and more than half.
	Shares    int `json:"shares,omitempty"`
	Threshold int `json:"threshold,omitempty"`
	// Keepers that get a share, by name; none: all that the asked peer knows.
	Keepers          []string `json:"keepers,omitempty"`
	AllowSingleShare bool     `json:"allowSingleShare,omitempty"` // a threshold of 1 with more than one share
	Force            bool     `json:"force,omitempty"`            // although not every member can be asked
}

// CancelAnswer names the share set that was given up, empty when none was pending.
type CancelAnswer struct {
	ShareSet string `json:"shareSet,omitempty"`
}

// KeyEpoch is one key. Records is missing where the cluster does not keep what
// is under it.
type KeyEpoch struct {
	Purpose string    `json:"purpose"`
	ID      string    `json:"id"`
	Status  string    `json:"status"` // current, retired or archived
	Created time.Time `json:"created"`
	Records *int      `json:"records,omitempty"`
}
