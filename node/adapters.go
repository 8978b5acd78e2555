package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"

	"google.golang.org/protobuf/proto"
)

// machine lets the cluster drive the state machine.
type machine struct{ *fsm.Machine }

func (m machine) Snapshot() (cluster.Snapshot, error) { return viewSnapshot{m.View()}, nil }

type viewSnapshot struct{ view *fsm.View }

func (s viewSnapshot) Write(w io.Writer) error { return s.view.WriteSnapshot(w) }

// peers authenticates the links between peers: the id of a peer is the last
// segment of its SPIFFE id, /spike/nexus/<id>.
type peers struct {
	source  *identity.Source
	domains []string
}

func (p peers) Server() *tls.Config {
	return identity.TLS13(p.source.Server(func(id spiffeid.ID) error {
		_, err := p.name(id)
		return err
	}))
}

func (p peers) Client(want string) *tls.Config {
	return identity.TLS13(p.source.Client(func(id spiffeid.ID) error {
		name, err := p.name(id)
		if err == nil && name != want {
			err = fmt.Errorf("this is the peer %q, not %q", name, want)
		}
		return err
	}))
}

func (p peers) Peer(state tls.ConnectionState) (string, error) {
	id, err := identity.PeerID(state)
	if err != nil {
		return "", err
	}
	return p.name(id)
}

func (p peers) name(id spiffeid.ID) (string, error) {
	for _, d := range p.domains {
		if id.TrustDomain().Name() == d {
			if name, ok := strings.CutPrefix(id.Path(), "/spike/nexus/"); ok && name != "" && !strings.Contains(name, "/") {
				return name, nil
			}
		}
	}
	return "", errors.New("it is not a Nexus peer, /spike/nexus/<id> of a configured trust domain")
}

// proposals gives the store the replicated log in its own terms.
type proposals struct{ *cluster.Node }

func (l proposals) Propose(ctx context.Context, command []byte) ([]byte, error) {
	result, err := l.Node.Propose(ctx, command)
	return result.Data, logError(err)
}

func (l proposals) WaitRead(ctx context.Context) (uint64, error) {
	index, err := l.Node.WaitRead(ctx)
	if err != nil && secret.CodeOf(logError(err)) == secret.CodeUnknown {
		err = fmt.Errorf("%w: %w", cluster.ErrNotReady, err) // a read has no outcome to be unknown
	}
	return index, logError(err)
}

func logError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return &secret.Error{Code: secret.CodeUnknown, Message: "the outcome is unknown: the change may or may not have been made; read before writing again", Cause: err}
	case errors.Is(err, cluster.ErrTooLarge):
		return &secret.Error{Code: secret.CodeTooLarge, Message: "the change is larger than the cluster's log takes", Cause: err}
	case errors.Is(err, cluster.ErrOverloaded):
		return &secret.Error{Code: secret.CodeOverloaded, Message: "the cluster is overloaded; try again later", Cause: err}
	case errors.Is(err, cluster.ErrNoLeader), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &secret.Error{Code: secret.CodeUnavailable, Message: "the cluster has no leader that this peer can reach; try again", Cause: err}
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "this peer cannot serve now; try again or ask another", Cause: err}
}

// keys gives the store the operations of the seal.
type keys struct{ *seal.Seal }

func aad(kind store.Kind, token fsm.Token, version uint64) seal.AAD {
	return seal.AAD{Kind: string(kind), Token: token[:], Version: version}
}

// purpose is the key that a kind of record is under.
func purpose(kind store.Kind) seal.Purpose {
	if kind == store.KindName {
		return seal.Path
	}
	return seal.Data
}

func (k keys) Encrypt(kind store.Kind, token fsm.Token, version uint64, plaintext []byte) ([]byte, error) {
	sealed, err := k.Seal.Encrypt(purpose(kind), aad(kind, token, version), plaintext)
	return sealed, keyError(err)
}

func (k keys) Decrypt(kind store.Kind, token fsm.Token, version uint64, sealed []byte) ([]byte, error) {
	plain, err := k.Seal.Decrypt(purpose(kind), aad(kind, token, version), sealed)
	return plain, keyError(err)
}

func (k keys) Token(kind store.Kind, name string) (fsm.Token, []byte, error) {
	token, id, err := k.Seal.Token(string(kind), name)
	return token, id, keyError(err)
}

func (k keys) DataEpoch() ([]byte, error) {
	epoch, err := k.Seal.Epoch(seal.Data)
	return epoch, keyError(err)
}

func (k keys) HashPath(path string) (string, error) {
	hashed, err := k.Seal.HashPath(path)
	return hashed, keyError(err)
}

func (k keys) Fingerprint(parts ...[]byte) ([]byte, error) {
	print, err := k.Seal.Fingerprint(parts...)
	return print[:], keyError(err)
}

func (k keys) EncryptWire(plaintext []byte) ([]byte, []byte, error) {
	nonce, ciphertext, err := k.Seal.EncryptWire(plaintext)
	return nonce[:], ciphertext, keyError(err)
}

func (k keys) DecryptWire(nonce, ciphertext []byte) ([]byte, error) {
	plain, err := k.Seal.DecryptWire(nonce, ciphertext)
	if errors.Is(err, seal.ErrOpen) || errors.Is(err, seal.ErrTooLarge) {
		return nil, errUnopened
	}
	return plain, keyError(err)
}

var errUnopened = &secret.Error{Code: secret.CodeUndecrypted, Message: "the ciphertext does not open here"}

