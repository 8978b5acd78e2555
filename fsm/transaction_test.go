package fsm_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// A transaction is refused or applied whole, and its limits are those of the
// whole.
func TestTransactionIsOneChange(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{StateLimitBytes: 3000, SecretLimitBytes: 2000})
	big := strings.Repeat("x", 1000)
	want(t, do(t, m, put("a", 0, 1, big)), fsmpb.Code_OK)
	a := secret(m, "a").Revision
	_, before := m.View().Hashes()

	refused := func(code fsmpb.Code, operation uint32, c *fsmpb.Command) *fsmpb.Result {
		t.Helper()
		r := do(t, m, c)
		want(t, r, code)
		if r.Operation != operation || m.View().SecretCount() != 1 || secret(m, "a").Revision != a {
			t.Fatal("the operation is another, or something changed: ", r.Operation)
		}
		return r
	}
	refused(fsmpb.Code_STATE_FULL, 0, all(put("b", 0, 1, big), put("c", 0, 1, big)))
	refused(fsmpb.Code_TOO_LARGE, 2, all(put("b", 0, 1, "b"), put("c", 0, 1, strings.Repeat("x", 2001))))
	r := refused(fsmpb.Code_CONFLICT, 3, all(put("b", 0, 1, "b"), del("a", a), put("c", 7, 1, "c")))
	if s := r.Current.Secrets; len(s) != 3 || s[0].NextVersion != 1 || s[1].Revision != a || s[1].CurrentVersion != 1 || s[1].NextVersion != 2 {
		t.Fatal(s)
	}
	refused(fsmpb.Code_NOT_FOUND, 1, all(purge("b", 1), purge("a", a)))
	if _, after := m.View().Hashes(); before != after {
		t.Fatal("a rejection changed the state")
	}

	// What one operation frees the others may use.
	want(t, do(t, m, all(put("b", 0, 1, big), put("c", 0, 1, "c"), purge("a", a))), fsmpb.Code_OK)
	if m.View().SecretCount() != 2 {
		t.Fatal(m.View().SecretCount())
	}
	want(t, do(t, m, setSeal(true, 0)), fsmpb.Code_OK)
	want(t, do(t, m, all(put("d", 0, 1, "d"))), fsmpb.Code_SEALED)
}

// Retries of a transaction get all of its versions, after a restore too.
func TestTransactionIsReplayed(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	c := with(1, 1, all(put("a", 0, 1, "a"), put("b", 0, 1, "b"), put("c", 0, 1, "c")))
	first := do(t, m, c)
	want(t, first, fsmpb.Code_OK)
	restored := fsm.New(fsm.Options{})
	if err := restored.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	equal(t, m.View(), restored.View())
	for _, x := range []*fsm.Machine{m, restored} {
		again := do(t, x, c)
		if !again.Replayed {
			t.Fatal("applied twice")
		}
		if again.Replayed = false; !proto.Equal(again, first) {
			t.Fatal(again, first)
		}
		if r := x.View().Replay([16]byte(c.WriteId.Id), c.WriteId.Request, 1); r == nil || len(r.Operations) != 3 {
			t.Fatal(r)
		}
	}
}

// What a decoder would make something of, but not what was meant, is refused
// before it is decoded.
func TestMalformedTransactions(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	many := func(n int) *fsmpb.Command {
		var list []*fsmpb.Command
		for i := range n {
			list = append(list, put(fmt.Sprint(i), 0, 1, "x"))
		}
		return all(list...)
	}
	want(t, do(t, m, many(fsm.MaxOperations)), fsmpb.Code_OK)
	numbers := make([]uint64, fsm.MaxVersions/2+1)
	raw := func(transaction ...byte) []byte {
		b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)
		return protowire.AppendBytes(protowire.AppendTag(b, 29, protowire.BytesType), transaction)
	}
	first, second := encode(t, all(put("x", 0, 1, "x"))), encode(t, all(purge("x", 1)))
	for name, b := range map[string][]byte{
		"none":            encode(t, all()),
		"too many":        encode(t, many(fsm.MaxOperations+1)),
		"one twice":       encode(t, all(put("y", 0, 1, "y"), purge("y", 1))),
		"no versions":     encode(t, all(destroy("y", 1))),
		"many numbers":    encode(t, all(del("y", 1, numbers...), del("z", 1, numbers...))),
		"not operations":  raw(0x08, 0x01),
		"empty operation": raw(0x0a, 0x00),
		"two in one":      raw(0x0a, 0x04, 0x0a, 0x00, 0x22, 0x00),
		"unknown":         raw(0x0a, 0x02, 0x2a, 0x00),
		"cut":             raw(0x0a, 0x05, 0x0a),
		"too long":        encode(t, all(put("y", 0, 1, strings.Repeat("x", fsm.MaxTransaction)))),
		"given twice":     append(bytes.Clone(first), second[2:]...),
		"empty value":     encode(t, all(put("y", 0, 1, ""))),
	} {
		before := m.View().SecretCount()
		if r := apply(t, m, m.View().Index()+1, b)[0]; r.Code != fsmpb.Code_INVALID || m.View().SecretCount() != before {
			t.Errorf("%s: %v", name, r)
		}
	}
}
