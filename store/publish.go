package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/tidwall/btree"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/policy"
	"github.com/spike-ha/spike-ha/secret"
)

// published is all that a reader can see, of one index. It never changes.
type published struct {
	view     *fsm.View
	paths    *btree.BTreeG[named] // readable names, in order
	policies *policy.Set
	feed     feed
	damaged  int // records that could not be decrypted or understood
}

type named struct {
	path  secret.Path
	token fsm.Token
}

func byPath(a, b named) bool { return a.path < b.path }

// observer derives publications from the deltas of the state machine. Its
// fields are owned by whoever builds (first Open, then the apply goroutine).
type observer struct {
	store *Store
	ready chan struct{} // closed when the first publication is made
	next  published
	stop  func()
}

// Open makes the store serve: the keys are there. It derives the first
// publication from the present view and follows every later one; no delta is
// lost between the two, because the machine gives view and subscription at once.
// While the keys are gone or an operator has sealed the cluster it stays shut,
// with CodeSealed.
func (s *Store) Open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != nil {
		return nil
	}
	o := &observer{store: s, ready: make(chan struct{})}
	view, stop := s.cfg.Machine.Observe(o)
	o.stop = stop
	defer close(o.ready)
	o.reset(view)
	// Asked after the records were read: whoever takes the keys away closes the
	// store next, so either it finds this one open or it is noticed here.
	if view.Seal().Sealed || s.cfg.Keys.Sealed() {
		stop()
		return errSealed()
	}
	s.live = o
	s.public.Store(o.snapshot())
	s.moved.fire()
	s.watchers.tellAll(true)
	s.watchers.tell(view.Index(), nil)
	if o.next.damaged > 0 {
		s.cfg.Logger.Error("some records could not be decrypted; they are not served", "records", o.next.damaged)
	}
	return nil
}

// Close makes the store sealed again. Operations that have a publication in
// hand finish or fail by their keys.
func (s *Store) Close() {
	s.mu.Lock()
	o := s.live
	s.live = nil
	s.public.Store(nil)
	s.mu.Unlock()
	s.moved.fire()
	s.watchers.tellAll(true)
	if o != nil {
		o.stop()
	}
}

// Damaged counts records of the present publication that could not be decrypted.
func (s *Store) Damaged() int {
	if p := s.public.Load(); p != nil {
		return p.damaged
	}
	return 0
}

// Changed publishes the state after one entry.
func (o *observer) Changed(d fsm.Delta) {
	<-o.ready
	var events []Event
	if d.Reset {
		o.reset(d.View)
	} else {
		o.follow(d)
		events = o.events(d)
		o.next.feed.add(events)
	}
	o.store.mu.Lock()
	defer o.store.mu.Unlock()
	defer o.store.moved.fire()
	switch {
	case o.store.live != o:
	case d.View.Seal().Sealed && !planted.Is(planted.KeysStay): // by an operator: nothing of this view or a later one is served
		o.store.live = nil
		o.store.public.Store(nil)
		o.store.watchers.tellAll(true)
		o.stop()
	default:
		o.store.public.Store(o.snapshot())
		if d.Reset || len(d.Policies) > 0 {
			o.store.watchers.tellAll(d.Reset)
		}
		o.store.watchers.tell(d.View.Index(), events)
	}
}

// snapshot freezes what was derived so far.
func (o *observer) snapshot() *published {
	p := o.next
	p.paths = o.next.paths.Copy()
	p.policies = paired(p.policies)
	return &p
}

func (o *observer) reset(view *fsm.View) {
	o.next = published{view: view, paths: btree.NewBTreeGOptions(byPath, btree.Options{NoLocks: true}), feed: feed{floor: view.Index()}}
	for record := range view.Secrets() {
		o.name(record)
	}
	var compiled []*policy.Compiled
	for record := range view.Policies() {
		if p := o.policy(record); p != nil {
			compiled = append(compiled, p)
		}
	}
	o.next.policies = policy.NewSet(compiled...)
}

func (o *observer) follow(d fsm.Delta) {
	o.next.view = d.View
	for _, c := range d.Secrets {
		switch {
		case c.Old == nil && c.New != nil:
			o.name(c.New)
		case c.Old != nil && c.New == nil:
			if path, ok := o.open(c.Old); ok {
				o.next.paths.Delete(named{path: path})
			}
		}
	}
	if len(d.Policies) == 0 {
		return
	}
	var put []*policy.Compiled
	var drop []string
	for _, c := range d.Policies {
		if c.New != nil {
			if p := o.policy(c.New); p != nil {
				put = append(put, p)
				continue
			}
		}
		if c.Old != nil { // gone, or replaced by one that cannot be read: it grants nothing
			if p := o.policy(c.Old); p != nil {
				drop = append(drop, p.Name)
			}
		}
	}
	o.next.policies = o.next.policies.With(put, drop)
}

// name adds a secret's readable name to the index.
func (o *observer) name(record *fsmpb.Secret) {
	if path, ok := o.open(record); ok {
		o.next.paths.Set(named{path, fsm.Token(record.Token)})
	}
}

func (o *observer) open(record *fsmpb.Secret) (secret.Path, bool) {
	plain, err := o.store.cfg.Keys.Decrypt(KindName, fsm.Token(record.Token), 0, record.Name)
	if err != nil {
		o.next.damaged++
		return "", false
	}
	return secret.Path(plain), true
}

func (o *observer) policy(record *fsmpb.Policy) *policy.Compiled {
	plain, err := o.store.cfg.Keys.Decrypt(KindPolicy, fsm.Token(record.Token), 0, record.Body)
	if err == nil {
		var body policyBody
		if json.Unmarshal(plain, &body) == nil {
			if p, err := policy.Compile(body.policy()); err == nil {
				return p
			}
		}
	}
	o.next.damaged++
	return nil
}

// policyBody is the plaintext of a policy record.
type policyBody struct {
	Name        string         `json:"name"`
	SPIFFEID    secret.Pattern `json:"spiffeId"`
	Path        secret.Pattern `json:"path"`
	Permissions uint8          `json:"permissions"`
	Created     time.Time      `json:"created"`
	Updated     time.Time      `json:"updated"`
}

func (b policyBody) policy() secret.Policy {
	return secret.Policy{Name: b.Name, SPIFFEID: b.SPIFFEID, Path: b.Path,
		Permissions: secret.Permission(b.Permissions), CreatedAt: b.Created, UpdatedAt: b.Updated}
}

// hash is SHA-256 over length-prefixed parts, separated by domain.
func hash(domain string, parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	for _, part := range append([][]byte{[]byte(domain)}, parts...) {
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
