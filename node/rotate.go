package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

const (
	// rotateEvery is how often a leader looks whether records are to be sealed anew.
	rotateEvery = time.Second
	// ageEvery is how often it looks how old the keys are.
	ageEvery = time.Minute
	// A batch is one entry of the log. So that no client's write waits long behind
	// it, it grows and shrinks towards batchTime, within these bounds.
	batchTime    = 10 * time.Millisecond
	leastRecords = 64
	mostRecords  = fsm.MaxResealed
	batchBytes   = 256 << 10
	// levelOfRotation is the format level that has rotation.
	levelOfRotation = 2
)

// RotateKeys puts a keyring with new keys into the log. No record is touched:
// that is for rotating, on whoever leads.
func (o operator) RotateKeys(ctx context.Context, purposes []string) error {
	n := o.n
	list := seal.Rotatable
	if len(purposes) > 0 {
		list = nil
		for _, p := range purposes {
			list = append(list, seal.Purpose(p))
		}
	}
	if n.machine.View().Level() < levelOfRotation {
		return n.levelTooLow(levelOfRotation)
	}
	if late, _ := n.behind(); len(late) > 0 {
		return &secret.Error{Code: secret.CodeConflict, Subject: "keyring", Reason: "rekey_unfinished",
			Message: "after the rekey " + strings.Join(late, ", ") + " must get the new root key first, or would be sealed by this; keys are then rotated without being asked"}
	}
	return rotationError(n.seal.Rotate(ctx, ledger{n}, list))
}

// PruneKeys drops archived keys.
func (o operator) PruneKeys(ctx context.Context, before time.Time) (int, error) {
	if o.n.machine.View().Level() < levelOfRotation {
		return 0, o.n.levelTooLow(levelOfRotation)
	}
	pruned, err := o.n.seal.Prune(ctx, ledger(o), before)
	return pruned, rotationError(err)
}

// levelTooLow says which members keep the cluster at its level.
func (n *Node) levelTooLow(needed uint32) error {
	var old []string
	for _, p := range n.askPeers(n.cluster.Status().Members) {
		if !p.Reachable || p.State == string(cluster.Forming) || p.Level < needed {
			old = append(old, p.ID)
		}
	}
	why := "the cluster's format level rises in a few seconds; ask again then"
	if len(old) > 0 {
		why = "the cluster does that once every member runs a release that can; upgrade, or start, " + strings.Join(old, ", ") + " first"
	}
	return &secret.Error{Code: secret.CodeConflict, Subject: "level", Message: why, Reason: "level_too_low"}
}

func rotationError(err error) error {
	conflict := func(reason, message string) error {
		return &secret.Error{Code: secret.CodeConflict, Subject: "keyring", Message: message, Reason: reason, Cause: err}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, seal.ErrPurpose):
		return secret.Invalid("purposes", "can be rotated: archive, audit-path, cipher, data; path and token-mac live as long as the cluster")
	case errors.Is(err, seal.ErrPending):
		return conflict("share_set_pending", "a share set is pending; let the initialisation or rekey come to its end, run it again, or cancel it: spikectl key rekey --cancel")
	case errors.Is(err, seal.ErrSuperseded):
		return conflict("keyring_moved", "another rotation came first; see 'spikectl key status'")
	case errors.Is(err, seal.ErrStaleState):
		return &secret.Error{Code: secret.CodeUnavailable, Message: "this peer is changing to the new root key; ask again, or another peer", Cause: err}
	case errors.Is(err, seal.ErrNotInitialised):
		return secret.Errorf(secret.CodeUnavailable, "the cluster was never initialised; it has no keys to rotate")
	case errors.Is(err, seal.ErrSealed), errors.Is(err, seal.ErrOperatorSealed), errors.Is(err, seal.ErrTooLarge):
		return keyError(err)
	}
	return logError(err)
}

