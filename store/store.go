package store

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/secret"
)

// Log is the replicated log. Its errors are *secret.Error: CodeUnavailable and
// CodeOverloaded when the command was certainly not proposed, CodeUnknown when
// it may or may not take effect. All calls end with their context.
type Log interface {
	// Propose returns the state machine's result once the command is durable on
	// a quorum and applied by the leader.
	Propose(ctx context.Context, command []byte) (result []byte, err error)
	// WaitRead returns an index, applied here, at or after everything that was
	// acknowledged anywhere before the call.
	WaitRead(ctx context.Context) (index uint64, err error)
}

// Keys does the cryptography of an unsealed process; while sealed every method
// but Sealed fails with a *secret.Error of CodeSealed. Kinds separate domains:
// a ciphertext or token of one kind is never valid as another.
type Keys interface {
	Sealed() bool
	Encrypt(kind Kind, token fsm.Token, version uint64, plaintext []byte) ([]byte, error)
	Decrypt(kind Kind, token fsm.Token, version uint64, sealed []byte) ([]byte, error)
	Token(kind Kind, name string) (token fsm.Token, keyID []byte, err error)
	DataEpoch() ([]byte, error)                  // id of the epoch that Encrypt uses
	HashPath(path string) (string, error)        // for audit records
	Fingerprint(parts ...[]byte) ([]byte, error) // keyed, at most 32 bytes
	EncryptWire(plaintext []byte) (nonce, ciphertext []byte, err error)
	DecryptWire(nonce, ciphertext []byte) ([]byte, error) // CodeUndecrypted when it does not open
	// Streams of any length. Errors of dst and src are passed on; those of ours,
	// CodeSealed and CodeUndecrypted, may come at any time.
	EncryptStream(dst io.Writer) (io.WriteCloser, error)
	DecryptStream(src io.Reader) (io.Reader, error)
}

// Kind names what a ciphertext or a token is of.
type Kind string

// The kinds.
const (
	KindValue  Kind = "value"  // of a secret's version; also the kind of secrets' tokens
	KindName   Kind = "name"   // of a secret
	KindPolicy Kind = "policy" // body, name and token
)

// Recorder keeps the audit records; audit.Log is one.
type Recorder interface {
	Append(r audit.Record, durable bool) error
}

// Operator does what concerns the cluster rather than its contents.
type Operator interface {
	// Initialise makes the root key and places its shares; CodeConflict when the
	// cluster has one already.
	Initialise(ctx context.Context, shares, threshold int, allowSingleShare bool) error
	// RecoveryShares returns all shares of the root key.
	RecoveryShares(ctx context.Context) ([]RecoveryShare, error)
	// RecoveryFiles returns all shares of the root key, each encrypted to one of
	// the recipients, in turn. oneHolder allows that a single one gets enough of
	// them for the root key.
	RecoveryFiles(ctx context.Context, recipients []string, oneHolder bool) ([]RecoveryFile, error)
	// Restore takes one recovery share; a wrong one is CodeInvalid and spoils nothing.
	Restore(ctx context.Context, share RecoveryShare) (RestoreProgress, error)
	// ChangeMembers changes who belongs to the cluster. CodeConflict when the
	// cluster refuses the change as it is now, CodeNotFound when there is no such
	// member; an error other than CodeUnknown means that nothing was changed.
	ChangeMembers(ctx context.Context, change MemberChange) error
	// SetSealed seals or unseals the cluster, or one peer when peer is not empty;
	// when it is so already, nothing is done. CodeConflict when it cannot be as
	// things are: nothing was changed.
	SetSealed(ctx context.Context, sealed bool, peer string) error
	// RotateKeys gives each purpose a new key; none means all that can be rotated.
	// CodeConflict when it cannot be now: nothing was changed.
	RotateKeys(ctx context.Context, purposes []string) error
	// Rekey gives the cluster a new root key. CodeConflict when it cannot be now,
	// CodeInvalid when it never can; nothing was changed then.
	Rekey(ctx context.Context, r Rekeying) error
	// CancelRekey gives up a pending share set and returns its id, "" for none.
	CancelRekey(ctx context.Context) (string, error)
	// PruneKeys drops archived keys that left the live peers before a time, and
	// says how many there were.
	PruneKeys(ctx context.Context, before time.Time) (int, error)
	// PlanRestore says what restoring a state of the archive would do.
	PlanRestore(ctx context.Context, target RestoreTarget, progress func(RestoreStep)) (RestorePlan, error)
	// RestoreLive does what a plan says. CodeConflict when it cannot be now, or the
	// plan is outdated; an error other than CodeUnknown means that nothing was changed.
	RestoreLive(ctx context.Context, target RestoreTarget, code string, progress func(RestoreStep)) (RestorePlan, error)
	// Keys describes the keys of the cluster.
	Keys(ctx context.Context) (KeyStatus, error)
	// Keepers describes the Keepers; with prove, as they prove themselves now:
	// CodeSealed when this peer cannot tell.
	Keepers(ctx context.Context, prove bool) (KeeperList, error)
	Archivist
}

// KeyStatus describes the keys of the cluster, without the keys.
type KeyStatus struct {
	Epochs []KeyEpoch
	// Stale records are those under a retired key, which are re-encrypted in the
	// background, of Records that are under any key for data.
	Stale, Records int
	// ShareSet is the committed one. Pending is one that a rekey has begun: until
	// it is committed or cancelled, no key is rotated.
	ShareSet, Pending *ShareSet
	// Inherited keys are in use that were made under a root key of before.
	Inherited bool
}

// ShareSet describes the shares of a root key, without the shares.
type ShareSet struct {
	ID                string
	Shares, Threshold int
	Keepers           []string
}

