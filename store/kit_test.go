package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// world is a store on a real state machine, with everything else faked so that
// any interleaving can be staged.
type world struct {
	*store.Store
	t       *testing.T
	machine *fsm.Machine
	log     *fakeLog
	keys    *fakeKeys
	audit   *fakeAudit
	shares  []store.RecoveryShare // what the operator door gives out
	changes []store.MemberChange  // what it was asked for
	pruned  []time.Time           // the time of each pruning
	rotated [][]string            // the purposes of each rotation
	seals   []string              // each change of a seal
	rekeys  []store.Rekeying
}

// operator always succeeds.
type operator struct{ w *world }

func (operator) SaveSnapshot(context.Context, [16]byte) (store.SavedSnapshot, error) {
	return store.SavedSnapshot{Done: true, Index: 7}, nil
}

func (operator) ExportSnapshot(_ context.Context, begin func(int64) (io.Writer, error)) (store.SavedSnapshot, error) {
	w, err := begin(5)
	if err == nil {
		_, err = io.WriteString(w, "a tar")
	}
	return store.SavedSnapshot{Done: true}, err
}

func (operator) DrillArchive(_ context.Context, id [16]byte) (store.Drill, error) {
	return store.Drill{Done: true, OK: true, ID: id}, nil
}

func (operator) ArchiveCare(context.Context) (store.ArchiveCare, error) {
	return store.ArchiveCare{Archive: "file:///a"}, nil
}

func (operator) Initialise(context.Context, int, int, bool) error { return nil }

func (o operator) RecoveryShares(context.Context) ([]store.RecoveryShare, error) {
	return o.w.shares, nil
}

func (o operator) RecoveryFiles(_ context.Context, recipients []string, _ bool) ([]store.RecoveryFile, error) {
	return make([]store.RecoveryFile, len(recipients)), nil
}

func (operator) PlanRestore(context.Context, store.RestoreTarget, func(store.RestoreStep)) (store.RestorePlan, error) {
	return store.RestorePlan{}, nil
}

func (operator) RestoreLive(context.Context, store.RestoreTarget, string, func(store.RestoreStep)) (store.RestorePlan, error) {
	return store.RestorePlan{}, nil
}

func (operator) Restore(context.Context, store.RecoveryShare) (store.RestoreProgress, error) {
	return store.RestoreProgress{}, nil
}

func (o operator) SetSealed(_ context.Context, sealed bool, peer string) error {
	o.w.seals = append(o.w.seals, fmt.Sprintf("%t %s", sealed, peer))
	return nil
}

func (o operator) ChangeMembers(_ context.Context, c store.MemberChange) error {
	o.w.changes = append(o.w.changes, c)
	return nil
}

func (o operator) PruneKeys(_ context.Context, before time.Time) (int, error) {
	o.w.pruned = append(o.w.pruned, before)
	return 1, nil
}

func (o operator) RotateKeys(_ context.Context, purposes []string) error {
	o.w.rotated = append(o.w.rotated, purposes)
	return nil
}

func (o operator) Rekey(_ context.Context, r store.Rekeying) error {
	o.w.rekeys = append(o.w.rekeys, r)
	return nil
}

func (operator) CancelRekey(context.Context) (string, error) { return "a set", nil }

func (operator) Keepers(_ context.Context, prove bool) (store.KeeperList, error) {
	return store.KeeperList{Good: map[bool]int{true: 2, false: 1}[prove]}, nil
}

func (operator) Keys(context.Context) (store.KeyStatus, error) { return store.KeyStatus{}, nil }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, machine: fsm.New(fsm.Options{}), keys: &fakeKeys{}, audit: &fakeAudit{}}
	w.log = &fakeLog{machine: w.machine}
	w.Store = store.New(store.Config{Machine: w.machine, Log: w.log, Keys: w.keys, Recorder: w.audit, Operator: operator{w}, Logger: slog.New(slog.DiscardHandler), Timeout: 10 * time.Second})
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: make16(1), Incarnation: 1}}})
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_BeginShareSet{BeginShareSet: &fsmpb.BeginShareSet{Set: &fsmpb.ShareSet{
		Id: make16(2), Shares: 1, Threshold: 1, Fingerprints: [][]byte{make([]byte, 32)}, Keepers: []string{"keeper-1"}}}}})
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_CommitShareSet{CommitShareSet: &fsmpb.CommitShareSet{Id: make16(2), Keyring: []byte("keyring"),
		Epochs: []*fsmpb.Epoch{{Purpose: "data", Id: []byte("epoch-1")}}}}})
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	return w
}

