package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/snapshot"
)

// ArchivedLog is what was found out about one peer's audit log in an archive.
type ArchivedLog struct {
	*audit.Archived
	Peer         string
	Incarnations []uint64 // that have any of it
	// Current says that the newest of them is the newest of the archive.
	Current bool
	// Anchor is the point that the newest state in the archive names; nil: none.
	Anchor *audit.Anchor
}

// VerifyAudit reads the audit logs in an archive, of one peer if that is not empty: each object authentic, each chain whole, and as the newest state
// in the archive has anchored it. noState is why that state could not be read, which says nothing about the logs. It changes nothing.
func VerifyAudit(ctx context.Context, r ArchiveReading, peer string) (logs []ArchivedLog, noState, err error) {
	keys, list, st, pb, err := r.unseal(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer keys.Lock()
	a := &openedArchive{seal: keys, machine: fsm.New(fsm.Options{}), state: st, newest: pb}
	if err := a.reinstate(); err != nil {
		return nil, nil, err
	}
	plan, noState := snapshot.MakePlan(list, 0, 0)
	var gap *snapshot.GapError
	if errors.As(noState, &gap) {
		plan, noState = snapshot.MakePlan(list, 0, gap.Have)
	}
	if noState == nil {
		_, _, noState = r.Archive.Replay(ctx, plan, archiveCipher{keys}, archiveMachine{a.machine, r.Cluster}, r.Progress)
	}
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	newest := snapshot.NewestIncarnation(list)
	parts := map[string][]audit.Part{}
	for _, i := range list {
		if i.Kind == snapshot.Audit && (peer == "" || peer == i.Peer) {
			parts[i.Peer] = append(parts[i.Peer], archivedPart(ctx, r, archiveCipher{keys}, i))
		}
	}
	for name, of := range parts {
		log := ArchivedLog{Peer: name}
		for _, p := range of { // in the order of names
			if !slices.Contains(log.Incarnations, p.Incarnation) {
				log.Incarnations = append(log.Incarnations, p.Incarnation)
			}
		}
		log.Current = slices.Max(log.Incarnations) >= newest
		if anchor, ok := a.machine.View().Anchor(name); ok && noState == nil {
			log.Anchor = &audit.Anchor{Count: anchor.Count, Head: [32]byte(anchor.Head)}
		}
		if log.Archived, err = audit.VerifyArchived(name, of, newest, log.Anchor); err != nil {
			return nil, nil, err
		}
		logs = append(logs, log)
	}
	slices.SortFunc(logs, func(x, y ArchivedLog) int { return cmp.Compare(x.Peer, y.Peer) })
	return logs, noState, nil
}

func archivedPart(ctx context.Context, r ArchiveReading, c snapshot.Cipher, i snapshot.Item) audit.Part {
	return audit.Part{Name: i.Name, Incarnation: i.Incarnation, First: i.First, Last: i.Last, Read: func(read func(io.Reader) error) error {
		if r.Progress != nil {
			r.Progress(i)
		}
		err := r.Archive.ReadAudit(ctx, i, c, read)
		switch {
		case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, snapshot.ErrFormat), errors.Is(err, snapshot.ErrForeign):
			return fmt.Errorf("%w: %w", audit.ErrAltered, err)
		case errors.Is(err, snapshot.ErrNotFound):
			return fmt.Errorf("%w: %w", audit.ErrMissing, err)
		}
		return err
	}}
}
