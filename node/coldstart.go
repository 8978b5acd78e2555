package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// coldStart is the archive as what a cluster begins with whose peers have all lost their disks: see package cluster's
// coldstart.go for who does what when. Keys come from the Keepers, or from shares that people give to this peer while it waits; they go into this
// peer's seal, which has them still when the cluster runs.
type coldStart struct {
	n *Node

	probed bool  // whether the store is fit for claims was found out; of the goroutine that calls Read
	unfit  error // that it is not

	mu    sync.Mutex  // guards what follows
	waits *seal.State // of the newest keyring, while shares are waited for
	said  string      // last of what was logged
}

const byRestoreLatest = "setting restore-latest"

// byHand is what an operator does instead.
const byHand = "to restore by hand, stop this peer, remove raft/ in its data directory, start it without --restore-latest after 'spikectl snapshot restore --archive … --data-dir … --id … --peer-address … --share …', and take the other peers in with 'spikectl cluster join' (docs/operations.md)"

func cannot(format string, a ...any) error {
	return fmt.Errorf("%w: %w", cluster.ErrColdStart, fmt.Errorf(format, a...))
}

// Read implements cluster.Origin.
func (c *coldStart) Read(ctx context.Context, begun *cluster.Attempt) (cluster.Seeding, error) {
	var none cluster.Seeding
	n := c.n
	if n.peerSealed.Load() {
		return none, cannot("%w", n.errPeerSealed())
	}
	archive, err := n.openArchive()
	if err != nil {
		return none, cannot("the archive %s cannot be used: %w", n.cfg.archiveName(), err)
	}
	r := ArchiveReading{Archive: archive, Logger: n.log.With("part", "archive")}
	if begun != nil {
		r.Cluster = begun.ClusterID
	}
	list, st, pb, err := r.keyring(ctx)
	switch {
	case errors.Is(err, snapshot.ErrNoKeyring) && len(list) == 0:
		return none, cannot("the archive %s is empty, so there is nothing to restore; to begin a new cluster, remove --restore-latest from all peers", n.cfg.archiveName())
	case errors.Is(err, errSeveralClusters):
		return none, cannot("%w; %s, with --cluster", err, byHand)
	case err != nil:
		return none, cannot("the archive %s cannot be read: %w", n.cfg.archiveName(), err)
	}
	if err := c.mayBegin(ctx, archive, list, begun); err != nil {
		return none, err
	}
	if err := c.fit(ctx, archive); err != nil {
		return none, err
	}
	if err := c.unseal(ctx, st); err != nil {
		return none, err
	}
	if c.say(fmt.Sprintf("reading %x", st.Cluster.ID)) {
		n.log.Warn("all peers are empty: the newest state of the archive is read and verified", "archive", n.cfg.archiveName(), "cluster", hex.EncodeToString(st.Cluster.ID[:]))
	}
	a, err := r.openWith(ctx, n.seal, list, st, pb)
	if err != nil {
		if !errors.Is(err, snapshot.ErrUnavailable) { // whoever gave shares need not give them again
			n.seal.Lock()
		}
		return none, cannot("the archive %s does not restore: %w; %s, to an earlier --index or --incarnation", n.cfg.archiveName(), err, byHand)
	}
	begins, err := a.begin()
	if err == nil && begun != nil {
		begins.Incarnation = begun.Incarnation
	}
	if err != nil {
		n.seal.Lock()
		return none, cannot("%w", err)
	}
	if c.say(fmt.Sprintf("read %d", a.report.Index)) {
		n.log.Warn("the newest state of the archive is whole", "incarnation", a.report.Incarnation, "index", a.report.Index, "snapshot", a.report.Snapshot.Created.Format(time.RFC3339),
			"newest object", newest(list).Format(time.RFC3339), "secrets", a.report.Secrets, "policies", a.report.Policies)
	}
	return begins, nil
}

func newest(list []snapshot.Item) (t time.Time) {
	for _, i := range list {
		if i.Modified.After(t) {
			t = i.Modified
		}
	}
	return t
}

