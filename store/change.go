package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/planted"
	"github.com/spike-ha/spike-ha/secret"
)

// act is what a change does to one thing: it is authorised and audited for itself.
type act struct {
	op     string // for the audit: "secret.put", …
	object string // the name it concerns, as the caller wrote it
	on     secret.Path
	want   secret.Permission
	role   secret.Role // when set, this role alone decides: no policy can grant the act
}

// allowed says by what caller may do a, "" when he may not.
func (a act) allowed(p *published, caller secret.Caller) (by string) {
	if a.role != secret.RoleNone {
		if caller.Role == a.role {
			by = "role " + string(a.role)
		}
	} else if d := p.policies.Decide(caller, a.want, a.on); d.Allowed {
		by = d.By
	}
	return by
}

// change is one request that writes: one act, or those of a transaction.
type change struct {
	op   string // of the whole
	acts []act
	// fingerprint binds the write id to what is asked.
	fingerprint [][]byte
	// again: a rejection does not carry what build needs; it gets a new view.
	again bool
	// validate is called once the caller is known to be allowed to ask.
	validate func() error
	// build makes the command on p; now, when not nil, holds newer values than p
	// of what the command names. A *secret.Error is a negative answer.
	build func(p *published, now *fsmpb.Current) (*fsmpb.Command, error)
}

// retryPause is the time between attempts while there is no leader or the
// outcome of an attempt is unknown. Elections take some hundred milliseconds.
const retryPause = 25 * time.Millisecond

// change carries c through: authorise, queue, decide, audit, propose, decide
// again when what the decision rested on has moved. One write id holds for all
// attempts, so that the change is applied at most once whatever happened to each.
func (s *Store) change(ctx context.Context, r Request, c change) (*fsmpb.Result, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	w := &writing{store: s, r: r, c: c}
	result, err := w.begin(ctx)
	if err != nil {
		return nil, w.fail(err)
	}
	r.saw(result.Index)
	return result, nil
}

// begin waits for the turn and runs. Who may not write does not get into the
// queue, where he would hold up those who may.
func (w *writing) begin(ctx context.Context) (*fsmpb.Result, error) {
	s := w.store
	var err error
	if w.p, err = s.current(); err != nil {
		return nil, err
	}
	if _, err := w.authorise(ctx); err != nil {
		return nil, err
	}
	unlock, err := s.queues.lockAll(ctx, w.c.acts)
	if err != nil {
		return nil, secret.Errorf(secret.CodeOverloaded, "too many writers wait for this path")
	}
	defer unlock()
	// From here on the caller's leaving stops nothing: the record is to say what
	// became of the change, not that nobody waited for it.
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()

	if w.p, err = s.current(); err != nil { // newer than before the wait
		return nil, err
	}
	w.fresh = false
	if err := w.judgeable(ctx); err != nil {
		return nil, err
	}
	id, index := s.scoped(w.r, w.p.view.Index())
	print, err := s.cfg.Keys.Fingerprint(append([][]byte{[]byte(w.c.op)}, w.c.fingerprint...)...)
	if err != nil {
		return nil, err
	}
	w.id = &fsmpb.WriteID{Id: id[:], Index: index, Request: print}
	return w.run(ctx)
}

// judgeable refuses a keyed id whose index says nothing about the past.
func (w *writing) judgeable(ctx context.Context) error {
	id := w.r.Write
	switch {
	case !id.Keyed:
		return nil
	case id.Index == 0:
		return secret.Errorf(secret.CodeIndexRequired, "an idempotency key needs an index that was answered before the first attempt with it: for a first attempt the Spike-Index of this answer will do; keep it with the key for every retry")
	case id.Index > w.p.view.Index(): // this peer may only be behind
		if err := w.refresh(ctx); err != nil {
			return err
		}
		if id.Index > w.p.view.Index() {
			return secret.Invalid("Spike-Index", "this cluster has never answered such an index")
		}
	}
	return nil
}