// rotate gives the state and the keys another data epoch.
func (w *world) rotate(epoch string) {
	w.t.Helper()
	set := &fsmpb.ShareSet{Id: make16(3), Shares: 1, Threshold: 1, Fingerprints: [][]byte{make([]byte, 32)}, Keepers: []string{"keeper-1"}}
	w.log.must(w.t, &fsmpb.Command{Op: &fsmpb.Command_BeginShareSet{BeginShareSet: &fsmpb.BeginShareSet{Set: set, Supersedes: make16(2)}}})
	w.log.must(w.t, &fsmpb.Command{Op: &fsmpb.Command_CommitShareSet{CommitShareSet: &fsmpb.CommitShareSet{Id: make16(3), Keyring: []byte("keyring 2"),
		Epochs: []*fsmpb.Epoch{{Purpose: "data", Id: []byte(epoch)}}}}})
	w.keys.mu.Lock()
	defer w.keys.mu.Unlock()
	w.keys.epoch = epoch
}

func make16(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }

// other is a second door to the same state: another peer.
func (w *world) other() *store.Store {
	s := store.New(store.Config{Machine: w.machine, Log: &fakeLog{machine: w.machine, shared: w.log}, Keys: w.keys, Recorder: w.audit, Logger: slog.New(slog.DiscardHandler)})
	if err := s.Open(); err != nil {
		w.t.Error(err)
	}
	return s
}

// fakeLog applies at once, in the caller's goroutine. Hooks stage faults.
type fakeLog struct {
	machine *fsm.Machine
	shared  *fakeLog // whose order and index hold

	mu     sync.Mutex // makes the order
	index  uint64
	before func(*fsmpb.Command)         // called once, before the next proposal is applied
	fail   func() (apply bool, _ error) // called for each proposal: what becomes of it
	reads  int
	onRead func() // called in each read-index round
	noRead error
}

func (l *fakeLog) Propose(ctx context.Context, command []byte) ([]byte, error) {
	if l.shared != nil {
		return l.shared.Propose(ctx, command)
	}
	if hook := l.before; hook != nil {
		l.before = nil
		var c fsmpb.Command
		if err := proto.Unmarshal(command, &c); err != nil {
			return nil, err
		}
		hook(&c)
	}
	if l.fail != nil {
		apply, err := l.fail()
		if err != nil {
			if apply {
				l.apply(command)
			}
			return nil, err
		}
	}
	return l.apply(command)
}

func (l *fakeLog) apply(command []byte) ([]byte, error) {
	results, err := l.entry(command)
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// entry applies commands as one entry.
func (l *fakeLog) entry(commands ...[]byte) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	return l.machine.Apply(l.index, 1, commands)
}

func (l *fakeLog) WaitRead(context.Context) (uint64, error) {
	l.mu.Lock()
	on := l.onRead
	l.mu.Unlock()
	if on != nil {
		on()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return l.machine.View().Index(), l.noRead
}

// hook has f called in each read-index round.
func (l *fakeLog) hook(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onRead = f
}

// rounds is how many read-index rounds there were.
func (l *fakeLog) rounds() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reads
}

func (l *fakeLog) must(t *testing.T, c *fsmpb.Command) {
	t.Helper()
	encoded, err := fsm.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.apply(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if result, err := fsm.DecodeResult(raw); err != nil || result.Code != fsmpb.Code_OK {
		t.Fatal(result, err)
	}
}

// fakeKeys "encrypts" by writing down what it was given, so that a wrong place
// is noticed as a real key would.
type fakeKeys struct {
	mu     sync.Mutex
	sealed bool
	epoch  string
	during func() // called once, after the next encryption
}

func (k *fakeKeys) Sealed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sealed
}

func (k *fakeKeys) check() error {
	if k.Sealed() {
		return secret.Errorf(secret.CodeSealed, "sealed")
	}
	return nil
}

