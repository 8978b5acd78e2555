package snapshot

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// PutAudit stores a closed file of the audit log of peer h.Peer, which holds records h.First to h.Last and which write writes. Nothing of it is
// looked at: what is wrong with the file is worth keeping, too. Errors: as PutSnapshot; ErrFormat also when the peer's name cannot be part of an object's.
func (a *Archive) PutAudit(ctx context.Context, h Header, c Cipher, write func(io.Writer) error, sealed func(context.Context) error) (Item, error) {
	h.Kind = Audit
	item, _, err := a.spooled(ctx, h, c, write, sealed)
	return item, err
}

// AuditName is the name of the object that PutAudit makes.
func (h Header) AuditName() string {
	h.Kind = Audit
	return h.name(nil)
}

// ReadAudit gives the bytes of such a file to read, which must read all of it. What it read is authentic when ReadAudit returns nil. Errors: as
// ReadSnapshot.
func (a *Archive) ReadAudit(ctx context.Context, item Item, c Cipher, read func(io.Reader) error) error {
	return a.readWhole(ctx, item, c, func(_ Header, r io.Reader) error { return read(r) })
}

// ListAudit lists what an incarnation has of a peer's audit log, in the order of records. It takes no right but to list. ErrFormat: nothing of a peer of that name can be in an archive.
func (a *Archive) ListAudit(ctx context.Context, cluster [16]byte, incarnation uint64, peer string) ([]Item, error) {
	if !peerForm.MatchString(peer) {
		return nil, fmt.Errorf("%w: a peer whose name begins with a dot can have no audit log in it", ErrFormat)
	}
	return a.list(ctx, strings.Join([]string{prefixOf(cluster, incarnation) + string(Audit), peer, ""}, "/"))
}