// writing is one run of a change.
type writing struct {
	store    *Store
	r        Request
	c        change
	id       *fsmpb.WriteID
	p        *published
	fresh    bool           // p came from a read-index round
	now      *fsmpb.Current // newer than p: from a rejection
	by       []string       // what allowed each act, at the last decision
	intended bool           // the intent is on record
	unknown  bool           // an attempt may have taken effect
}

func (w *writing) run(ctx context.Context) (*fsmpb.Result, error) {
	for {
		command, err := w.decide(ctx)
		result := w.earlier(err)
		switch {
		case result != nil:
			w.unknown = true // it is made, whatever becomes of this request
			if err := w.intend(); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		default:
			if result, err = w.propose(ctx, command); err != nil {
				return nil, err
			}
		}
		switch result.Code {
		case fsmpb.Code_OK:
			w.unknown = true // made; until it is on record nothing better may be said
			return result, w.recordEach(true, func(i int, a act) audit.Record {
				version := result.Version
				if i < len(result.Operations) {
					version = result.Operations[i].Version
				}
				return audit.Record{Phase: audit.PhaseOutcome, Decision: audit.Allow, Result: "ok", Version: version, Index: result.Index}
			})
		case fsmpb.Code_CONFLICT:
			if planted.Is(planted.LostWrite) {
				return &fsmpb.Result{Code: fsmpb.Code_OK, Version: command.GetPutSecret().GetVersion()}, nil
			}
			w.now = result.Current
			if w.c.again {
				if err := w.refresh(ctx); err != nil {
					return nil, err
				}
			}
		case fsmpb.Code_BASIS_MOVED:
			if err := w.refresh(ctx); err != nil {
				return nil, err
			}
		default:
			return nil, w.rejection(result)
		}
	}
}

