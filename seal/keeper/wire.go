package keeper

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// The routes. The first two are SPIKE's, the others ours; all are POST.
const (
	routeContribute = "/v1/store/contribute"
	routeShard      = "/v1/store/shard"
	routePlace      = "/v1/keeper/place"
	routeFetch      = "/v1/keeper/fetch"
	routeSettle     = "/v1/keeper/settle"
	routeHolds      = "/v1/keeper/holds"
	routeProve      = "/v1/keeper/prove"
	routeStatus     = "/v1/keeper/status"
)

// operations names the routes for people.
var operations = map[string]string{routeContribute: "contribute", routeShard: "shard", routePlace: "place", routeFetch: "fetch",
	routeSettle: "settle", routeHolds: "holds", routeProve: "prove", routeStatus: "status"}

const (
	// maxBody bounds a request; the longest legal one has a few hundred bytes.
	maxBody   = 4 << 10
	nonceSize = 32
	// maxDepth bounds nesting; the deepest legal request has an array in an object.
	maxDepth = 4
)

// Codes in the "err" field of an answer. The first two are SPIKE's.
const (
	codeBadRequest   = "api_bad_request"
	codeUnauthorised = "access_unauthorized"
	codeNoShare      = "keeper_no_share"
	codeOtherSet     = "keeper_other_set"
	codeForeign      = "keeper_foreign_cluster"
	codeStale        = "keeper_stale"
	codeThrottled    = "keeper_too_many_requests"
)

var errBadAnswer = errors.New("keeper: the answer is not what this version expects") // the cause could quote a share

var errBadRequest = errors.New("keeper: bad request") // says nothing of the content: it may be a share

// slotWire is a slot on our routes. []byte is base64 in JSON.
type slotWire struct {
	Cluster     []byte `json:"cluster"`
	Incarnation uint64 `json:"incarnation"`
	Set         []byte `json:"set"`
	Index       int    `json:"index,omitempty"`
	Share       []byte `json:"share,omitempty"`
	Nonce       []byte `json:"nonce,omitempty"`
	AsOf        uint64 `json:"as_of,omitempty"`
	Current     bool   `json:"current,omitempty"`
}

func wireSlot(s seal.Slot) slotWire {
	return slotWire{Cluster: s.Cluster.ID[:], Incarnation: s.Cluster.Incarnation, Set: s.Set[:], Index: s.Index}
}

func (w slotWire) slot() (s seal.Slot, err error) {
	if len(w.Cluster) != 16 || len(w.Set) != 16 || w.Incarnation == 0 {
		return s, errBadRequest
	}
	s = seal.Slot{Cluster: seal.ClusterRef{ID: [16]byte(w.Cluster), Incarnation: w.Incarnation}, Set: [16]byte(w.Set), Index: w.Index}
	if s.Cluster.ID == [16]byte{} || s.Set == [16]byte{} || s.Index < 0 || s.Index > seal.MaxShares {
		return s, errBadRequest
	}
	return s, nil
}

// The exact fields of each of our requests: all must be there and no other may.
var (
	placeFields  = []string{"cluster", "incarnation", "set", "index", "share"}
	fetchFields  = placeFields[:4]
	settleFields = []string{"cluster", "incarnation", "set", "as_of"}
	// settleBefore is what peers of releases before this say.
	settleBefore = settleFields[:3]
	proveFields  = []string{"cluster", "incarnation", "set", "index", "nonce"}
)

// parseSlot reads one of our requests, strictly. What comes with the slot, a share or a nonce, belongs to the caller,
// who wipes it.
func parseSlot(body []byte, fields []string) (slot seal.Slot, payload []byte, err error) {
	erase.Do(func() { slot, payload, err = parseSlotWithin(body, fields) })
	return slot, payload, err
}

func parseSlotWithin(body []byte, fields []string) (slot seal.Slot, payload []byte, err error) {
	keys, err := inspect(body)
	if err != nil {
		return slot, nil, err
	}
	slices.Sort(keys)
	if want := slices.Sorted(slices.Values(fields)); !slices.Equal(keys, want) {
		return slot, nil, errBadRequest
	}
	var w slotWire
	if err := json.Unmarshal(body, &w); err != nil {
		locked.Wipe(w.Share)
		return slot, nil, errBadRequest
	}
	slot, err = w.slot()
	if slices.Contains(fields, "index") && slot.Index == 0 {
		err = errBadRequest
	}
	payload = w.Share
	switch {
	case slices.Contains(fields, "share") && !validShare(w.Share):
		err = errBadRequest
	case slices.Contains(fields, "nonce"):
		if payload = w.Nonce; len(w.Nonce) != nonceSize {
			err = errBadRequest
		}
	}
	if err != nil {
		locked.Wipe(w.Share)
		return seal.Slot{}, nil, err
	}
	return slot, payload, nil
}

