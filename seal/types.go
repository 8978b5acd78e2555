package seal

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"
)

// Purpose separates the keys: a key of one purpose opens nothing that was sealed for another.
type Purpose string

// The purposes that every keyring has.
const (
	Data      Purpose = "data"       // values of secrets, bodies of policies
	Path      Purpose = "path"       // names, and the tokens that stand for them
	Archive   Purpose = "archive"    // snapshots and log segments in buckets
	Cipher    Purpose = "cipher"     // the cipher API
	AuditPath Purpose = "audit-path" // hashed paths in audit records
	TokenMAC  Purpose = "token-mac"  // request fingerprints
)

var purposes = []Purpose{Archive, AuditPath, Cipher, Data, Path, TokenMAC} // sorted

// ClusterRef names a cluster. The id stays for life; a restore raises the incarnation.
type ClusterRef struct {
	ID          [16]byte
	Incarnation uint64
}

// String is the form for people.
func (c ClusterRef) String() string {
	return fmt.Sprintf("%s/%d", hex.EncodeToString(c.ID[:]), c.Incarnation)
}

// MaxShares is the largest number of shares of a set.
const MaxShares = 255

// ShareSet describes one splitting of one root key. It holds nothing secret: a fingerprint is the hash of a
// share of 256 random bits.
type ShareSet struct {
	ID           [16]byte
	Shares       int        // n, how many shares exist
	Threshold    int        // t, how many of them recover the root key
	Fingerprints [][32]byte // of share 1 … n
	Keepers      []string   // Keeper of share 1 … n; "" where none is assigned
}

// Validate checks the set's shape; its error wraps ErrShareSet.
func (s *ShareSet) Validate() error {
	switch {
	case s.ID == [16]byte{}:
		return fmt.Errorf("%w: it has no id", ErrShareSet)
	case s.Shares < 1 || s.Shares > MaxShares:
		return fmt.Errorf("%w: %d shares; possible are 1 to %d", ErrShareSet, s.Shares, MaxShares)
	case s.Threshold < 1 || s.Threshold > s.Shares:
		return fmt.Errorf("%w: a threshold of %d with %d shares", ErrShareSet, s.Threshold, s.Shares)
	case len(s.Fingerprints) != s.Shares:
		return fmt.Errorf("%w: %d fingerprints for %d shares", ErrShareSet, len(s.Fingerprints), s.Shares)
	case len(s.Keepers) != s.Shares:
		return fmt.Errorf("%w: %d Keepers for %d shares", ErrShareSet, len(s.Keepers), s.Shares)
	}
	seen := make(map[string]bool, len(s.Keepers))
	for _, name := range s.Keepers {
		if name != "" && seen[name] {
			return fmt.Errorf("%w: Keeper %q has two shares", ErrShareSet, name)
		}
		seen[name] = true
	}
	return nil
}

// State is the replicated half of sealing, as one view of the state machine shows it.
type State struct {
	Index      uint64 // of the log entry that this is the state after: of two states, the higher is the newer
	Cluster    ClusterRef
	Committed  *ShareSet // nil before initialisation
	Pending    *ShareSet // begun and neither committed nor superseded; nil when there is none
	Keyring    []byte    // sealed under the root key of Committed; opaque
	Sealed     bool      // an operator sealed the cluster
	Generation uint64    // counts changes of Sealed
	Epochs     []Epoch   // the current key of each purpose in Keyring
}

// Epoch names the current key of a purpose.
type Epoch struct {
	Purpose Purpose
	ID      []byte
}

// EpochInfo describes one key of the keyring, without the key.
type EpochInfo struct {
	Purpose Purpose
	ID      []byte
	Created time.Time // by the clock of who made it
	Status  EpochStatus
}

// EpochStatus is what a key is still good for.
type EpochStatus string

// The statuses, in the order of a key's life.
const (
	Current  EpochStatus = "current"  // encrypts and decrypts
	Retired  EpochStatus = "retired"  // decrypts
	Archived EpochStatus = "archived" // kept in the sealed keyring for archives of before, and nowhere else
)

// Commitment is what makes a pending share set the committed one.
type Commitment struct {
	Set         [16]byte
	Incarnation uint64 // of the cluster, for which shares and keyring were made; 0: as it is
	Keyring     []byte // sealed under the root key of the set
	Epochs      []Epoch
}

