package node

import (
	"context"
	"errors"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/snapshot"
)

// shipping carries the committed log into the archive, on the leader while it has
// keys. Who leads next goes on from what is there; for a moment two may ship,
// which does no harm.
func (n *Node) shipping() {
	if n.cfg.Archive == "" {
		return
	}
	commits := snapshot.NewCommits(n.cluster.Applied, n.now)
	go commits.Run(n.ctx)
	said := ""
	for n.sleep(time.Second / 4) {
		if !n.leads() || n.store.Sealed() {
			continue
		}
		s, err := n.newShipper(commits)
		if err != nil {
			if said != err.Error() {
				said = err.Error()
				n.log.Error("the archive cannot be used; writes go on without it", "error", err)
			}
			continue
		}
		n.log.Info("this peer ships the log into the archive", "archive", n.cfg.archiveName())
		ctx, cancel := context.WithCancel(n.ctx)
		n.shipper.Store(s)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		for n.leads() && !n.store.Sealed() && n.sleep(time.Second/4) {
		}
		cancel()
		<-done
		n.shipper.Store(nil)
		n.log.Info("this peer does not ship the log any more", "shipped", s.Status().Shipped)
	}
}

// archiveStatus is how shipping stands; nil without an archive.
func (n *Node) archiveStatus() *client.ArchiveStatus {
	s := n.shipper.Load()
	switch {
	case n.cfg.Archive == "":
		return nil
	case s == nil:
		return &client.ArchiveStatus{Location: n.cfg.archiveName(), Audit: n.auditArchive.Load()}
	}
	st := s.Status()
	return &client.ArchiveStatus{SnapshotSeconds: s.Interval().Seconds(), Pruned: n.pruned.Load(), Active: true, Location: n.cfg.archiveName(), Shipped: st.Shipped, BehindSeconds: st.Behind.Seconds(),
		Snapshot: st.Snapshot.Last, SnapshotTime: st.Snapshot.Modified, Error: st.Error, Since: st.Since, Audit: n.auditArchive.Load()}
}

func (n *Node) newShipper(commits *snapshot.Commits) (*snapshot.Shipper, error) {
	id, incarnation, ok := n.cluster.Identity()
	if !ok {
		return nil, errors.New("the cluster has not formed yet")
	}
	archive, err := n.openArchive()
	if err != nil {
		return nil, err
	}
	return snapshot.NewShipper(snapshot.ShipperConfig{Archive: archive, Source: archiveSource{n}, Commits: commits, Cipher: archiveCipher{n.seal},
		Cluster: id, Incarnation: incarnation, Peer: n.cfg.ID, SnapshotEvery: n.cfg.ArchiveSnapshotEvery, Interval: n.snapshotEvery, Logger: n.log.With("part", "archive"), Now: n.now}), nil
}

// openArchive opens the configured archive. Snapshots on their way are spooled in
// the data directory.
func (n *Node) openArchive() (*snapshot.Archive, error) {
	spool, err := n.spool()
	if err != nil {
		return nil, err
	}
	return OpenArchive(n.ctx, n.cfg.Archive, spool)
}

// stageWatch has the shipper keep up with a restore that is staged: it brings in a
// second more than is shipped in one.
type stageWatch struct{ n *Node }

func (w stageWatch) Changed(d fsm.Delta) {
	// When it begins, what it will take away; then every 2 MiB, since small segments cost as much as large ones.
	if st, staged := d.View.Staged(); staged && st.Next%8 == 1 {
		if s := w.n.shipper.Load(); s != nil {
			s.Wake()
		}
	}
}