// decide authorises, validates and builds on the view in hand. When the answer
// would be negative and that view may be old, it looks again on a fresh one.
func (w *writing) decide(ctx context.Context) (*fsmpb.Command, error) {
	s := w.store
	for {
		var err error
		if w.by, err = w.authorise(ctx); err != nil {
			return nil, err
		}
		if w.c.validate != nil {
			if err := w.c.validate(); err != nil {
				return nil, err
			}
		}
		// Before anything is encrypted: the keys may move on at any moment, and what was
		// sealed under an older key than the command says would be accepted unnoticed.
		epoch, err := s.cfg.Keys.DataEpoch()
		if err != nil {
			return nil, err
		}
		command, err := w.c.build(w.p, w.now)
		var negative *secret.Error
		if errors.As(err, &negative) && negative.Code != secret.CodeSealed && !w.fresh && w.now == nil {
			if err := w.refresh(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := w.intend(); err != nil {
			return nil, err
		}
		command.TimeUnixNano = s.cfg.Now().UnixNano()
		if !planted.Is(planted.NoWriteIDs) {
			command.WriteId = w.id
		}
		command.Basis = &fsmpb.Basis{PolicyRevision: proto.Uint64(w.p.view.PolicyRevision()),
			SealGeneration: proto.Uint64(w.p.view.Seal().Generation), DataEpoch: epoch}
		return command, nil
	}
}

// authorise says by what the caller may do each act: all of them, or errDenied.
// A denial rests on a fresh view.
func (w *writing) authorise(ctx context.Context) ([]string, error) {
	for {
		by := make([]string, 0, len(w.c.acts))
		for _, a := range w.c.acts {
			if why := a.allowed(w.p, w.r.Caller); why != "" {
				by = append(by, why)
			}
		}
		switch {
		case len(by) == len(w.c.acts):
			return by, nil
		case w.fresh:
			return nil, errDenied
		}
		if err := w.refresh(ctx); err != nil {
			return nil, err
		}
	}
}

// intend puts the intent on record, once.
func (w *writing) intend() error {
	if w.intended {
		return nil
	}
	err := w.recordEach(true, func(i int, _ act) audit.Record {
		return audit.Record{Phase: audit.PhaseIntent, Decision: audit.Allow, By: w.by[i], Index: w.p.view.Index()}
	})
	w.intended = err == nil
	return err
}

// recordEach writes one record for each act. The last one's fsync holds for all
// of them: they lie in one chain.
func (w *writing) recordEach(durable bool, record func(int, act) audit.Record) error {
	for i, a := range w.c.acts {
		r := record(i, a)
		r.Op, r.Path = a.op, a.object
		if err := w.store.record(w.r, r, durable && i == len(w.c.acts)-1); err != nil {
			return err
		}
	}
	return nil
}

// earlier finds the result of an attempt that an earlier request made under the
// same write id: what looks like a conflict, or like nothing to remove, is then
// this change's own doing. It is asked once the caller is known to be allowed.
func (w *writing) earlier(err error) *fsmpb.Result {
	var negative *secret.Error
	if w.r.Write.ID == ([16]byte{}) || !errors.As(err, &negative) ||
		negative.Code != secret.CodeConflict && negative.Code != secret.CodeNotFound {
		return nil
	}
	return w.p.view.Replay([16]byte(w.id.Id), w.id.Request, w.id.Index)
}

var errDenied = errors.New("denied")

func (w *writing) refresh(ctx context.Context) error {
	p, err := w.store.fresh(ctx)
	if err != nil {
		return err
	}
	w.p, w.fresh, w.now = p, true, nil
	return nil
}

// propose tries until there is a result or the time is up. An attempt whose
// outcome is unknown is repeated under the same write id: if it did take
// effect, the state machine answers with that result.
func (w *writing) propose(ctx context.Context, command *fsmpb.Command) (*fsmpb.Result, error) {
	encoded, err := fsm.Encode(command)
	if err != nil {
		return nil, err
	}
	for {
		answer, err := w.store.cfg.Log.Propose(ctx, encoded)
		if err == nil {
			result := &fsmpb.Result{}
			if err := proto.Unmarshal(answer, result); err != nil {
				w.unknown = true
				return nil, secret.Errorf(secret.CodeInternal, "the leader's answer is not understood; are all peers of one release?")
			}
			return result, nil
		}
		switch secret.CodeOf(err) {
		case secret.CodeUnknown:
			w.unknown = true
		case secret.CodeUnavailable:
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryPause):
		}
	}
}

// fail records how the change ended and says it to the caller. Once an attempt
// may have taken effect, only a result from the log may say anything else.
func (w *writing) fail(err error) error {
	if errors.Is(err, errDenied) {
		if !w.intended {
			return w.deny()
		}
		err = secret.Errorf(secret.CodeDenied, "this identity may not do that any more; a policy changed meanwhile")
	}
	err = w.honest(err)
	phase := audit.PhaseDecision
	if w.intended {
		phase = audit.PhaseOutcome
	}
	auditErr := w.recordEach(w.intended, func(int, act) audit.Record {
		return audit.Record{Phase: phase, Decision: audit.Refuse, Result: string(secret.CodeOf(err))}
	})
	if auditErr != nil {
		return w.honest(auditErr)
	}
	return err
}

// deny records a denial: of the acts that the caller may not do as such, of the
// others as refused with them.
func (w *writing) deny() error {
	err := w.recordEach(false, func(_ int, a act) audit.Record {
		r := audit.Record{Phase: audit.PhaseDecision, Decision: audit.Deny, Index: w.p.view.Index()}
		if a.allowed(w.p, w.r.Caller) != "" {
			r.Decision, r.Result = audit.Refuse, string(secret.CodeDenied)
		}
		return r
	})
	if err != nil {
		return err
	}
	return denied()
}

// honest keeps an error from saying "not done" of a change that may be.
func (w *writing) honest(err error) error {
	switch secret.CodeOf(err) {
	case secret.CodeUnavailable, secret.CodeOverloaded, secret.CodeUnknown:
		if w.unknown {
			return unknownOutcome(err)
		}
	}
	return err
}

func unknownOutcome(cause error) error {
	return &secret.Error{Code: secret.CodeUnknown, Message: "the outcome is unknown: the change may or may not have been made; read before writing again", Cause: cause}
}

// rejection turns a result that ends the change into an error.
func (w *writing) rejection(result *fsmpb.Result) error {
	switch result.Code {
	case fsmpb.Code_NOT_FOUND:
		// In the same words as when this peer had known it before proposing.
		policies := w.c.acts[0].on == secret.SystemPolicies
		switch c := result.GetCurrent(); {
		case result.Operation > 0:
			return ofOperation(int(result.Operation), errNoSecret())
		case policies && c.GetPolicyBodyRevision() == 0:
			return errNoPolicy()
		case !policies && c.GetSecretRevision() == 0:
			return errNoSecret()
		}
		return secret.Errorf(secret.CodeNotFound, "there is nothing that this could change")
	case fsmpb.Code_SEALED:
		return secret.Errorf(secret.CodeSealed, "the cluster is sealed by an operator")
	case fsmpb.Code_WINDOW_EXPIRED:
		return secret.Errorf(secret.CodeUnknown, "the write id is too old to know whether it was applied; read before writing again")
	case fsmpb.Code_WRITE_ID_REUSED:
		return secret.Invalid("write id", "it was used for another request")
	case fsmpb.Code_TOO_LARGE:
		return ofOperation(int(result.Operation), secret.Errorf(secret.CodeTooLarge, "the secret is larger than the cluster allows"))
	case fsmpb.Code_STATE_FULL:
		return secret.Errorf(secret.CodeFull, "the cluster's state has reached its limit; purge what is not needed or raise state_limit_bytes")
	case fsmpb.Code_NOT_FOUNDED:
		return secret.Errorf(secret.CodeUnavailable, "the cluster is still being formed")
	}
	return &secret.Error{Code: secret.CodeInternal, Message: "the change was refused by the state machine", Reason: result.Code.String(), Cause: errors.New(result.Reason)}
}

// queues lets the writers of one name on this peer go one after the other.
type queues struct {
	mu   sync.Mutex // guards the map and the counts in it
	byID map[string]*queue
}

type queue struct {
	turn  chan struct{} // holds a token while nobody has the turn
	users int
}

// maxWaiting bounds the writers that wait for one name on one peer.
const maxWaiting = 1024

// lockAll waits for the turn on everything that the acts name: in one order for
// all writers, so that none waits for another that waits for it.
func (q *queues) lockAll(ctx context.Context, acts []act) (unlock func(), err error) {
	names := make([]string, len(acts))
	for i, a := range acts {
		names[i] = a.object
	}
	slices.Sort(names)
	var unlocks []func()
	unlock = func() {
		for _, u := range slices.Backward(unlocks) {
			u()
		}
	}
	for _, name := range slices.Compact(names) {
		u, err := q.lock(ctx, name)
		if err != nil {
			unlock()
			return nil, err
		}
		unlocks = append(unlocks, u)
	}
	return unlock, nil
}

func (q *queues) lock(ctx context.Context, name string) (unlock func(), err error) {
	q.mu.Lock()
	if q.byID == nil {
		q.byID = map[string]*queue{}
	}
	mine := q.byID[name]
	if mine == nil {
		mine = &queue{turn: make(chan struct{}, 1)}
		mine.turn <- struct{}{}
		q.byID[name] = mine
	}
	if mine.users >= maxWaiting {
		q.mu.Unlock()
		return nil, context.DeadlineExceeded
	}
	mine.users++
	q.mu.Unlock()
	leave := func() {
		q.mu.Lock()
		if mine.users--; mine.users == 0 {
			delete(q.byID, name)
		}
		q.mu.Unlock()
	}
	select {
	case <-mine.turn:
		return func() { mine.turn <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