// Keys counts by the headers of ciphertexts, without opening any.
func (o operator) Keys(ctx context.Context) (store.KeyStatus, error) {
	n := o.n
	if _, err := (ledger{n}).State(ctx); err != nil {
		return store.KeyStatus{}, logError(err)
	}
	view := n.machine.View()
	epochs, err := n.seal.Epochs(sealState(view))
	if err != nil {
		return store.KeyStatus{}, rotationError(err)
	}
	uses := make([]int, len(epochs))
	count := func(sealed []byte) {
		id := seal.RecordEpoch(sealed)
		for i := range epochs {
			if bytes.Equal(epochs[i].ID, id) {
				uses[i]++
				return
			}
		}
	}
	for s := range view.Secrets() {
		count(s.Name)
		for _, v := range s.Versions {
			count(v.Value)
		}
	}
	for p := range view.Policies() {
		count(p.Body)
	}
	pb := view.Seal()
	status := store.KeyStatus{ShareSet: describeSet(pb.Committed), Pending: describeSet(pb.Pending), Inherited: n.seal.Inherited()}
	for i, e := range epochs {
		k := store.KeyEpoch{Purpose: string(e.Purpose), ID: hex.EncodeToString(e.ID), Status: string(e.Status), Created: e.Created}
		if e.Purpose == seal.Data || e.Purpose == seal.Path {
			k.Records = &uses[i]
		}
		if e.Purpose == seal.Data {
			status.Records += *k.Records
			if e.Status != seal.Current {
				status.Stale += *k.Records
			}
		}
		status.Epochs = append(status.Epochs, k)
	}
	return status, nil
}

func describeSet(pb *fsmpb.ShareSet) *store.ShareSet {
	if pb == nil {
		return nil
	}
	return &store.ShareSet{ID: hex.EncodeToString(pb.Id), Shares: int(pb.Shares), Threshold: int(pb.Threshold), Keepers: pb.Keepers}
}

// rotating rotates keys that are too old, and seals anew what is under retired
// ones. Whoever leads finds what is left in the state itself, so that it goes on
// where another was killed. What went wrong is tried again.
func (n *Node) rotating() {
	var looked, inherited time.Time
	for n.sleep(rotateEvery) {
		if !n.leads() || n.store.Sealed() || n.machine.View().Level() < levelOfRotation {
			continue
		}
		if n.cfg.KeyMaxAge > 0 && time.Since(looked) >= ageEvery {
			looked = time.Now()
			if err := n.rotateByAge(n.now()); err != nil {
				n.log.Warn("keys that are too old could not be rotated; it is tried again", "error", err)
			}
		}
		if err := n.rotateInherited(&inherited); err != nil {
			n.log.Warn("the keys of before the rekey could not be rotated; it is tried again", "error", err)
		}
		if err := n.reseal(); err != nil {
			n.log.Info("sealing records anew was interrupted; it goes on", "reason", err)
		}
	}
}

// request is what stands in audit records of what this peer does by itself.
func (n *Node) request() store.Request {
	return store.Request{ID: "key-rotation", Caller: secret.Caller{ID: n.source.ID().String()}}
}

func (n *Node) rotateByAge(now time.Time) error {
	epochs, err := n.seal.Epochs(sealState(n.machine.View()))
	if err != nil {
		return err
	}
	var old []string
	for _, e := range epochs {
		if e.Status == seal.Current && slices.Contains(seal.Rotatable, e.Purpose) && now.Sub(e.Created) > n.cfg.KeyMaxAge {
			old = append(old, string(e.Purpose))
		}
	}
	if len(old) == 0 {
		return nil
	}
	ctx, cancel := n.step()
	defer cancel()
	return n.store.OfOwnAccord(n.request(), "key.rotate", "setting key-max-age", strings.Join(old, " "),
		func() error { return operator{n}.RotateKeys(ctx, old) })
}

var errNotLeading = errors.New("this peer does not lead any more")

// reseal goes through all records and seals those anew that are under a retired
// data key. When there is none left, and there will be none, since writes name
// the key they are under, the retired keys are archived.
func (n *Node) reseal() error {
	retired, err := n.seal.RetiredEpochs(seal.Data)
	if err != nil || len(retired) == 0 {
		return err
	}
	stale := func(sealed []byte) bool {
		epoch := seal.RecordEpoch(sealed)
		return slices.ContainsFunc(retired, func(id []byte) bool { return bytes.Equal(id, epoch) })
	}
	view := n.machine.View() // after the keys: it has the entry that retired them
	b := batch{n: n, generation: view.Seal().Generation, size: 2 * leastRecords}
	for s := range view.Secrets() {
		for _, v := range s.Versions {
			if stale(v.Value) {
				if err := b.version(s, v); err != nil {
					return err
				}
			}
		}
	}
	for p := range view.Policies() {
		if stale(p.Body) {
			if err := b.policy(p); err != nil {
				return err
			}
		}
	}
	switch {
	case b.found > 0: // looked through once more, for what moved meanwhile
		if err := b.send(); err != nil {
			return err
		}
		if b.done > 0 {
			n.log.Info("records were sealed anew", "records", b.done, "found", b.found, "damaged", b.damaged)
		}
		return nil
	case !n.leads():
		return errNotLeading
	}
	ctx, cancel := n.step()
	defer cancel()
	var ids []string
	for _, id := range retired {
		ids = append(ids, hex.EncodeToString(id))
	}
	failpoint.Hit(failpoint.NodeArchiveBefore)
	return n.store.OfOwnAccord(n.request(), "key.archive", "key rotation", "data "+strings.Join(ids, " "),
		func() error { return rotationError(n.seal.Archive(ctx, ledger{n}, seal.Data, retired)) })
}

