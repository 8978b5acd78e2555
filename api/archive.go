package api

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

func (s *Server) archiveRoutes(routes map[string]http.HandlerFunc) {
	st := s.cfg.Store
	routes[client.RouteSnapshots] = s.get(func(ctx context.Context, r store.Request) (int, any, error) {
		care, err := st.ArchiveCare(ctx, r)
		return http.StatusOK, careAnswer(care), err
	})
	routes[client.RouteSnapshotSave] = post(s, func(ctx context.Context, r store.Request, q client.ErrandRequest) (client.SnapshotAnswer, error) {
		id, err := errandID(q)
		if err != nil {
			return client.SnapshotAnswer{}, err
		}
		saved, err := st.SaveSnapshot(ctx, r, id)
		return client.SnapshotAnswer(saved), err
	})
	routes[client.RouteSnapshotDrill] = post(s, func(ctx context.Context, r store.Request, q client.ErrandRequest) (client.DrillAnswer, error) {
		id, err := errandID(q)
		if err != nil {
			return client.DrillAnswer{}, err
		}
		drill, err := st.DrillArchive(ctx, r, id)
		return DrillAnswer(drill), err
	})
	routes[client.RouteSnapshotExport] = s.transfer(func(ctx context.Context, r store.Request, dst io.Writer, src io.Reader) error {
		return st.ExportSnapshot(ctx, r, func(size int64) (io.Writer, error) {
			if err := empty(src); err != nil {
				return nil, err
			}
			dst.(*transfer).w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			return dst, nil
		})
	})
}

// empty takes the body of a request that has none.
func empty(src io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(src, 1))
	if err == nil && n > 0 {
		err = secret.Invalid("request body", "this route takes none")
	}
	return err
}

func errandID(q client.ErrandRequest) ([16]byte, error) {
	id, err := hex.DecodeString(q.ID)
	if err != nil || len(id) != 16 || [16]byte(id) == ([16]byte{}) {
		return [16]byte{}, errErrandID
	}
	return [16]byte(id), nil
}

var errErrandID error = &secret.Error{Code: secret.CodeInvalid, Subject: "id", Message: "give 16 random bytes in hex, the same in each repetition"}

// DrillAnswer writes what a drill came to as every route does.
func DrillAnswer(d store.Drill) client.DrillAnswer {
	return client.DrillAnswer{Done: d.Done, ID: hex.EncodeToString(d.ID[:]), OK: d.OK, Reason: d.Reason, Peer: d.Peer, Object: d.Object, Incarnation: d.Incarnation, Snapshot: d.Snapshot,
		Index: d.Index, DataHash: hex.EncodeToString(d.DataHash), Secrets: d.Secrets, Versions: d.Versions, Policies: d.Policies, Entries: d.Entries,
		Seconds: d.Took.Seconds(), Time: d.Time}
}

func careAnswer(c store.ArchiveCare) client.SnapshotsAnswer {
	answer := client.SnapshotsAnswer{Archive: c.Archive, Shipper: c.Shipper, SnapshotSeconds: c.SnapshotEvery.Seconds(), SnapshotSetting: c.SnapshotSet.Seconds(), DrillSeconds: c.DrillEvery.Seconds(),
		Retention: client.Retention(c.Retention), SnapshotIndex: c.SnapshotIndex, LastSnapshot: c.LastSnapshot, NextSnapshot: c.NextSnapshot, NextDrill: c.NextDrill,
		Drills: make([]client.DrillAnswer, len(c.Drills)), Pruned: (*client.Pruned)(c.Pruned)}
	for i, d := range c.Drills {
		answer.Drills[i] = DrillAnswer(d)
	}
	return answer
}