// parseSettle reads that a set is the current one, and as of which index; 0: by a peer that does not tell.
func parseSettle(body []byte) (slot seal.Slot, asOf uint64, err error) {
	if slot, _, err = parseSlot(body, settleBefore); err == nil {
		return slot, 0, nil
	}
	if slot, _, err = parseSlot(body, settleFields); err != nil {
		return slot, 0, err
	}
	var w struct {
		AsOf uint64 `json:"as_of"`
	}
	if json.Unmarshal(body, &w) != nil || w.AsOf == 0 {
		return seal.Slot{}, 0, errBadRequest
	}
	return slot, w.AsOf, nil
}

// parseEmpty accepts an object; on our routes without any field.
func parseEmpty(body []byte, strict bool) error {
	keys, err := inspect(body)
	if err == nil && strict && len(keys) > 0 {
		return errBadRequest
	}
	return err
}

// parseContribution reads SPIKE's {"shard":[32 numbers]}; other fields are ignored, as its servers do.
func parseContribution(body []byte) (share []byte, err error) {
	erase.Do(func() { share, err = parseContributionWithin(body) })
	return share, err
}

func parseContributionWithin(body []byte) ([]byte, error) {
	if _, err := inspect(body); err != nil {
		return nil, err
	}
	var w struct {
		Shard []int `json:"shard"`
	}
	defer func() { clear(w.Shard) }()
	if err := json.Unmarshal(body, &w); err != nil || len(w.Shard) != shareSize {
		return nil, errBadRequest
	}
	share := make([]byte, shareSize)
	for i, n := range w.Shard {
		if n < 0 || n > 255 {
			locked.Wipe(share)
			return nil, errBadRequest
		}
		share[i] = byte(n)
	}
	if !validShare(share) {
		return nil, errBadRequest
	}
	return share, nil
}

// validShare refuses what cannot be one. All zero means "none" to SPIKE.
func validShare(b []byte) bool {
	return len(b) == shareSize && !bytes.Equal(b, make([]byte, shareSize))
}

// inspect checks that body is one JSON object, not nested too deep and without a name given twice in any object,
// and returns the names at the top. Names are compared without case, as encoding/json matches them: otherwise
// "shard" and "Shard" could mean two things to two readers.
func inspect(body []byte) (top []string, err error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	type level struct {
		object bool
		key    bool // the next token is a name
		seen   map[string]bool
	}
	var stack []level
	for first := true; first || len(stack) > 0; first = false {
		token, err := d.Token()
		if err != nil {
			return nil, errBadRequest
		}
		if name, ok := token.(string); ok && len(stack) > 0 && stack[len(stack)-1].key {
			at := &stack[len(stack)-1]
			folded := strings.ToLower(name)
			if at.seen[folded] {
				return nil, errBadRequest
			}
			at.seen[folded], at.key = true, false
			if len(stack) == 1 {
				top = append(top, name)
			}
			continue
		}
		delim, isDelim := token.(json.Delim)
		switch {
		case first && (!isDelim || delim != '{'):
			return nil, errBadRequest
		case isDelim && (delim == '{' || delim == '['):
			if len(stack) == maxDepth {
				return nil, errBadRequest
			}
			stack = append(stack, level{object: delim == '{', key: delim == '{', seen: make(map[string]bool)})
			continue
		case isDelim:
			stack = stack[:len(stack)-1]
		}
		if len(stack) > 0 && stack[len(stack)-1].object {
			stack[len(stack)-1].key = true // a value ended: a name follows, or the end
		}
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errBadRequest
	}
	return top, nil
}

// The answers that carry a share are built by hand, in one buffer that the caller wipes.

