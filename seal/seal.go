// Package seal is the only holder of key bytes in a Nexus process. It knows two states: sealed, in which it can
// do nothing, and unsealed, in which it encrypts, decrypts and computes MACs for its callers. Keys go in from Keepers
// or operators and never come out again; what comes out is operations, and, for break-glass recovery, the shares.
//
// The keys hang together like this:
//
//	shares ──t of n──► root key ──► opens the keyring ──► epoch keys per purpose ──► one subkey per process
//
// The root key is a P-256 scalar that exists nowhere but in the locked memory of unsealed processes. The keyring
// is ciphertext in the replicated state. Records are encrypted under HKDF(epoch key, process id) with AES-256-GCM and
// random nonces: each unsealed process draws a process id of its own and a new one after 2^31 encryptions, so
// that no key ever sees enough nonces for a repetition to become likely, also across restores and forks of the
// log, where a counter would run twice.
//
// The package assumes a Ledger that agrees with the other peers and Keepers reached over authenticated
// connections. It guarantees that a share is believed only when it fits the fingerprint in the replicated state,
// that no two of its keys are used for two things, that after Lock no operation begins, and that key bytes are
// wiped when the last operation under way has ended: those in locked memory (internal/locked) at once, and what
// ciphers, MACs and big numbers are made of, on the Go heap, by the passes of the collector that the wiping asks for
// (internal/erase, in programs built as the Makefile builds them). Afterwards the process's memory holds no key
// in any form that a test could find: root key, shares, epoch keys and all that is derived from them. What is outside
// this package is not covered: shares on their way from and to Keepers and operators pass through buffers of TLS,
// HTTP and JSON.
//
// It knows neither the log nor the network, and imports nothing of ours but the names of steps to fail at.
package seal

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Config configures a Seal; the zero value is usable.
type Config struct {
	// KeeperTimeout bounds each call to one Keeper (default 5 s).
	KeeperTimeout time.Duration
	// Logger hears what happened to Keepers and keys, never their content; nil means slog.Default.
	Logger *slog.Logger

	now        clock         // nil: time.Now
	encryptCap uint64        // encryptions per process id; 0: maxEncryptions
	linger     time.Duration // 0: lingering
}

// lingering is how long the keys of before a change of the keyring stay in memory: longer than any operation lasts
// that may have a record in hand from before.
const lingering = time.Minute

// Seal holds the keys of one process. All methods are safe for concurrent use.
type Seal struct {
	cfg Config
	log *slog.Logger

	// keys is nil while sealed. Operations load it without a lock and hold a reference while they use it.
	keys atomic.Pointer[keys]

	mu    sync.Mutex         // orders Lock against the installation of new keys
	locks uint64             // counts calls of Lock; guarded by mu
	lent  map[*Seal]struct{} // made by Reinstated and not locked yet; guarded by mu
	from  *Seal              // by which this one was made; nil for most
}

// New makes a sealed Seal. It logs a warning when the system does not let this process lock memory.
func New(cfg Config) *Seal {
	if cfg.KeeperTimeout <= 0 {
		cfg.KeeperTimeout = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.encryptCap == 0 {
		cfg.encryptCap = maxEncryptions
	}
	if cfg.linger == 0 {
		cfg.linger = lingering
	}
	locked.New(1).Destroy() // finds out now rather than with the first key
	if _, err := locked.Degraded(); err != nil {
		cfg.Logger.Warn("the system refuses to lock memory: keys could reach swap; raise RLIMIT_MEMLOCK (LimitMEMLOCK) or turn swap off", "error", err)
	}
	return &Seal{cfg: cfg, log: cfg.Logger}
}

// MemoryFault is nil while the system lets this process lock all its key bytes in memory, else the first refusal, and
// since when: keys could reach swap.
func MemoryFault() (since time.Time, err error) { return locked.Degraded() }

// Sealed says whether operations are refused for want of keys.
func (s *Seal) Sealed() bool { return s.keys.Load() == nil }

// Lock drops all keys. It waits for nobody: operations under way end with the keys they began with, operations
// that begin afterwards, and an unsealing under way, fail with ErrSealed. It locks what Reinstated made of it, too. It is idempotent.
func (s *Seal) Lock() {
	s.mu.Lock()
	s.locks++
	k := s.keys.Swap(nil)
	lent := s.lent
	s.lent = nil
	s.mu.Unlock()
	for l := range lent {
		l.Lock()
	}
	if s.from != nil {
		s.from.mu.Lock()
		delete(s.from.lent, s)
		s.from.mu.Unlock()
	}
	if k != nil {
		k.release()
		s.log.Info("sealed: keys dropped")
	}
}

// ticket is taken when an unsealing begins and shown when it installs its keys.
func (s *Seal) ticket() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locks
}

// install makes k the keys in use, unless Lock was called since the ticket was taken. It takes k over either way.
// Keys that were in use before linger.
func (s *Seal) install(k *keys, ticket uint64) error {
	s.mu.Lock()
	if s.locks != ticket {
		s.mu.Unlock()
		k.release()
		return ErrSealed
	}
	old := s.keys.Load()
	k.prior.Store(old)
	s.keys.Store(k)
	s.mu.Unlock()
	if old != nil {
		time.AfterFunc(s.cfg.linger, k.forget)
	}
	return nil
}

// acquire returns the keys in use with a reference that the caller releases.
func (s *Seal) acquire() (*keys, error) {
	for {
		k := s.keys.Load()
		if k == nil {
			return nil, ErrSealed
		}
		if k.retain() {
			return k, nil
		}
		// k lost its last reference between the two lines: it has been replaced or dropped by now.
	}
}