func label(kind store.Kind, token fsm.Token, version uint64) []byte {
	return fmt.Appendf(nil, "%s|%x|%d|", kind, token, version)
}

func (k *fakeKeys) Encrypt(kind store.Kind, token fsm.Token, version uint64, plaintext []byte) ([]byte, error) {
	if hook := k.during; hook != nil {
		k.during = nil
		hook()
	}
	return append(label(kind, token, version), plaintext...), k.check()
}

func (k *fakeKeys) Decrypt(kind store.Kind, token fsm.Token, version uint64, sealed []byte) ([]byte, error) {
	plain, ok := bytes.CutPrefix(sealed, label(kind, token, version))
	if !ok {
		return nil, secret.Errorf(secret.CodeInternal, "it does not open")
	}
	return plain, k.check()
}

func (k *fakeKeys) Token(kind store.Kind, name string) (fsm.Token, []byte, error) {
	return sha256.Sum256([]byte(string(kind) + name)), []byte("path-1"), k.check()
}

func (k *fakeKeys) DataEpoch() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch == "" {
		return []byte("epoch-1"), nil
	}
	return []byte(k.epoch), nil
}

func (k *fakeKeys) HashPath(path string) (string, error) {
	return fmt.Sprintf("hmac:%x", sha256.Sum256([]byte(path)))[:16], k.check()
}

func (k *fakeKeys) Fingerprint(parts ...[]byte) ([]byte, error) {
	sum := sha256.Sum256(bytes.Join(parts, []byte{0}))
	return sum[:], k.check()
}

func (k *fakeKeys) EncryptWire(plaintext []byte) ([]byte, []byte, error) {
	return make([]byte, 12), plaintext, k.check()
}

func (k *fakeKeys) DecryptWire(_, ciphertext []byte) ([]byte, error) { return ciphertext, k.check() }

func (k *fakeKeys) EncryptStream(dst io.Writer) (io.WriteCloser, error) {
	return fakeStream{Writer: dst, k: k}, k.check()
}

func (k *fakeKeys) DecryptStream(src io.Reader) (io.Reader, error) {
	return fakeStream{Reader: src, k: k}, k.check()
}

type fakeStream struct {
	io.Writer
	io.Reader
	k *fakeKeys
}

func (s fakeStream) Close() error { return s.k.check() }

// fakeAudit keeps the records; fail makes it refuse.
type fakeAudit struct {
	mu      sync.Mutex
	records []audit.Record
	durable []bool
	fail    func(audit.Record) error
}

func (a *fakeAudit) Append(r audit.Record, durable bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		if err := a.fail(r); err != nil {
			return err
		}
	}
	a.records = append(a.records, r)
	a.durable = append(a.durable, durable)
	return nil
}

// since returns the records after the first n as "op phase decision result".
func (a *fakeAudit) since(n int) (list []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.records[n:] {
		s := r.Op + " " + r.Phase + " " + r.Decision
		if r.Result != "" {
			s += " " + r.Result
		}
		list = append(list, s)
	}
	return list
}

func (a *fakeAudit) last() audit.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.records[len(a.records)-1]
}

func (a *fakeAudit) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.records)
}

var (
	ctx     = context.Background()
	su      = store.Request{Caller: secret.Caller{ID: "spiffe://example.org/su", Role: secret.RoleSuperuser}}
	web     = store.Request{Caller: secret.Caller{ID: "spiffe://example.org/workload/web"}}
	errDisk = errors.New("no space left on device")
)

func values(s string) map[string]string { return map[string]string{"v": s} }

func wantCode(t *testing.T, err error, code secret.Code) {
	t.Helper()
	if secret.CodeOf(err) != code {
		t.Fatalf("error %v (code %q), want code %q", err, secret.CodeOf(err), code)
	}
}

func (w *world) allow(name, path string, p secret.Permission) {
	w.t.Helper()
	_, err := w.PutPolicy(ctx, su, secret.Policy{Name: name, Permissions: p,
		SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: web.Caller.ID}, Path: secret.Pattern{Kind: secret.Prefix, Text: path}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(path string) string {
	w.t.Helper()
	v, err := w.GetSecret(ctx, su, path, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(v.JSON)
}
