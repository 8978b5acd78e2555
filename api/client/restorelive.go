package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/secret"
)

// RouteSnapshotRestore plans a restore of the archive into the running cluster, or,
// with a code, carries the plan out. The answer is lines of JSON, each a RestoreLine.
const RouteSnapshotRestore = "/v1/sys/snapshots/restore"

// RestoreArchiveRequest says which state of the archive to restore.
type RestoreArchiveRequest struct {
	Incarnation uint64    `json:"incarnation,omitempty"` // 0: the newest
	Index       uint64    `json:"index,omitempty"`       // 0: as far as the archive goes
	Time        time.Time `json:"time,omitzero"`         // instead of an index
	// Confirm is the code of the plan that is to be carried out; empty: a plan is
	// asked for, and nothing done. The code says by itself which state it is.
	Confirm string `json:"confirm,omitempty"`
}

// RestoreLine is one line of the answer. The last one holds a plan or a failure; without
// it the answer is cut.
type RestoreLine struct {
	Step  string `json:"step,omitempty"` // "reading" the archive, or "staging" its records on all peers
	Done  uint64 `json:"done,omitempty"` // objects, or records
	Total uint64 `json:"total,omitempty"`

	Plan    *RestorePlan `json:"plan,omitempty"`
	Failure *Failure     `json:"failure,omitempty"`
}

// RestorePlan says what a restore would do, or did.
type RestorePlan struct {
	Code          string        `json:"code"` // confirms this plan, and no other
	Incarnation   uint64        `json:"incarnation"`
	Index         uint64        `json:"index"`
	Stored        *time.Time    `json:"stored,omitempty"`   // when the last of it came to the archive
	Snapshot      string        `json:"snapshot,omitempty"` // object that it begins with
	SnapshotIndex uint64        `json:"snapshotIndex,omitempty"`
	Entries       int           `json:"entries"` // of the log after the snapshot
	Secrets       int           `json:"secrets"`
	Versions      int           `json:"versions"`
	Policies      int           `json:"policies"`
	DataHash      string        `json:"dataHash,omitempty"`
	LiveIndex     uint64        `json:"liveIndex"`              // what is there now goes up to
	NewestChange  *time.Time    `json:"newestChange,omitempty"` // that is there now
	LiveSecrets   int           `json:"liveSecrets"`
	LivePolicies  int           `json:"livePolicies"`
	SecretChanges RecordChanges `json:"secretChanges"`
	PolicyChanges RecordChanges `json:"policyChanges"`
	// RestoredAt is the Raft index at which it was done; 0 of a plan.
	RestoredAt uint64 `json:"restoredAt,omitempty"`
}

// RecordChanges count what a restore makes appear, vanish and change.
type RecordChanges struct {
	Appear uint64 `json:"appear"`
	Vanish uint64 `json:"vanish"`
	Change uint64 `json:"change"`
}

// RestoreArchive plans a restore, or carries a plan out. progress, which may be nil,
// hears how far it is. Another peer is tried when one cannot, or is lost: a restore
// that was done under a code is not done again under it. CodeConflict: it cannot be now,
// or the plan is outdated, as Reason and message say; nothing was changed. CodeUnknown:
// ask again with the same code.
func (c *Client) RestoreArchive(ctx context.Context, q RestoreArchiveRequest, progress func(RestoreLine)) (RestorePlan, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return RestorePlan{}, err
	}
	if progress == nil {
		progress = func(RestoreLine) {}
	}
	patient, cancel := context.WithTimeout(ctx, c.cfg.Patience) // for a peer that takes it, and no longer
	defer cancel()
	maybe := false
	for try := 0; ; try++ {
		peer := c.peers[(int(c.prefer.Load())+try)%len(c.peers)]
		plan, taken, err := c.restoreArchive(ctx, peer, body, progress)
		if err == nil {
			return plan, nil
		}
		maybe = maybe || q.Confirm != "" && taken || secret.CodeOf(err) == secret.CodeUnknown
		switch secret.CodeOf(err) {
		case secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded, secret.CodeUnknown:
		case secret.CodeConflict:
			if maybe { // it is this peer that changed nothing; the one before may be about to
				err = &secret.Error{Code: secret.CodeUnknown, Message: "the outcome is unknown: another peer was at work on it and did not say how it ended; ask again with the same code, which says whether it was done", Cause: err}
			}
			return plan, err
		default:
			return plan, err
		}
		if ctx.Err() != nil || !pause(patient, try, len(c.peers)) {
			if maybe {
				err = &secret.Error{Code: secret.CodeUnknown, Message: "the outcome is unknown: ask again with the same code, which says whether it was done", Cause: err}
			}
			return plan, unavailable(err)
		}
	}
}

// restoreArchive asks one peer; taken says that it may have begun, and did not say how it ended.
func (c *Client) restoreArchive(ctx context.Context, peer string, body []byte, progress func(RestoreLine)) (plan RestorePlan, taken bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(stalled, func() { cancel(errStalled) })
	defer silent.Stop()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, peer+RouteSnapshotRestore, bytes.NewReader(body))
	if err != nil {
		return plan, false, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.GetBody = nil
	response, err := c.http.Do(request)
	if err != nil {
		return plan, sent.Load(), describe(peer, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		message, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err != nil {
			return plan, true, describe(peer, err)
		}
		return plan, false, failure(response.StatusCode, message)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		silent.Reset(stalled)
		var line RestoreLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return plan, true, secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
		}
		switch {
		case line.Plan != nil:
			return *line.Plan, false, nil
		case line.Failure != nil:
			f := line.Failure
			return plan, false, &secret.Error{Code: f.Code, Message: f.Message, Reason: f.Reason}
		}
		progress(line)
	}
	if err = lines.Err(); err == nil {
		err = errors.New("the answer ended early")
	}
	return plan, true, describe(peer, err)
}
