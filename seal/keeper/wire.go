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
)

const (
	// maxBody bounds a request; the longest legal one has a few hundred bytes.
	maxBody = 4 << 10
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
)

var errBadRequest = errors.New("keeper: bad request") // says nothing of the content: it may be a share

// slotWire is a slot on our routes. []byte is base64 in JSON.
type slotWire struct {
	Cluster     []byte `json:"cluster"`
	Incarnation uint64 `json:"incarnation"`
	Set         []byte `json:"set"`
	Index       int    `json:"index,omitempty"`
	Share       []byte `json:"share,omitempty"`
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
	settleFields = placeFields[:3]
)

// parseSlot reads one of our requests, strictly. The share, if there is one, belongs to the caller, who wipes it.
func parseSlot(body []byte, fields []string) (slot seal.Slot, share []byte, err error) {
	erase.Do(func() { slot, share, err = parseSlotWithin(body, fields) })
	return slot, share, err
}

func parseSlotWithin(body []byte, fields []string) (slot seal.Slot, share []byte, err error) {
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
	if slices.Contains(fields, "share") && !validShare(w.Share) {
		err = errBadRequest
	}
	if err != nil {
		locked.Wipe(w.Share)
		return seal.Slot{}, nil, err
	}
	return slot, w.Share, nil
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
	list := make([]slotWire, len(slots))
	for i, h := range slots {
		list[i] = wireSlot(h.Slot)
		list[i].Current = h.Current
	}
	b, err := json.Marshal(map[string][]slotWire{"slots": list})
	if err != nil {
		panic("keeper: a list of slots always has a JSON form: " + err.Error())
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
	case codeUnauthorised:
		return errors.New("keeper: the Keeper does not admit this identity here; check its trust domains, and that this is a Nexus peer")
	}
	return fmt.Errorf("keeper: the Keeper answered %d %.40q", status, code)
}
