package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/snapshot/internal/archivepb"
)

// A claim says who begins an incarnation of a cluster from its archive. Its name is created once, so of several that want to
// begin the same incarnation one does.
//
// It is not authenticated, and need not be: nothing is read from it that anybody acts on but to stand back. A forged one stops what
// begins by itself, and no restore that a person does.

// ErrNotExclusive: the store does not promise that of two who create one name only one succeeds.
var ErrNotExclusive = errors.New("snapshot: this store cannot say who was first to store an object, which an automatic restore needs (conditional PUT)")

// Exclusive is a Bucket that can find out whether Create, called by several at once for one name, succeeds for one of them.
type Exclusive interface {
	// Exclusive returns nil when it does, and else ErrNotExclusive, or why it cannot tell. It may store objects below prefix.
	Exclusive(ctx context.Context, prefix string) error
}

// Exclusive implements the interface of that name: a link is made once.
func (d *Directory) Exclusive(context.Context, string) error { return nil }

// Claimed is what a claim says.
type Claimed struct {
	Cluster     [16]byte
	Incarnation uint64
	Nonce       [32]byte // random, known to the claimant before it claims
	By          string   // the peer
	Peers       []string // that are to become the cluster: id=host:port
	When        time.Time
}

// ClaimedError says that somebody else claimed the incarnation.
type ClaimedError struct{ By Claimed }

func (e *ClaimedError) Error() string {
	return fmt.Sprintf("snapshot: incarnation %d was claimed by %s of the peers %s at %s", e.By.Incarnation, e.By.By, strings.Join(e.By.Peers, ","), e.By.When.Format(time.RFC3339))
}

const (
	maxClaim = 64 << 10
	maxPeers = 100
)

// CanClaim returns nil when the store is fit for claims. Errors: ErrNotExclusive, those of Bucket.
func (a *Archive) CanClaim(ctx context.Context) error {
	b, ok := a.bucket.(Exclusive)
	if !ok {
		return ErrNotExclusive
	}
	return b.Exclusive(ctx, strings.TrimSuffix(a.prefix, "/"))
}

// Claim claims an incarnation. It may be repeated, after a crash and when it is not known what became of it: whoever has the nonce that is
// in the archive has it. Errors: *ClaimedError, ErrFormat (what is there is no claim that this release knows), those of Bucket, after which it is not known.
func (a *Archive) Claim(ctx context.Context, c Claimed) error {
	h := Header{Kind: Claim, Cluster: c.Cluster, Incarnation: c.Incarnation, Peer: c.By, Created: c.When}
	raw, err := h.encode()
	if err != nil {
		return err
	}
	pb := &archivepb.Claim{Nonce: c.Nonce[:], Peers: c.Peers}
	if pb.Sum, err = claimSum(raw, pb); err != nil {
		return err
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(pb)
	if err != nil {
		return err
	}
	raw = append(raw, body...)
	if len(raw) > maxClaim || len(c.Peers) > maxPeers {
		return fmt.Errorf("%w: a claim for %d peers", ErrFormat, len(c.Peers))
	}
	item, err := a.create(ctx, h, nil, int64(len(raw)), bytes.NewReader(raw))
	if err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	// Read in any case: what counts is what others will read.
	there, err := a.ReadClaim(ctx, item)
	if err == nil && there.Nonce != c.Nonce {
		err = &ClaimedError{there}
	}
	return err
}

// ReadClaim reads a claim, which nothing proves. Errors: ErrFormat, ErrForeign, ErrDamaged, those of Bucket.
func (a *Archive) ReadClaim(ctx context.Context, item Item) (c Claimed, err error) {
	h, raw, body, done, err := a.open(ctx, item)
	if err != nil {
		return c, err
	}
	defer done()
	b, err := io.ReadAll(io.LimitReader(body, maxClaim+1))
	pb := new(archivepb.Claim)
	switch {
	case err != nil:
	case len(b) > maxClaim || proto.Unmarshal(b, pb) != nil || len(pb.Nonce) != len(c.Nonce) || len(pb.Peers) == 0 || len(pb.Peers) > maxPeers:
		err = ErrFormat
	default:
		var sum []byte
		if sum, err = claimSum(raw, pb); err == nil && !bytes.Equal(sum, pb.Sum) {
			err = ErrDamaged
		}
	}
	if err != nil {
		return c, fmt.Errorf("%s in %s: %w", item.Name, a, err)
	}
	return Claimed{Cluster: h.Cluster, Incarnation: h.Incarnation, Nonce: [32]byte(pb.Nonce), By: h.Peer, Peers: pb.Peers, When: h.Created}, nil
}

func claimSum(header []byte, pb *archivepb.Claim) ([]byte, error) {
	plain := proto.Clone(pb).(*archivepb.Claim)
	plain.Sum = nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(plain)
	return sha256Of(append(bytes.Clone(header), b...)), err
}

// HighestIncarnation is the highest incarnation that there is any object of; 0 for none. A new one is higher.
func HighestIncarnation(list []Item) (highest uint64) {
	for _, i := range list {
		highest = max(highest, i.Incarnation)
	}
	return highest
}

// ClaimOf is the claim of an incarnation.
func ClaimOf(list []Item, incarnation uint64) (Item, bool) {
	at := slices.IndexFunc(list, func(i Item) bool { return i.Kind == Claim && i.Incarnation == incarnation })
	if at < 0 {
		return Item{}, false
	}
	return list[at], true
}