// Rekeying is what a rekey is asked to do.
type Rekeying struct {
	ID                [16]byte // of the request; repeated with the same, it is not done twice
	Shares, Threshold int      // 0: as many as Keepers; more than half
	Keepers           []string // by name; none: all that the peer knows
	AllowSingleShare  bool     // permits a threshold of 1 with more than one share
	Force             bool     // although not every member can be asked
}

// KeyEpoch is one key.
type KeyEpoch struct {
	Purpose, ID, Status string // status: current, retired or archived
	Created             time.Time
	Records             *int // in the state that are under it; nil: not kept there
}

// MemberChange is a change of the cluster's members.
type MemberChange struct {
	Kind    MemberChangeKind
	ID      string // of the peer; with TransferLeadership may be empty: any voter
	Address string // of its peer link, with AddMember
}

// MemberChangeKind is what is changed.
type MemberChangeKind string

// The kinds. A member is added as a learner, which has no vote.
const (
	AddMember          MemberChangeKind = "add"
	PromoteMember      MemberChangeKind = "promote"
	DemoteMember       MemberChangeKind = "demote"
	RemoveMember       MemberChangeKind = "remove"
	TransferLeadership MemberChangeKind = "transfer"
	DrainMember        MemberChangeKind = "drain" // until it restarts: its clients and leadership go to others
	UndrainMember      MemberChangeKind = "undrain"
)

// RecoveryShare is one share of the root key. Wipe it after use.
type RecoveryShare struct {
	Index int
	Bytes [32]byte
	// Cluster and Set say of what it is a share, where that is known: SPIKE's form
	// says neither. Else they are zero.
	Cluster, Set [16]byte
}

// RecoveryFile is a share of the root key that is encrypted to a person.
type RecoveryFile struct {
	Index   int
	Name    string // a good name for the file
	For     string // the recipient, for people
	Content []byte
}

// RestoreProgress says how far a restore has come.
type RestoreProgress struct {
	Collected, Remaining int
	Given                []int // the indexes of the shares collected so far
	Restored             bool
}

// Config joins a Store to its collaborators.
type Config struct {
	Machine  *fsm.Machine
	Log      Log
	Keys     Keys
	Recorder Recorder
	Operator Operator
	// Incarnation tells the incarnation that index tokens are of; that of the
	// replicated state when nil.
	Incarnation func() uint64
	Logger      *slog.Logger
	// ClearPaths writes paths into audit records as they are, by the operator's
	// explicit choice; the default is a keyed hash.
	ClearPaths bool
	// Timeout bounds one operation, waiting for a leader included; 5 s when 0.
	Timeout time.Duration
	Now     func() time.Time
}

// Store is the door. Any number of goroutines may use it.
type Store struct {
	cfg    Config
	queues queues
	public atomic.Pointer[published] // nil while sealed
	moved  signal                    // fires after each change of public

	watchers watchers
	watched  watched

	mu   sync.Mutex // guards what follows
	live *observer  // the one that publishes; nil while sealed
}

// New makes a sealed store: call Open when the keys are there.
func New(cfg Config) *Store {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{cfg: cfg}
}

// Request is who asks, and under which ids.
type Request struct {
	Caller secret.Caller
	ID     string // of the request, for audit records and answers
	Write  WriteID
	// Level and Token say how new the state must be that a read is answered from;
	// changes are always decided on what is newest.
	Level Level
	Token string
	// Seen, when not nil, receives the Raft index that the answer stands on; it
	// stays 0 when that is the newest publication or none.
	Seen *uint64
}

func (r Request) saw(index uint64) {
	if r.Seen != nil {
		*r.Seen = index
	}
}

// WriteID makes retries of a change harmless: the same ID, sent again to any
// peer, is applied once. Index is one that the caller saw answered before its
// first attempt; 0 lets this peer take its own, which is right only for a first
// attempt. The zero WriteID asks for a fresh one.
//
// Keyed is for ids that clients make of keys of their own and repeat whenever
// they like: nothing tells a first attempt from a late retry then, and this
// peer's own index would let a retry through after its result was forgotten. So
// the index has to be there, and has to be one that was published
// (CodeIndexRequired, CodeInvalid).
type WriteID struct {
	ID    [16]byte
	Index uint64
	Keyed bool
}

// scoped binds id to the caller, so that no caller can collide with another's.
func (s *Store) scoped(r Request, published uint64) (id [16]byte, index uint64) {
	if r.Write.ID == ([16]byte{}) {
		rand.Read(id[:])
		return id, published
	}
	sum := hash("write id", []byte(r.Caller.ID), r.Write.ID[:])
	index = r.Write.Index
	if index == 0 || index > published {
		index = published // an older index is only ever more careful
	}
	return [16]byte(sum[:16]), index
}

// current is the newest publication of this peer, without asking anybody.
func (s *Store) current() (*published, error) {
	if p := s.public.Load(); p != nil {
		return p, nil
	}
	return nil, errSealed()
}

func errSealed() error {
	return secret.Errorf(secret.CodeSealed, "this peer is sealed: it has no keys yet")
}

// fresh is a publication at or after everything acknowledged before the call.
func (s *Store) fresh(ctx context.Context) (*published, error) {
	if s.public.Load() == nil { // nobody need be asked
		return s.current()
	}
	if _, err := s.cfg.Log.WaitRead(ctx); err != nil {
		return nil, err
	}
	return s.current()
}

// Index is the index published here now, 0 while sealed.
func (s *Store) Index() uint64 {
	if p := s.public.Load(); p != nil {
		return p.view.Index()
	}
	return 0
}

func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.Timeout)
}