func keyError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, seal.ErrSealed), errors.Is(err, seal.ErrOperatorSealed):
		return &secret.Error{Code: secret.CodeSealed, Message: "this peer is sealed: it has no keys", Cause: err}
	case errors.Is(err, seal.ErrTooLarge):
		return &secret.Error{Code: secret.CodeTooLarge, Message: "it is larger than what is encrypted in one piece", Cause: err}
	}
	return &secret.Error{Code: secret.CodeInternal, Message: "a record could not be decrypted; run 'spikectl status'", Cause: err}
}

// ledger gives the seal its replicated half.
type ledger struct{ n *Node }

func (l ledger) State(ctx context.Context) (seal.State, error) {
	if _, err := l.n.cluster.WaitRead(ctx); err != nil {
		return seal.State{}, err
	}
	view := l.n.machine.View()
	if view.Founded() {
		l.n.current.Store(true)
	}
	return sealState(view), nil
}

func (l ledger) Begin(ctx context.Context, set seal.ShareSet, supersedes [16]byte, generation uint64) error {
	pb := &fsmpb.ShareSet{Id: set.ID[:], Shares: uint32(set.Shares), Threshold: uint32(set.Threshold), Keepers: set.Keepers}
	for _, f := range set.Fingerprints {
		pb.Fingerprints = append(pb.Fingerprints, f[:])
	}
	return l.propose(ctx, &fsmpb.Command{Basis: basis(generation),
		Op: &fsmpb.Command_BeginShareSet{BeginShareSet: &fsmpb.BeginShareSet{Set: pb, Supersedes: supersedes[:]}}})
}

func (l ledger) Commit(ctx context.Context, c seal.Commitment, generation uint64) error {
	commit := &fsmpb.CommitShareSet{Id: c.Set[:], Keyring: c.Keyring, Epochs: epochList(c.Epochs), Incarnation: c.Incarnation}
	return l.propose(ctx, &fsmpb.Command{Basis: basis(generation), Op: &fsmpb.Command_CommitShareSet{CommitShareSet: commit}})
}

func (l ledger) Abandon(ctx context.Context, setID [16]byte) error {
	return l.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AbandonShareSet{AbandonShareSet: &fsmpb.AbandonShareSet{Id: setID[:]}}})
}

func (l ledger) Replace(ctx context.Context, setID [16]byte, was, keyring []byte, epochs []seal.Epoch, generation uint64) error {
	old := sha256.Sum256(was)
	r := &fsmpb.ReplaceKeyring{Committed: setID[:], Replaces: old[:], Keyring: keyring, Epochs: epochList(epochs)}
	result, err := l.n.propose(ctx, &fsmpb.Command{Basis: basis(generation), Op: &fsmpb.Command_ReplaceKeyring{ReplaceKeyring: r}})
	switch {
	case err != nil:
		return err
	case result.Code == fsmpb.Code_CONFLICT && len(result.GetCurrent().GetPendingSet()) > 0:
		return seal.ErrPending
	}
	return resultError(result)
}

// basis has a change refused when an operator sealed or unsealed since it was decided on.
func basis(generation uint64) *fsmpb.Basis { return &fsmpb.Basis{SealGeneration: &generation} }

func epochList(epochs []seal.Epoch) (list []*fsmpb.Epoch) {
	for _, e := range epochs {
		list = append(list, &fsmpb.Epoch{Purpose: string(e.Purpose), Id: e.ID})
	}
	return list
}

func (l ledger) propose(ctx context.Context, command *fsmpb.Command) error {
	result, err := l.n.propose(ctx, command)
	if err != nil {
		return err
	}
	return resultError(result)
}

// resultError is what the seal is told of a result.
func resultError(result *fsmpb.Result) error {
	switch result.Code {
	case fsmpb.Code_OK:
		return nil
	case fsmpb.Code_SEALED, fsmpb.Code_BASIS_MOVED:
		return seal.ErrOperatorSealed
	case fsmpb.Code_CONFLICT, fsmpb.Code_SUPERSEDED:
		return seal.ErrSuperseded
	}
	return fmt.Errorf("the state machine refused it: %s %s", result.Code, result.Reason)
}

// propose sends a command of the node's own and decodes its result.
func (n *Node) propose(ctx context.Context, command *fsmpb.Command) (*fsmpb.Result, error) {
	command.TimeUnixNano = n.now().UnixNano()
	encoded, err := fsm.Encode(command)
	if err != nil {
		return nil, err
	}
	answer, err := n.cluster.Propose(ctx, encoded)
	if err != nil {
		return nil, err
	}
	result := &fsmpb.Result{}
	return result, proto.Unmarshal(answer.Data, result)
}

// sealState reads a view as the seal sees it.
func sealState(view *fsm.View) seal.State {
	id, incarnation := view.Cluster()
	st := sealStateOf(view.Seal(), id, incarnation)
	st.Index = view.Index()
	return st
}

func sealStateOf(pb *fsmpb.SealState, id []byte, incarnation uint64) seal.State {
	st := seal.State{Keyring: pb.Keyring, Sealed: pb.Sealed, Generation: pb.Generation,
		Committed: shareSet(pb.Committed), Pending: shareSet(pb.Pending)}
	copy(st.Cluster.ID[:], id)
	st.Cluster.Incarnation = incarnation
	for _, e := range pb.Epochs {
		st.Epochs = append(st.Epochs, seal.Epoch{Purpose: seal.Purpose(e.Purpose), ID: e.Id})
	}
	return st
}

func shareSet(pb *fsmpb.ShareSet) *seal.ShareSet {
	if pb == nil {
		return nil
	}
	set := &seal.ShareSet{Shares: int(pb.Shares), Threshold: int(pb.Threshold), Keepers: pb.Keepers}
	copy(set.ID[:], pb.Id)
	for _, f := range pb.Fingerprints {
		set.Fingerprints = append(set.Fingerprints, [32]byte(f))
	}
	return set
}