// batch collects ciphertexts until they are worth an entry.
type batch struct {
	n *Node
	// generation of the seal of the state that is looked through: a restore in between
	// may bring other records of the same revisions.
	generation uint64
	epoch      []byte // that the ciphertexts of op are under, or an older one
	op         *fsmpb.Reseal
	size       int // records that it may have now
	count      int
	bytes      int
	found      int // in all: stale
	done       int // in all: replaced
	damaged    int // in all: did not open; they hold their key
}

func (b *batch) version(s *fsmpb.Secret, v *fsmpb.Version) error {
	sealed, err := b.seal(store.KindValue, fsm.Token(s.Token), v.Version, v.Value)
	if sealed != nil {
		b.op.Versions = append(b.op.Versions, &fsmpb.ResealedVersion{Token: s.Token, Revision: s.Revision, Version: v.Version, Value: sealed})
	}
	return err
}

func (b *batch) policy(p *fsmpb.Policy) error {
	sealed, err := b.seal(store.KindPolicy, fsm.Token(p.Token), 0, p.Body)
	if sealed != nil {
		b.op.Policies = append(b.op.Policies, &fsmpb.ResealedPolicy{Token: p.Token, Revision: p.Revision, Body: sealed})
	}
	return err
}

// seal makes the ciphertext under the current key; nil for one that does not open.
func (b *batch) seal(kind store.Kind, token fsm.Token, version uint64, stale []byte) ([]byte, error) {
	b.found++
	if b.count >= b.size || b.bytes+len(stale) > batchBytes && b.count > 0 {
		if err := b.send(); err != nil {
			return nil, err
		}
	}
	k := keys{b.n.seal}
	if b.op == nil {
		epoch, err := k.DataEpoch() // before anything is encrypted, as for any write
		if err != nil {
			return nil, err
		}
		b.op, b.epoch = &fsmpb.Reseal{}, epoch
	}
	plain, err := k.Decrypt(kind, token, version, stale)
	if errors.Is(err, seal.ErrOpen) {
		b.damaged++
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	sealed, err := k.Encrypt(kind, token, version, plain)
	if err != nil {
		return nil, err
	}
	b.count++
	b.bytes += len(sealed)
	return sealed, nil
}

// send proposes what was collected, and then stands back for as long as that
// took: clients have half of what there is, and more the slower it gets.
func (b *batch) send() error {
	if b.count == 0 {
		return nil
	}
	if !b.n.leads() {
		return errNotLeading
	}
	ctx, cancel := b.n.step()
	defer cancel()
	began := time.Now()
	failpoint.Hit(failpoint.NodeResealBefore)
	result, err := b.n.propose(ctx, &fsmpb.Command{Basis: &fsmpb.Basis{DataEpoch: b.epoch, SealGeneration: &b.generation}, Op: &fsmpb.Command_Reseal{Reseal: b.op}})
	switch {
	case err != nil:
		return err
	case result.Code != fsmpb.Code_OK:
		return fmt.Errorf("the state machine refused it: %s", result.Code)
	}
	failpoint.Hit(failpoint.NodeResealAfter)
	b.done += int(result.Resealed)
	b.op, b.count, b.bytes = nil, 0, 0
	took := time.Since(began)
	switch {
	case took < batchTime:
		b.size = min(b.size*2, mostRecords)
	case took > 2*batchTime:
		b.size = max(b.size/2, leastRecords)
	}
	if !b.n.sleep(took) {
		return context.Canceled
	}
	return nil
}
