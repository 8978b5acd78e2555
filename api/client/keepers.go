package client

import (
	"context"
	"net/http"
	"time"
)

// Routes about the Keepers.
const (
	RouteKeepers       = "/v1/sys/keepers" // GET
	RouteKeepersVerify = "/v1/sys/keepers/verify"
)

// KeepersAnswer describes the Keepers as the asked peer found them.
type KeepersAnswer struct {
	ShareSet   string       `json:"shareSet"`             // id of the committed set
	PendingSet string       `json:"pendingSet,omitempty"` // of one that is begun and not committed
	Shares     int          `json:"shares"`
	Threshold  int          `json:"threshold"`
	Good       int          `json:"good"` // Keepers that hold their share, proven
	Keepers    []KeeperInfo `json:"keepers"`
}

// KeeperInfo is one Keeper. What it says of itself is missing when it does not
// answer, or is of a release that does not tell (see Silence).
type KeeperInfo struct {
	KeeperStatus
	Fetched bool          `json:"fetched,omitempty"` // good, but of a release without proofs: its share was sent to be checked
	Silence string        `json:"silence,omitempty"` // why it says nothing of itself
	Version string        `json:"version,omitempty"`
	Started *time.Time    `json:"started,omitempty"`
	Holds   []KeeperSlot  `json:"holds"`
	Askers  []KeeperAsker `json:"askers"` // who asked it lately, the newest first
}

// KeeperSlot is a share that a Keeper says it holds.
type KeeperSlot struct {
	Set     string `json:"set"`
	Index   int    `json:"index"`
	Current bool   `json:"current"` // not of a set that is only begun
}

// KeeperAsker is an identity that asked a Keeper for something.
type KeeperAsker struct {
	Peer    string    `json:"peer"` // SPIFFE id
	Op      string    `json:"op"`   // fetch, place, prove, …
	Count   uint64    `json:"count"`
	Refused uint64    `json:"refused,omitempty"` // of those, for being too many
	Last    time.Time `json:"last"`
}

// Keepers describes the Keepers as they were found a moment ago.
func (c *Client) Keepers(ctx context.Context) (answer KeepersAnswer, err error) {
	return answer, c.call(ctx, http.MethodGet, RouteKeepers, nil, &answer, "")
}

// VerifyKeepers has every Keeper prove its share now. CodeSealed when no peer that
// was asked is unsealed: the others cannot tell.
func (c *Client) VerifyKeepers(ctx context.Context) (KeepersAnswer, error) {
	return read[KeepersAnswer](ctx, c, RouteKeepersVerify, struct{}{})
}