// mayBegin looks whether the archive ends where a new incarnation can follow.
func (c *coldStart) mayBegin(ctx context.Context, archive *snapshot.Archive, list []snapshot.Item, begun *cluster.Attempt) error {
	id := list[0].Cluster
	highest, last := snapshot.HighestIncarnation(list), snapshot.NewestIncarnation(list)
	item, claimed := snapshot.ClaimOf(list, highest)
	var claim snapshot.Claimed
	if claimed {
		var err error
		if claim, err = archive.ReadClaim(ctx, item); err != nil {
			return cannot("incarnation %d of cluster %x was claimed, and the claim cannot be read: %w; %s", highest, id, err, byHand)
		}
	}
	ours := claimed && begun != nil && begun.Incarnation == highest && begun.Nonce == claim.Nonce
	switch {
	case last == 0:
		return cannot("the archive %s has no snapshot; to begin a new cluster, remove --restore-latest from all peers and name another place for its archive", c.n.cfg.archiveName())
	case ours && last < highest, begun != nil && highest < begun.Incarnation:
		return nil
	case claimed && last < highest:
		return claimedBy(&snapshot.ClaimedError{By: claim})
	case begun != nil:
		others := "others"
		if claimed {
			others = fmt.Sprintf("%s of the peers %s", claim.By, strings.Join(claim.Peers, ","))
		}
		return cannot("this peer began to restore incarnation %d of cluster %x, and by now the archive is of incarnation %d, which %s began: %s", begun.Incarnation, id, highest, others, giveUp)
	case last < highest:
		return cannot("incarnation %d of cluster %x was begun and has no snapshot in the archive, so it is not known whether it is still alive somewhere; %s", highest, id, byHand)
	case claimed && !slices.Equal(claim.Peers, c.peers()):
		return cannot("incarnation %d of cluster %x is that of other peers, %v since %s, and a cluster is not taken from them by itself: if they are gone for good, %s", highest, id, claim.Peers, claim.When.Format(time.RFC3339), byHand)
	}
	return nil
}

// fit finds out, once, whether the store can say who was first.
func (c *coldStart) fit(ctx context.Context, archive *snapshot.Archive) error {
	if !c.probed {
		err := archive.CanClaim(ctx)
		if err != nil && !errors.Is(err, snapshot.ErrNotExclusive) {
			return cannot("what the archive's store does could not be found out: %w", err)
		}
		c.probed, c.unfit = true, err
	}
	if c.unfit != nil {
		return cannot("%w; %s", c.unfit, byHand)
	}
	return nil
}

const giveUp = "to give that up, remove raft/ in its data directory"

func claimedBy(e *snapshot.ClaimedError) error {
	return cannot("%w, and has not shipped anything since. If those peers are alive, the cluster is theirs; if they are gone for good, remove the object v1/%x/%020d/claim from the archive, and %s, or else %s",
		e, e.By.Cluster, e.By.Incarnation, "raft/ in this peer's data directory", byHand)
}

func (c *coldStart) peers() (list []string) {
	peers, _ := c.n.cfg.peers()
	return names(peers)
}

func names(peers []cluster.Peer) (list []string) {
	for _, p := range peers {
		list = append(list, p.ID+"="+p.Address)
	}
	slices.Sort(list)
	return list
}

// unseal gets the keys to the archive: those that are here, the Keepers', or those of the shares that were given.
func (c *coldStart) unseal(ctx context.Context, st seal.State) error {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	c.mu.Lock()
	c.waits = &st
	c.mu.Unlock()
	err := c.n.seal.UnsealWith(st, c.n.collector)
	var few *seal.NotEnoughError
	if errors.As(err, &few) || errors.Is(err, seal.ErrForeignShare) {
		given := 0
		if few != nil {
			given = few.Good
		}
		if _, err = c.n.seal.Unseal(ctx, st, c.n.keepers); errors.As(err, &few) {
			err = fmt.Errorf("the Keepers have not the shares that open the archive (%w): bring them back, or give %d recovery shares to this peer, %s, with 'spikectl operator restore' (%d given)",
				err, st.Committed.Threshold, c.n.cfg.ID, given)
		}
	}
	if err != nil {
		return cannot("%w", err)
	}
	c.mu.Lock()
	c.waits = nil
	c.mu.Unlock()
	return nil
}

