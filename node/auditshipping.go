package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/snapshot"
)

const (
	auditShipEvery = time.Second
	auditShipMax   = 30 * time.Second // bounds the pause after an error
)

// auditShipping carries the closed files of this peer's audit log into the
// archive, while this peer has keys. The log goes on whatever becomes of it, and
// no file is deleted here.
func (n *Node) auditShipping() {
	if n.cfg.Archive == "" {
		return
	}
	s := &auditShipper{n: n}
	for pause := auditShipEvery; n.sleep(pause); {
		if n.store.Sealed() {
			continue
		}
		err := s.ship(n.ctx)
		if n.ctx.Err() != nil || n.store.Sealed() { // keys that went on the way are no fault
			continue
		}
		s.note(err)
		if err == nil {
			pause = auditShipEvery
			continue
		}
		pause = min(2*pause, auditShipMax)
		pause += rand.N(pause/2 + 1)
	}
}

// auditShipper belongs to its loop. What is in the archive it learns from a list,
// once, and knows from then on; what a stale list hides is stored a second time in
// vain, and is there.
type auditShipper struct {
	n           *Node
	archive     *snapshot.Archive
	incarnation uint64
	there       map[string]bool // names of objects
	names       map[string]string
	waiting     int
	keyring     [32]byte // SHA-256 of the keyring that is in the archive
}

// ship ships what is closed and not there. One file that cannot be shipped does
// not keep back the others.
func (s *auditShipper) ship(ctx context.Context) error {
	id, incarnation, ok := s.n.cluster.Identity()
	if !ok {
		return errors.New("the cluster has not formed yet")
	}
	if s.archive == nil || s.incarnation != incarnation {
		if err := s.begin(ctx, id, incarnation); err != nil {
			return err
		}
	}
	files, err := audit.Closed(s.n.cfg.auditDir())
	if err != nil {
		return err
	}
	var waiting []string
	for _, path := range files {
		if !s.there[s.names[path]] {
			waiting = append(waiting, path)
		}
	}
	s.waiting = len(waiting)
	for _, path := range waiting {
		if s.n.store.Sealed() {
			return nil
		}
		h := snapshot.Header{Cluster: id, Incarnation: incarnation, Peer: s.n.cfg.ID, Created: s.n.now()}
		e := s.file(ctx, h, path)
		if e == nil {
			s.waiting--
		}
		err = errors.Join(err, e)
		if errors.Is(e, snapshot.ErrUnavailable) || ctx.Err() != nil { // then the next will not be taken either
			break
		}
	}
	return err
}

// begin learns what is there.
func (s *auditShipper) begin(ctx context.Context, id [16]byte, incarnation uint64) error {
	archive, err := s.n.openArchive()
	if err != nil {
		return err
	}
	list, err := archive.ListAudit(ctx, id, incarnation, s.n.cfg.ID)
	if err != nil {
		return err
	}
	s.archive, s.incarnation, s.there, s.names = archive, incarnation, map[string]bool{}, map[string]string{}
	for _, i := range list {
		s.there[i.Name] = true
	}
	return nil
}

// file ships one file, if it is not there.
func (s *auditShipper) file(ctx context.Context, h snapshot.Header, path string) (err error) {
	if h.First, h.Last, err = audit.Span(path); err != nil {
		return err
	}
	name := h.AuditName()
	if !s.there[name] {
		_, err = s.archive.PutAudit(ctx, h, archiveCipher{s.n.seal}, func(w io.Writer) error {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = io.Copy(w, file)
			return err
		}, func(ctx context.Context) error { return s.shipKeyring(ctx, h) })
		if err != nil && !errors.Is(err, snapshot.ErrExists) {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		s.there[name] = true
	}
	s.names[path] = name
	return nil
}

// shipKeyring makes sure that what a file was sealed under is in the archive
// before it, as for all objects: this peer need not be the one that ships the log.
func (s *auditShipper) shipKeyring(ctx context.Context, h snapshot.Header) error {
	state, index := archiveSource{s.n}.Keyring()
	sum := sha256.Sum256(state)
	if sum == s.keyring {
		return nil
	}
	h.First, h.Last = 0, index
	if _, err := s.archive.PutKeyring(ctx, h, state); err != nil && !errors.Is(err, snapshot.ErrExists) {
		return err
	}
	s.keyring = sum
	return nil
}

// note shows how it stands, and logs what has changed.
func (s *auditShipper) note(err error) {
	before := s.n.auditArchive.Load()
	now := &client.AuditArchive{Waiting: s.waiting}
	if before != nil {
		now.Since = before.Since
	}
	if err == nil {
		now.Since = s.n.now()
	} else {
		now.Error = err.Error()
		if s.archive == nil {
			files, _ := audit.Closed(s.n.cfg.auditDir())
			now.Waiting = len(files) // for all that is known
		}
		if before == nil || before.Error == "" {
			s.n.log.Warn("closed files of the audit log do not come into the archive; it is tried again, and the log goes on", "error", err)
		}
	}
	s.n.auditArchive.Store(now)
}
