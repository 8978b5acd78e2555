package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Source is the peer whose log is shipped.
type Source interface {
	// Entries returns the committed entries after an index, and the index up to which they are all there are; with nothing
	// new that is after. ErrCompacted: the log does not go back that far.
	Entries(after uint64, maxBytes int) (list []LogEntry, through uint64, err error)
	// State is the present state: its header, but for what concerns the archive, and what writes it, at any time later.
	State() (Header, func(io.Writer) error)
	// Keyring is the present state of the seal, and an index that it is in force after.
	Keyring() (sealState []byte, index uint64)
}

// ErrCompacted: the entries asked for are not in the log any more.
var ErrCompacted = errors.New("snapshot: the log does not go back that far any more")

// ShipperConfig configures a Shipper. Zero durations and sizes take the defaults.
type ShipperConfig struct {
	Archive *Archive
	Source  Source
	Cipher  Cipher
	Commits *Commits // of the same peer
	// Cluster, Incarnation and Peer stand in every header.
	Cluster     [16]byte
	Incarnation uint64
	Peer        string
	// Every is how often the log is looked at (1 s), and so about the most that is lost when all peers are.
	Every time.Duration
	// SegmentBytes bounds a segment, but for one that has a single larger entry (1 MiB).
	SegmentBytes int
	// SnapshotEvery is the age at which a snapshot has a successor, when anything has changed (1 h).
	SnapshotEvery time.Duration
	// Interval, when it is not nil and above 0, is asked each time and goes before SnapshotEvery.
	Interval func() time.Duration
	// MaxBackoff bounds the pause after an error (30 s).
	MaxBackoff time.Duration
	Logger     *slog.Logger
	Now        func() time.Time
}

// Shipping is how a Shipper stands.
type Shipping struct {
	Active   bool
	Shipped  uint64        // everything up to this index is in the archive
	Behind   time.Duration // how old the oldest change is that is not in the archive: what would be lost now. Until Shipped is known, since when it is not
	Snapshot Item          // the newest one known
	Error    string        // of the last attempt; empty when it succeeded
	Since    time.Time     // when the last attempt succeeded
}

// Shipper carries the committed log of one peer into an archive, as long as Run runs. Run it on one peer of a cluster, the leader as a rule;
// two at once do no harm.
type Shipper struct {
	cfg ShipperConfig

	mu       sync.Mutex // guards what follows
	status   Shipping
	began    time.Time // Run
	snapping bool

	wake    chan struct{} // cap 1: there is much to ship
	keyring [32]byte      // SHA-256 of the keyring that is in the archive; Run's
}