// give takes a recovery share while this peer waits for the keys to the archive.
func (c *coldStart) give(share store.RecoveryShare) (store.RestoreProgress, error) {
	c.mu.Lock()
	st := c.waits
	c.mu.Unlock()
	if st == nil {
		peers := c.peers()
		return store.RestoreProgress{}, secret.Errorf(secret.CodeUnavailable, "no shares are waited for here: the peer with the lowest id (%s) restores the cluster from the archive, and its status says what it waits for", peers[0])
	}
	if err := restorable(*st, share); err != nil {
		return store.RestoreProgress{}, err
	}
	p, err := c.n.collector.Add(*st, share.Index, share.Bytes[:])
	if err != nil {
		return store.RestoreProgress{}, shareError(err)
	}
	return store.RestoreProgress{Collected: p.Collected, Remaining: p.Remaining, Given: p.Given}, nil
}

// Claim implements cluster.Origin.
func (c *coldStart) Claim(ctx context.Context, a cluster.Attempt) error {
	archive, err := c.n.openArchive()
	if err == nil {
		err = c.onRecord(ctx, "cluster.restore", fmt.Sprintf("cluster %x, incarnation %d", a.ClusterID, a.Incarnation), func() error {
			return archive.Claim(ctx, snapshot.Claimed{Cluster: a.ClusterID, Incarnation: a.Incarnation, Nonce: a.Nonce, By: c.n.cfg.ID, Peers: names(a.Peers), When: c.n.now()})
		})
	}
	if err == nil {
		return nil
	}
	var other *snapshot.ClaimedError
	if errors.As(err, &other) {
		c.n.seal.Lock()
		return claimedBy(other)
	}
	return cannot("incarnation %d could not be claimed, which is tried again: %w", a.Incarnation, err)
}

// TakeIn implements cluster.Origin.
func (c *coldStart) TakeIn(ctx context.Context, id, address string, promote bool) error {
	change := store.MemberChange{Kind: store.AddMember, ID: id, Address: address}
	if promote {
		change.Kind = store.PromoteMember
	}
	return c.onRecord(ctx, "cluster.members."+string(change.Kind), "member "+id, func() error { return operator{c.n}.ChangeMembers(ctx, change) })
}

// onRecord does what nobody but a setting asks for.
func (c *coldStart) onRecord(ctx context.Context, op, detail string, act func() error) error {
	select {
	case <-c.n.up:
	case <-ctx.Done():
		return ctx.Err()
	}
	r := store.Request{ID: "restore-latest", Caller: secret.Caller{ID: c.n.source.ID().String()}}
	return c.n.store.OfOwnAccord(r, op, byRestoreLatest, detail, act)
}

// say tells whether text is news.
func (c *coldStart) say(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := c.said != text
	c.said = text
	return news
}

// warnOfOthers says so when a new cluster was founded and its archive has one already: perhaps that was to be restored.
func (n *Node) warnOfOthers() {
	if n.cfg.Archive == "" {
		return
	}
	n.loops.Go(func() {
		archive, err := OpenArchive(n.ctx, n.cfg.Archive, "")
		if err != nil {
			return // shipping says so
		}
		list, err := archive.List(n.ctx, [16]byte{})
		id, _, _ := n.cluster.Identity()
		if at := slices.IndexFunc(list, func(i snapshot.Item) bool { return i.Cluster != id }); err == nil && at >= 0 {
			n.log.Warn("a new, empty cluster was formed, and its archive holds another one; if that was to be restored: stop all peers, remove raft/ in their data directories, and start them with --restore-latest, "+
				"after the objects of the new cluster were removed from the archive", "archive", n.cfg.archiveName(), "new", hex.EncodeToString(id[:]), "there", hex.EncodeToString(list[at].Cluster[:]))
		}
	})
}
