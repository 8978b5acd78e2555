package client

import (
	"context"
	"io"
	"net/http"
	"time"
)

// Routes about the archive.
const (
	RouteSnapshots      = "/v1/sys/snapshots" // GET
	RouteSnapshotSave   = "/v1/sys/snapshots/save"
	RouteSnapshotExport = "/v1/sys/snapshots/export"
	RouteSnapshotDrill  = "/v1/sys/snapshots/drill"
)

// ErrandRequest asks for something that may take longer than a request: what is
// not done goes on, and is asked for again by the same id.
type ErrandRequest struct {
	ID string `json:"id"` // 16 random bytes in hex
}

// SnapshotAnswer is a snapshot in the archive.
type SnapshotAnswer struct {
	Done  bool   `json:"done"` // else it goes on
	Name  string `json:"name"`
	Index uint64 `json:"index"`
	Size  int64  `json:"size"`
}

// DrillAnswer is what a restore came to that was only tried.
type DrillAnswer struct {
	Done        bool      `json:"done"` // else it goes on, and the rest is empty
	ID          string    `json:"id"`
	OK          bool      `json:"ok"`
	Reason      string    `json:"reason,omitempty"` // why it failed
	Peer        string    `json:"peer"`             // that did it
	Object      string    `json:"object"`           // name of the snapshot that it began with
	Incarnation uint64    `json:"incarnation"`
	Snapshot    uint64    `json:"snapshot"` // index of that
	Index       uint64    `json:"index"`    // of the state that it came to
	DataHash    string    `json:"dataHash,omitempty"`
	Secrets     uint64    `json:"secrets"`
	Versions    uint64    `json:"versions"`
	Policies    uint64    `json:"policies"`
	Entries     uint64    `json:"entries"` // of the log, after the snapshot
	Seconds     float64   `json:"seconds"`
	Time        time.Time `json:"time"`
}

// Retention is how many snapshots stay of each kind; all 0: everything stays.
type Retention struct {
	Hourly  uint32 `json:"hourly"`
	Daily   uint32 `json:"daily"`
	Weekly  uint32 `json:"weekly"`
	Monthly uint32 `json:"monthly"`
	Minimum uint32 `json:"minimum"` // of the newest ones, whatever their age
}

// Pruned is what the last retention did.
type Pruned struct {
	Time      time.Time `json:"time"`
	Kept      int       `json:"kept"` // objects
	Deleted   int       `json:"deleted"`
	Retained  int       `json:"retained"`        // that the store's own retention keeps
	Forbidden bool      `json:"forbidden"`       // the store lets the peers delete nothing
	Error     string    `json:"error,omitempty"` // why it did not come to its end
}

// SnapshotsAnswer is how the cluster cares for its archive.
type SnapshotsAnswer struct {
	Archive         string        `json:"archive"` // empty: the asked peer has none
	Shipper         string        `json:"shipper"` // empty: nobody ships now
	SnapshotSeconds float64       `json:"snapshotSeconds"`
	SnapshotSetting float64       `json:"snapshotSetting"` // 0: as each peer is configured
	DrillSeconds    float64       `json:"drillSeconds"`    // 0: never
	Retention       Retention     `json:"retention"`
	SnapshotIndex   uint64        `json:"snapshotIndex"` // of the newest one; 0: none is known
	LastSnapshot    *time.Time    `json:"lastSnapshot"`
	NextSnapshot    *time.Time    `json:"nextSnapshot"` // if anything changes until then
	NextDrill       *time.Time    `json:"nextDrill"`
	Drills          []DrillAnswer `json:"drills"` // on record, newest first
	Pruned          *Pruned       `json:"pruned"`
}

// Snapshots tells how the cluster cares for its archive.
func (c *Client) Snapshots(ctx context.Context) (answer SnapshotsAnswer, err error) {
	return answer, c.call(ctx, http.MethodGet, RouteSnapshots, nil, &answer, "")
}

// SaveSnapshot puts the present state into the archive. It waits until that is
// done, or ctx ends.
func (c *Client) SaveSnapshot(ctx context.Context) (answer SnapshotAnswer, err error) {
	q := ErrandRequest{NewID()}
	for !answer.Done && err == nil {
		answer, err = read[SnapshotAnswer](ctx, c, RouteSnapshotSave, q)
	}
	return answer, err
}

// DrillArchive has a peer prove that the archive can be restored. It waits until
// that is on record, or ctx ends; a peer that stops meanwhile is followed by
// another, which begins anew.
func (c *Client) DrillArchive(ctx context.Context) (answer DrillAnswer, err error) {
	q := ErrandRequest{NewID()}
	for !answer.Done && err == nil {
		answer, err = read[DrillAnswer](ctx, c, RouteSnapshotDrill, q)
	}
	return answer, err
}

// errandAttempt is how long one attempt of those is waited for.
const errandAttempt = 25 * time.Second

// ExportSnapshot gives the present state as a single-file archive of size bytes. The
// answer is whole if it ends with io.EOF; the caller closes it.
func (c *Client) ExportSnapshot(ctx context.Context) (file io.ReadCloser, size int64, err error) {
	return c.streamOf(ctx, RouteSnapshotExport, http.NoBody)
}