// NewShipper makes a Shipper.
func NewShipper(cfg ShipperConfig) *Shipper {
	def := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	def(&cfg.Every, time.Second)
	def(&cfg.SnapshotEvery, time.Hour)
	def(&cfg.MaxBackoff, 30*time.Second)
	if cfg.SegmentBytes <= 0 {
		cfg.SegmentBytes = 1 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Shipper{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Wake has it ship now what it would ship within Every. While the store fails it changes nothing.
func (s *Shipper) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Status is how it stands now.
func (s *Shipper) Status() Shipping {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	switch {
	case status.Shipped > 0:
		status.Behind = s.cfg.Commits.Behind(status.Shipped)
	case !s.began.IsZero(): // it has not found out yet where the archive ends
		status.Behind = s.cfg.Now().Sub(s.began)
	}
	return status
}

// Run ships until ctx ends. It begins where the archive ends, and goes on after every error, later each time.
func (s *Shipper) Run(ctx context.Context) {
	s.set(func(st *Shipping) { st.Active, s.began = true, s.cfg.Now() })
	defer s.set(func(st *Shipping) { st.Active = false })
	var snapshots sync.WaitGroup
	defer snapshots.Wait()
	at, known := uint64(0), false
	pause := time.Duration(0)
	var wake <-chan struct{} // nil: after a failure
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		case <-wake:
		}
		wake = nil
		var err error
		if !known {
			at, err = s.resume(ctx)
			known = err == nil
		}
		if err == nil {
			at, err = s.ship(ctx, at)
		}
		switch {
		case errors.Is(err, ErrCompacted): // a snapshot takes the place of what is not there any more
			s.cfg.Logger.Warn("the log was compacted before it was in the archive; a snapshot closes the gap", "after index", at)
			var last uint64
			if last, err = s.snapshot(ctx); err == nil {
				at = max(at, last)
			}
		case err == nil && s.due():
			s.set(func(*Shipping) { s.snapping = true })
			snapshots.Go(func() {
				if _, err := s.snapshot(ctx); err != nil && ctx.Err() == nil {
					s.cfg.Logger.Warn("a snapshot did not come into the archive; it is tried again", "error", err)
				}
				s.set(func(*Shipping) { s.snapping = false })
			})
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.set(func(st *Shipping) { st.Error, st.Since = "", s.cfg.Now() })
			pause, wake = s.cfg.Every, s.wake
			continue
		}
		if first := s.fail(err); first {
			s.cfg.Logger.Warn("the log does not come into the archive; it is tried again, and writes go on", "error", err)
		}
		pause = min(max(2*pause, s.cfg.Every), s.cfg.MaxBackoff)
		pause += rand.N(pause/2 + 1) // so that peers that follow one another do not fall into step
	}
}

func (s *Shipper) set(change func(*Shipping)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

func (s *Shipper) fail(err error) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = s.status.Error == ""
	s.status.Error = err.Error()
	return first
}

// resume finds where the archive ends. What lists do not show yet is shipped twice.
func (s *Shipper) resume(ctx context.Context) (uint64, error) {
	list, err := s.cfg.Archive.List(ctx, s.cfg.Cluster)
	if err != nil {
		return 0, err
	}
	plan, err := MakePlan(list, s.cfg.Incarnation, 0)
	var gap *GapError
	switch {
	case errors.Is(err, ErrNothing), errors.As(err, &gap):
		return s.snapshot(ctx)
	case err != nil:
		return 0, err
	}
	s.set(func(st *Shipping) { st.Snapshot, st.Shipped = plan.Snapshot, plan.Last })
	return plan.Last, nil
}

// ship ships what was committed after at, and returns how far it came.
func (s *Shipper) ship(ctx context.Context, at uint64) (uint64, error) {
	if err := s.shipKeyring(ctx); err != nil {
		return at, err
	}
	for ctx.Err() == nil {
		list, through, err := s.cfg.Source.Entries(at, s.cfg.SegmentBytes)
		if err != nil {
			return at, err
		}
		if through == at {
			return at, nil
		}
		h := s.header(Header{First: at + 1, Last: through})
		if len(list) > 0 {
			h.Term = list[len(list)-1].Term
		}
		if _, err := s.cfg.Archive.PutSegment(ctx, h, s.cfg.Cipher, list, s.shipKeyring); err != nil && !errors.Is(err, ErrExists) {
			return at, err
		}
		at = through
		s.set(func(st *Shipping) { st.Shipped = max(st.Shipped, at) })
	}
	return at, ctx.Err()
}

func (s *Shipper) header(h Header) Header {
	h.Cluster, h.Incarnation, h.Peer, h.Created = s.cfg.Cluster, s.cfg.Incarnation, s.cfg.Peer, s.cfg.Now()
	return h
}

// shipKeyring makes sure that the present keyring is in the archive. It is asked before any object goes there: whatever
// that is sealed under is in this keyring.
func (s *Shipper) shipKeyring(ctx context.Context) error {
	sealState, index := s.cfg.Source.Keyring()
	sum := sha256.Sum256(sealState)
	s.mu.Lock()
	there := sum == s.keyring
	s.mu.Unlock()
	if there || len(sealState) == 0 {
		return nil
	}
	if _, err := s.cfg.Archive.PutKeyring(ctx, s.header(Header{Last: index}), sealState); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	s.mu.Lock()
	s.keyring = sum
	s.mu.Unlock()
	return nil
}

// due says whether it is time for a snapshot.
func (s *Shipper) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.snapping && s.status.Shipped > s.status.Snapshot.Last && s.cfg.Now().Sub(s.status.Snapshot.Modified) >= s.Interval()
}

// Interval is the age at which a snapshot has a successor now.
func (s *Shipper) Interval() time.Duration {
	if s.cfg.Interval != nil {
		if d := s.cfg.Interval(); d > 0 {
			return d
		}
	}
	return s.cfg.SnapshotEvery
}

// snapshot puts the present state into the archive.
func (s *Shipper) snapshot(ctx context.Context) (uint64, error) {
	item, err := s.Save(ctx)
	return item.Last, err
}

// Save puts the present state into the archive now, whether Run runs or not. Errors: those of PutSnapshot, but for ErrExists: then the
// archive has just that state.
func (s *Shipper) Save(ctx context.Context) (Item, error) {
	h, write := s.cfg.Source.State()
	if h.Level == 0 {
		return Item{}, fmt.Errorf("snapshot: there is no state to archive yet")
	}
	item, _, err := s.cfg.Archive.PutSnapshot(ctx, s.header(h), s.cfg.Cipher, write, s.shipKeyring)
	if err != nil && !errors.Is(err, ErrExists) {
		return Item{}, err
	}
	item.Modified = s.cfg.Now()
	s.set(func(st *Shipping) {
		if item.Last >= st.Snapshot.Last {
			st.Snapshot = item
		}
		st.Shipped = max(st.Shipped, item.Last)
	})
	return item, nil
}