// Ledger is the replicated half of initialisation, rekey and rotation. Each call returns only after its effect is acknowledged
// (fsynced on a quorum); an error other than the ones named leaves the outcome unknown, and the caller reads
// State again.
type Ledger interface {
	// State reads after a read-index round: it sees everything acknowledged before the call.
	State(ctx context.Context) (State, error)
	// Begin makes set the pending one, in place of any other. It fails with ErrSuperseded when the committed set
	// is not supersedes (the zero id: none is committed). Begin, Commit and Replace fail with ErrOperatorSealed
	// when generation is not that of the state: an operator sealed, or unsealed, since it was read.
	Begin(ctx context.Context, set ShareSet, supersedes [16]byte, generation uint64) error
	// Commit makes the pending set the committed one, together with the keyring sealed under its root key. It
	// fails with ErrSuperseded when that set is not pending.
	Commit(ctx context.Context, c Commitment, generation uint64) error
	// Abandon gives the pending set up, so that it can never be committed. It fails with ErrSuperseded when setID
	// is not pending.
	Abandon(ctx context.Context, setID [16]byte) error
	// Replace puts keyring, sealed under the root key of the committed set setID, in the place of was. It fails
	// with ErrPending while a set is pending, and with ErrSuperseded when setID is not committed or was is not the
	// present keyring. Whoever commits a set for a keyring that exists must therefore read it after Begin.
	Replace(ctx context.Context, setID [16]byte, was, keyring []byte, epochs []Epoch, generation uint64) error
}

// Slot addresses one share.
type Slot struct {
	Cluster ClusterRef
	Set     [16]byte
	Index   int // 1 … n
}

// Keeper holds one share of each of a few sets, in memory. Implementations are safe for concurrent use and heed
// the context's deadline; any error that wraps none of the errors named here counts as "unreachable".
type Keeper interface {
	// Name is the Keeper's stable name, as in ShareSet.Keepers.
	Name() string
	// Place stores a share as pending; the same set placed again replaces the share, current or pending.
	// Errors: ErrForeignSet (it serves another cluster), ErrStale (it has seen a higher incarnation).
	Place(ctx context.Context, slot Slot, share []byte) error
	// Fetch returns the share of exactly this slot, current or pending.
	// Errors: ErrNoShare, ErrOtherSet, ErrForeignSet, ErrStale.
	Fetch(ctx context.Context, slot Slot) ([]byte, error)
	// Settle makes the set current and drops the one that was. Repeating it is harmless. asOf is the Index of a state in
	// which the set is the committed one: a Keeper that was settled by a newer state refuses with ErrStale.
	// Errors: as Fetch.
	Settle(ctx context.Context, cluster ClusterRef, set [16]byte, asOf uint64) error
	// Prove answers a challenge with the share of exactly this slot, current or pending, and does not give it away: see
	// Proof. Errors: as Fetch, and ErrOldKeeper when it does not know proofs.
	Prove(ctx context.Context, slot Slot, nonce [32]byte) (proof [32]byte, err error)
	// Holds lists what it has, without shares.
	Holds(ctx context.Context) ([]Slot, error)
}

// Health is what became of asking a Keeper for its share.
type Health string

// The answers a Keeper can give.
const (
	Good        Health = "good"        // it has the right share: proven, or fetched and held against its fingerprint
	Held        Health = "held"        // it says that it holds its share; only an unsealed peer can have it proven
	Empty       Health = "empty"       // it restarted, or never had a share
	Wrong       Health = "wrong"       // its share does not fit the fingerprint
	Stale       Health = "stale"       // it holds another set, or another incarnation, of this cluster
	Foreign     Health = "foreign"     // it serves another cluster, or is not in the share set
	Unreachable Health = "unreachable" // it did not answer in time, or could not be spoken to
	Unknown     Health = "unknown"     // enough others had answered first
)

// KeeperReport says how one Keeper fared. It holds no secret.
type KeeperReport struct {
	Name     string
	Index    int // its share's index in the committed set; 0 if it has none
	Health   Health
	Detail   string // for people; empty when good
	Refilled bool   // its share was placed again, and Health is the state after that
	Fetched  bool   // it is of a release without proofs: it was asked for its share itself
}

// AAD names what a record is, so that it opens nowhere else.
type AAD struct {
	Kind    string // what sort of record, for example "secret"
	Token   []byte // which one
	Version uint64 // which version of it
}

// clock is time.Now but for tests.
type clock func() time.Time