// shardAnswer is SPIKE's form: an array of numbers, and "Err" with a capital.
func shardAnswer(b []byte, share []byte) []byte {
	b = append(b, `{"shard":[`...)
	for i, n := range share {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	return append(b, `],"Err":""}`...)
}

// fetchAnswer is ours.
func fetchAnswer(b []byte, share []byte) []byte {
	erase.Do(func() {
		b = append(b, `{"share":"`...)
		b = base64.StdEncoding.AppendEncode(b, share)
		b = append(b, `"}`...)
	})
	return b
}

// holdsAnswer lists slots; it holds no share.
func holdsAnswer(slots []HeldSlot) []byte {
	return mustJSON(map[string][]slotWire{"slots": wireSlots(slots)})
}

func wireSlots(slots []HeldSlot) []slotWire {
	list := make([]slotWire, len(slots))
	for i, h := range slots {
		list[i] = wireSlot(h.Slot)
		list[i].Current = h.Current
	}
	return list
}

func heldSlots(list []slotWire) ([]HeldSlot, error) {
	slots := make([]HeldSlot, len(list))
	for i, w := range list {
		slot, err := w.slot()
		if err != nil {
			return nil, err
		}
		slots[i] = HeldSlot{Slot: slot, Current: w.Current}
	}
	return slots, nil
}

// Status is what a Keeper tells Nexus peers of itself.
type Status struct {
	Version string
	Started time.Time
	Slots   []HeldSlot
	Askers  []Asking // who asked lately, the newest first; bounded
}

type statusWire struct {
	Version string     `json:"version"`
	Started time.Time  `json:"started"`
	Slots   []slotWire `json:"slots"`
	Askers  []Asking   `json:"askers"`
}

func statusAnswer(s Status) []byte {
	return mustJSON(statusWire{s.Version, s.Started, wireSlots(s.Slots), s.Askers})
}

// parseStatus reads a status, which a Keeper of a later release may say more in. A Keeper may lie: what it says is
// bounded, fit to be shown on a terminal, and nothing is decided by it.
func parseStatus(b []byte) (Status, error) {
	var w statusWire
	if err := json.Unmarshal(b, &w); err != nil || len(w.Slots) > maxSlots || len(w.Askers) > maxAskers || !printable(w.Version) {
		return Status{}, errBadAnswer
	}
	for _, a := range w.Askers {
		if !printable(a.Peer) || !printable(a.Op) {
			return Status{}, errBadAnswer
		}
	}
	slots, err := heldSlots(w.Slots)
	if err != nil {
		return Status{}, errBadAnswer
	}
	return Status{w.Version, w.Started, slots, w.Askers}, nil
}

// printable says whether s is short and of visible ASCII characters.
func printable(s string) bool {
	return len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// maxSlots bounds the slots in an answer: one current, and those that are pending.
const maxSlots = 1 + maxPending

// proofAnswer carries the answer to a challenge.
func proofAnswer(proof [32]byte) []byte { return mustJSON(map[string][]byte{"proof": proof[:]}) }

func parseProof(b []byte) (proof [32]byte, err error) {
	var w struct {
		Proof []byte `json:"proof"`
	}
	if err := json.Unmarshal(b, &w); err != nil || len(w.Proof) != len(proof) {
		return proof, errBadAnswer
	}
	return [32]byte(w.Proof), nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("keeper: an answer always has a JSON form: " + err.Error())
	}
	return b
}

// placeRequest is the body of a request that carries a share.
func placeRequest(slot seal.Slot, share []byte) []byte {
	b := make([]byte, 0, 512)
	b = append(b, `{"cluster":"`...)
	b = base64.StdEncoding.AppendEncode(b, slot.Cluster.ID[:])
	b = append(b, `","incarnation":`...)
	b = strconv.AppendUint(b, slot.Cluster.Incarnation, 10)
	b = append(b, `,"set":"`...)
	b = base64.StdEncoding.AppendEncode(b, slot.Set[:])
	b = append(b, `","index":`...)
	b = strconv.AppendInt(b, int64(slot.Index), 10)
	b = append(b, `,"share":"`...)
	b = base64.StdEncoding.AppendEncode(b, share)
	return append(b, `"}`...)
}

// code is how an error of the vault travels, with the status of our routes.
func code(err error) (status int, code string) {
	switch {
	case errors.Is(err, seal.ErrNoShare):
		return 404, codeNoShare
	case errors.Is(err, seal.ErrOtherSet):
		return 409, codeOtherSet
	case errors.Is(err, seal.ErrForeignSet):
		return 409, codeForeign
	case errors.Is(err, seal.ErrStale):
		return 409, codeStale
	case errors.Is(err, seal.ErrThrottled):
		return 429, codeThrottled
	}
	return 400, codeBadRequest
}

// fromCode is the way back.
func fromCode(status int, code string) error {
	switch code {
	case codeNoShare:
		return seal.ErrNoShare
	case codeOtherSet:
		return seal.ErrOtherSet
	case codeForeign:
		return seal.ErrForeignSet
	case codeStale:
		return seal.ErrStale
	case codeThrottled:
		return seal.ErrThrottled
	case codeUnauthorised:
		return errors.New("keeper: the Keeper does not admit this identity here; check its trust domains, and that this is a Nexus peer")
	}
	return fmt.Errorf("keeper: the Keeper answered %d %.40q", status, code)
}
