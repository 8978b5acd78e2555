package store_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

func putOp(path, value string) store.Op {
	return store.Op{Kind: store.OpPut, Path: path, Values: values(value)}
}

func (o expecting) at(v secret.Version) store.Op {
	o.Op.Expect = &v
	return o.Op
}

type expecting struct{ store.Op }

func operationOf(t *testing.T, err error) int {
	t.Helper()
	e, ok := err.(*secret.Error)
	if !ok {
		t.Fatalf("no *secret.Error: %v", err)
	}
	return e.Operation
}

func TestTransact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.audit.len()
	done, err := w.Transact(ctx, su, []store.Op{putOp("a/1", "x"), putOp("a/2", "y")})
	if err != nil || len(done.Operations) != 2 || done.Operations[1].Version != 1 {
		t.Fatal(done, err)
	}
	want := []string{"secret.put intent allow", "secret.put intent allow", "secret.put outcome allow ok", "secret.put outcome allow ok"}
	if got := w.audit.since(n); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
	if w.audit.durable[n] || !w.audit.durable[n+1] || !w.audit.durable[n+3] {
		t.Fatal("the last of the records is made durable, and with it all")
	}
	one := expecting{putOp("a/2", "z")}.at(1)
	if _, err = w.Transact(ctx, su, []store.Op{{Kind: store.OpPurge, Path: "a/1"}, one}); err != nil {
		t.Fatal(err)
	}
	// Now nothing of this is done: the second operation expects what is gone.
	_, err = w.Transact(ctx, su, []store.Op{putOp("a/1", "back"), one})
	wantCode(t, err, secret.CodeConflict)
	if operationOf(t, err) != 2 || err.(*secret.Error).Current != 2 {
		t.Fatalf("%+v", err)
	}
	_, err = w.GetSecret(ctx, su, "a/1", 0)
	wantCode(t, err, secret.CodeNotFound)
	_, err = w.Transact(ctx, su, []store.Op{putOp("a/3", "x"), {Kind: store.OpDelete, Path: "a/1"}})
	wantCode(t, err, secret.CodeNotFound)
	if operationOf(t, err) != 2 {
		t.Fatalf("%+v", err)
	}
}

// When a secret moves between decision and effect, everything is decided again;
// an expectation that no longer holds ends it.
func TestTransactionIsDecidedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.other()
	w.Transact(ctx, su, []store.Op{putOp("a/1", "x"), putOp("a/2", "x")})
	meanwhile := func(*fsmpb.Command) {
		if _, err := other.PutSecret(ctx, su, "a/2", values("other"), nil); err != nil {
			t.Error(err)
		}
	}
	w.log.before = meanwhile
	reads := w.log.reads
	done, err := w.Transact(ctx, su, []store.Op{putOp("a/1", "y"), putOp("a/2", "y")})
	if err != nil || done.Operations[0].Version != 2 || done.Operations[1].Version != 3 {
		t.Fatal(done, err)
	}
	if w.log.reads != reads {
		t.Fatal("the rejection said all that was needed")
	}
	if w.read("a/2") != `{"v":"y"}` {
		t.Fatal(w.read("a/2"))
	}
	w.log.before = meanwhile
	_, err = w.Transact(ctx, su, []store.Op{putOp("a/1", "z"), expecting{putOp("a/2", "z")}.at(3)})
	wantCode(t, err, secret.CodeConflict)
	if operationOf(t, err) != 2 || err.(*secret.Error).Current != 4 || w.read("a/1") != `{"v":"y"}` {
		t.Fatalf("%+v, %s", err, w.read("a/1"))
	}
	w.log.before = func(*fsmpb.Command) { other.PurgeSecret(ctx, su, "a/2") }
	_, err = w.Transact(ctx, su, []store.Op{putOp("a/1", "z"), {Kind: store.OpPurge, Path: "a/2"}})
	wantCode(t, err, secret.CodeNotFound)
	if operationOf(t, err) != 2 {
		t.Fatalf("%+v", err)
	}
}

// All paths or none, in the same words whichever is missing or not there.
func TestTransactionIsDeniedWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.allow("web", "mine/", secret.Write)
	if _, err := w.Transact(ctx, web, []store.Op{putOp("mine/1", "x"), putOp("mine/2", "x")}); err != nil {
		t.Fatal(err)
	}
	w.PutSecret(ctx, su, "theirs/1", values("x"), nil)
	n := w.audit.len()
	var texts []string
	for _, ops := range [][]store.Op{
		{putOp("mine/3", "x"), putOp("theirs/1", "x")},
		{putOp("theirs/none", "x"), putOp("mine/3", "x")},
		{putOp("mine/3", "x"), {Kind: store.OpPurge, Path: "theirs//bad"}},
		{putOp("theirs/1", "x"), putOp("theirs/1", "x")},
	} {
		_, err := w.Transact(ctx, web, ops)
		wantCode(t, err, secret.CodeDenied)
		texts = append(texts, err.Error())
	}
	if len(slices.Compact(texts)) != 1 {
		t.Fatal(texts)
	}
	if got := w.audit.since(n)[:2]; !slices.Equal(got, []string{"secret.put decision refuse denied", "secret.put decision deny"}) {
		t.Fatal(got)
	}
	_, err := w.GetSecret(ctx, su, "mine/3", 0)
	wantCode(t, err, secret.CodeNotFound)
}

func TestTransactionLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	many := make([]store.Op, store.MaxOperations+1)
	for i := range many {
		many[i] = putOp(fmt.Sprintf("a/%d", i), "x")
	}
	if _, err := w.Transact(ctx, su, many[:store.MaxOperations]); err != nil {
		t.Fatal(err)
	}
	half := strings.Repeat("x", store.MaxTransactionBytes/2)
	quotes := strings.Repeat(`"`, store.MaxTransactionBytes/2)
	before := w.machine.View().Index()
	for name, c := range map[string]struct {
		code secret.Code
		ops  []store.Op
	}{
		"none":             {secret.CodeInvalid, nil},
		"operations":       {secret.CodeTooLarge, many},
		"bytes":            {secret.CodeTooLarge, []store.Op{putOp("b/1", half), putOp("b/2", half)}},
		"encoded":          {secret.CodeTooLarge, []store.Op{putOp("b/1", quotes)}},
		"versions":         {secret.CodeTooLarge, []store.Op{{Kind: store.OpDelete, Path: "a/1", Versions: make([]secret.Version, 1001)}}},
		"kind":             {secret.CodeInvalid, []store.Op{{Kind: "undelete", Path: "a/1"}}},
		"one path twice":   {secret.CodeInvalid, []store.Op{putOp("a/1", "x"), putOp("b/1", "x"), {Kind: store.OpPurge, Path: "a/1"}}},
		"path":             {secret.CodeInvalid, []store.Op{putOp("a//1", "x")}},
		"reserved":         {secret.CodeInvalid, []store.Op{putOp("spike/system/acl", "x")}},
		"nothing destroys": {secret.CodeInvalid, []store.Op{{Kind: store.OpDestroy, Path: "a/1"}}},
		"purge a version":  {secret.CodeInvalid, []store.Op{{Kind: store.OpPurge, Path: "a/1", Versions: []secret.Version{1}}}},
		"delete to values": {secret.CodeInvalid, []store.Op{{Kind: store.OpDelete, Path: "a/1", Values: values("x")}}},
	} {
		_, err := w.Transact(ctx, su, c.ops)
		if secret.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.machine.View().Index() != before {
		t.Fatal("something was proposed")
	}
}

// A retry of a transaction is applied once, also when the first attempt failed
// but persisted and its own doing stands in the way.
func TestTransactionRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.PutSecret(ctx, su, "a/2", values("x"), nil)
	r := su
	r.Write = store.WriteID{ID: [16]byte{1}, Index: w.Index()}
	ops := []store.Op{expecting{putOp("a/1", "x")}.at(0), {Kind: store.OpPurge, Path: "a/2"}}
	tries := 0
	w.log.fail = func() (bool, error) {
		if tries++; tries <= 2 {
			return tries == 1, secret.Errorf(secret.CodeUnknown, "connection lost")
		}
		return false, nil
	}
	first, err := w.Transact(ctx, r, ops)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.other().Transact(ctx, r, ops)
	if err != nil || again.Index != first.Index || again.Operations[0].Version != 1 {
		t.Fatal(first, again, err)
	}
	ops[1].Path = "a/3"
	_, err = w.Transact(ctx, r, ops) // another request under the id
	if code := secret.CodeOf(err); code != secret.CodeInvalid && code != secret.CodeConflict {
		t.Fatal(err)
	}
}

// Writers of several paths in any order, beside writers of one, never wait for
// one another in a circle, and no half of a transaction is ever seen.
func TestTransactionsBesideOneAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := []*store.Store{w.Store, w.other()}
	if _, err := w.Transact(ctx, su, []store.Op{putOp("a/1", "start"), putOp("a/2", "start")}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for k := range 20 {
				value := fmt.Sprint(i, ".", k)
				ops := []store.Op{putOp("a/1", value), putOp("a/2", value)}
				if i%2 == 1 {
					slices.Reverse(ops)
				}
				if _, err := peers[i%2].Transact(ctx, su, ops); err != nil {
					t.Error(err)
				}
				if _, err := peers[i%2].PutSecret(ctx, su, "b/1", values(value), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if one, two := w.read("a/1"), w.read("a/2"); one != two {
		t.Fatal(one, two)
	}
	m, err := w.GetMetadata(ctx, su, "a/1", 0, true)
	if err != nil || m.Current != 121 {
		t.Fatal(m, err)
	}
}
