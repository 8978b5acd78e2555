package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// told is a batch as "kind path versions", in order.
func told(b store.Batch) (list []string) {
	for _, e := range b.Events {
		list = append(list, fmt.Sprintf("%s %s %v", e.Kind, e.Path, e.Versions))
	}
	return list
}

func (w *world) put(path, value string) uint64 {
	w.t.Helper()
	c, err := w.PutSecret(ctx, su, path, values(value), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Index
}

func (w *world) watch(r store.Request, q store.WatchQuery) store.Batch {
	w.t.Helper()
	b, err := w.Watch(ctx, r, q)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// waiting begins a watch and returns once it waits, with what it will come to.
func (w *world) waiting(r store.Request, q store.WatchQuery) func() (store.Batch, error) {
	w.t.Helper()
	q.Wait = store.MaxWatchWait
	before := store.Waiting(w.Store)
	var b store.Batch
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, err = w.Watch(ctx, r, q)
	}()
	for deadline := time.Now().Add(store.MaxWatchWait); store.Waiting(w.Store) == before; time.Sleep(time.Millisecond) { // a poll
		if time.Now().After(deadline) {
			w.t.Fatal("the watch does not wait")
		}
		select {
		case <-done:
			w.t.Fatalf("it did not wait: %v, %v", b, err)
		default:
		}
	}
	return func() (store.Batch, error) {
		w.t.Helper()
		select {
		case <-done:
		case <-time.After(store.MaxWatchWait / 2):
			w.t.Fatal("nothing but the end of its wait would end the watch")
		}
		return b, err
	}
}

// Each kind of change is told with its versions and its index, in order, without
// any value; a transaction is one index.
func TestWatchTellsEveryKind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const canary = "canary-value-91c2"
	from := w.Index()
	w.put("a/b", canary)
	w.put("a/b", canary)
	var last uint64
	for _, change := range []func() (store.Changed, error){
		func() (store.Changed, error) { return w.DeleteVersions(ctx, su, "a/b", []secret.Version{2, 1}) },
		func() (store.Changed, error) { return w.UndeleteVersions(ctx, su, "a/b", []secret.Version{1}) },
		func() (store.Changed, error) { return w.DestroyVersions(ctx, su, "a/b", []secret.Version{1}) },
		func() (store.Changed, error) { return w.PurgeSecret(ctx, su, "a/b") },
		func() (store.Changed, error) {
			done, err := w.Transact(ctx, su, []store.Op{{Kind: "put", Path: "z/1", Values: values(canary)}, {Kind: "put", Path: "a/c", Values: values(canary)}})
			return store.Changed{Index: done.Index}, err
		},
	} {
		c, err := change()
		if err != nil {
			t.Fatal(err)
		}
		last = c.Index
	}
	b := w.watch(su, store.WatchQuery{After: from})
	want := []string{"put a/b [1]", "put a/b [2]", "deleted a/b [1 2]", "undeleted a/b [1]", "destroyed a/b [1]", "purged a/b []", "put z/1 [1]", "put a/c [1]"}
	if !reflect.DeepEqual(told(b), want) {
		t.Errorf("%q", told(b))
	}
	if text := fmt.Sprintf("%+v", b); strings.Contains(text, canary) {
		t.Error("a value is in the batch")
	}
	for i, e := range b.Events {
		if i > 0 && e.Index < b.Events[i-1].Index || e.Index <= from || e.Time.IsZero() {
			t.Error(e)
		}
	}
	if n := len(b.Events); b.Events[n-1].Index != last || b.Events[n-2].Index != last || b.Index < last {
		t.Errorf("the transaction is not one index: %+v", b.Events[n-2:])
	}
	for q, want := range map[store.WatchQuery]int{
		{Prefix: "a/"}: 7, {Prefix: "a"}: 7, {Prefix: "z/1"}: 1, {Path: "a/b"}: 6, {Path: "a"}: 0, {Prefix: "a/b/"}: 0} {
		q.After = from
		if got := w.watch(su, q); len(got.Events) != want || got.Index != w.Index() {
			t.Errorf("%+v: %q", q, told(got))
		}
	}
	if got := w.watch(su, store.WatchQuery{}); len(got.Events) != 0 || got.Index != w.Index() {
		t.Errorf("from now on: %+v", got)
	}
}

// A watch is asked for no read-index round until something happens that is its
// concern, and then hears of it. It is not parallel: a flood has to be over within the wait.
func TestWatchWaits(t *testing.T) {
	w := newWorld(t)
	for _, q := range []store.WatchQuery{{Path: "a/b"}, {Prefix: "a/"}, {Prefix: ""}} {
		from := w.Index()
		q.After = from
		result := w.waiting(su, q)
		reads := w.log.rounds()
		if q.Prefix != "" || q.Path != "" { // anything else than everything
			for i := range 50 {
				w.put("elsewhere", fmt.Sprint(i))
				if store.Undisturbed(w.Store, from) != 1 {
					t.Fatalf("%+v: woken by what happened elsewhere", q)
				}
			}
		}
		if got := w.log.rounds(); got != reads {
			t.Errorf("%+v: %d rounds while nothing of it happened", q, got-reads)
		}
		index := w.put("a/b", "x")
		b, err := result()
		if err != nil || len(b.Events) != 1 || b.Events[0].Index != index || b.Index != index {
			t.Errorf("%+v: %+v, %v", q, b, err)
		}
		if got := w.log.rounds(); got != reads+1 {
			t.Errorf("%+v: %d rounds for one batch", q, got-reads)
		}
	}
	// What it waited through may have been forgotten: it had no part in it.
	result := w.waiting(su, store.WatchQuery{Path: "quiet", After: w.Index()})
	w.flood(1 << 16)
	index := w.put("quiet", "x")
	if b, err := result(); err != nil || len(b.Events) != 1 || b.Events[0].Index != index {
		t.Errorf("after a flood: %+v, %v", told(b), err)
	}
	b := w.watch(su, store.WatchQuery{Path: "quiet", Wait: time.Millisecond})
	if len(b.Events) != 0 || b.Index != w.Index() {
		t.Errorf("at the end of the wait: %+v", b)
	}
}

// flood makes n changes of the secret "flood", or a few more, many in an entry.
func (w *world) flood(n int) {
	w.t.Helper()
	const each = 1024
	for ; n > 0; n -= each + 1 {
		w.put("flood", "x")
		token, _, _ := w.keys.Token(store.KindValue, "flood")
		record, _ := w.machine.View().Secret(token)
		var commands [][]byte
		for i := range uint64(each) {
			c := &fsmpb.Command{Op: &fsmpb.Command_DeleteVersions{DeleteVersions: &fsmpb.DeleteVersions{Token: token[:], ExpectedRevision: record.Revision + i, Versions: []uint64{1}}}}
			if i == each-1 {
				c = &fsmpb.Command{Op: &fsmpb.Command_PurgeSecret{PurgeSecret: &fsmpb.PurgeSecret{Token: token[:], ExpectedRevision: record.Revision + i}}}
			}
			b, err := fsm.Encode(c)
			if err != nil {
				w.t.Fatal(err)
			}
			commands = append(commands, b)
		}
		if _, err := w.log.entry(commands...); err != nil {
			w.t.Fatal(err)
		}
	}
}

// What is older than the peer keeps is said to be forgotten, never left out; what
// it keeps is whole.
func TestWatchForgets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.Index()
	w.put("a/b", "x")
	w.flood(store.FeedEvents / 2)
	kept := w.Index()
	if b := w.watch(su, store.WatchQuery{After: from}); len(b.Events) < 1000 {
		t.Fatal("nothing was to be forgotten yet")
	}
	w.flood(store.FeedEvents / 2)
	_, err := w.Watch(ctx, su, store.WatchQuery{After: from})
	wantCode(t, err, secret.CodeForgotten)
	// Batches are of whole entries, and the next one begins where one ends.
	count, at, entries := 0, kept, map[uint64]bool{}
	for at < w.Index() {
		b := w.watch(su, store.WatchQuery{After: at})
		count += len(b.Events)
		seen := map[uint64]bool{}
		for _, e := range b.Events {
			if entries[e.Index] || e.Index <= at || e.Index > b.Index {
				t.Fatalf("index %d in the batch from %d to %d", e.Index, at, b.Index)
			}
			seen[e.Index] = true
		}
		for index := range seen {
			entries[index] = true
		}
		if len(b.Events) > 3000 {
			t.Fatalf("a batch of %d", len(b.Events))
		}
		at = b.Index
	}
	if rest := count % 1025; count < store.FeedEvents/2 || rest != 0 {
		t.Errorf("%d events", count)
	}
}

// The future, and what was of another incarnation, are refused; so are bad scopes,
// but only to those who may ask.
func TestWatchRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.allow("p", "a", secret.Read|secret.List)
	long := strings.Repeat("a", 501)
	for _, c := range []struct {
		r    store.Request
		q    store.WatchQuery
		code secret.Code
	}{
		{su, store.WatchQuery{After: w.Index() + 1}, secret.CodeInvalid},
		{su, store.WatchQuery{Prefix: "a", After: w.Index() + 1, Incarnation: 9}, secret.CodeForgotten},
		{su, store.WatchQuery{Prefix: "a", After: w.Index(), Incarnation: 1}, ""},
		{su, store.WatchQuery{After: 1}, secret.CodeForgotten},
		{su, store.WatchQuery{Path: "a", Prefix: "b"}, secret.CodeInvalid},
		{su, store.WatchQuery{Path: "../a"}, secret.CodeInvalid},
		{su, store.WatchQuery{Prefix: "a//"}, secret.CodeInvalid},
		{su, store.WatchQuery{Path: long}, secret.CodeInvalid},
		{su, store.WatchQuery{Prefix: long}, secret.CodeInvalid},
		{web, store.WatchQuery{Path: "a/../b"}, secret.CodeInvalid},
		{web, store.WatchQuery{Path: "a/b"}, ""},
		{web, store.WatchQuery{Path: "b/../a"}, secret.CodeDenied},
		{web, store.WatchQuery{Path: "b", After: w.Index() + 1}, secret.CodeDenied},
		{web, store.WatchQuery{Path: long}, secret.CodeDenied},
	} {
		before := w.audit.len()
		_, err := w.Watch(ctx, c.r, c.q)
		if secret.CodeOf(err) != c.code {
			t.Errorf("%+v: %v", c.q, err)
		}
		if got := w.audit.since(before); len(got) != 1 {
			t.Errorf("%+v: records %q", c.q, got)
		}
	}
}

// A prefix shows what list and metadata would tell, and nothing else.
func TestWatchShowsWhatIsAllowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.Index()
	_, err := w.Watch(ctx, web, store.WatchQuery{Prefix: "a"})
	wantCode(t, err, secret.CodeDenied)
	w.allow("both", "a/both", secret.Read|secret.List)
	w.allow("list", "a/list", secret.List)
	w.allow("read", "a/read", secret.Read)
	for _, path := range []string{"a/both/1", "a/list/1", "a/read/1", "a/none/1", "a/both"} {
		w.put(path, "x")
	}
	if got, want := told(w.watch(web, store.WatchQuery{After: from})), []string{"put a/both/1 [1]", "put a/both [1]"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	for path, code := range map[string]secret.Code{"a/both/1": "", "a/read/1": "", "a/list/1": secret.CodeDenied, "a/none/1": secret.CodeDenied} {
		b, err := w.Watch(ctx, web, store.WatchQuery{Path: path, After: from})
		if secret.CodeOf(err) != code || err == nil && len(b.Events) != 1 {
			t.Errorf("%s: %+v, %v", path, b, err)
		}
	}
}

// A revocation ends a watch at once, also one that nothing happens to; an event
// after it, or before it and not yet told, is not told.
func TestWatchEndsWithARevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, q := range []store.WatchQuery{{Path: "a/b"}, {Prefix: "a/"}} {
		w.allow("p", "a", secret.Read|secret.List)
		q.After = w.Index()
		result := w.waiting(web, q)
		if _, err := w.DeletePolicy(ctx, su, "p"); err != nil {
			t.Fatal(err)
		}
		_, err := result()
		wantCode(t, err, secret.CodeDenied)

		// Between the event and the batch: while the round is under way.
		w.allow("p", "a", secret.Read|secret.List)
		q.After = w.Index()
		result = w.waiting(web, q)
		var once sync.Once
		w.log.hook(func() {
			once.Do(func() {
				if _, err := w.DeletePolicy(ctx, su, "p"); err != nil {
					t.Error(err)
				}
			})
		})
		w.put("a/b", "x")
		b, err := result()
		w.log.hook(nil)
		if secret.CodeOf(err) != secret.CodeDenied || len(b.Events) > 0 {
			t.Fatalf("%+v, %v", b, err)
		}
	}
}

// What happens between a watch's look and its wait has it look again; what is not
// its concern does not.
func TestWatchMissesNothingBeforeItWaits(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		happens func(w *world)
		waits   bool
	}{
		"nothing":   {func(*world) {}, true},
		"elsewhere": {func(w *world) { w.put("elsewhere", "x") }, true},
		"an event":  {func(w *world) { w.put("a/b", "x"); w.put("elsewhere", "x") }, false},
		"a policy":  {func(w *world) { w.allow("p", "elsewhere", secret.Read) }, false},
		"a seal":    {func(w *world) { w.Close() }, false},
		"a snapshot": {func(w *world) {
			source := newWorld(t)
			for range 5 {
				source.put("a/b", "x")
			}
			var b bytes.Buffer
			if err := errors.Join(source.machine.View().WriteSnapshot(&b), w.machine.Restore(&b)); err != nil {
				t.Error(err)
			}
		}, false},
	} {
		w := newWorld(t)
		w.put("a/b", "x")
		waits, index := store.WaitAfter(w.Store, "a/b", func() { tc.happens(w) })
		if waits != tc.waits || waits && index != w.Index() {
			t.Errorf("%s: it waits: %t, from index %d of %d on", name, waits, index, w.Index())
		}
	}
}

// Sealing ends a watch; what was kept before is forgotten after it, and a
// snapshot that comes in is a new beginning too.
func TestWatchEndsWithTheKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.put("a/b", "x")
	result := w.waiting(su, store.WatchQuery{After: from})
	w.Close()
	_, err := result()
	wantCode(t, err, secret.CodeSealed)
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: true}}})
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: false, ExpectedGeneration: 1}}})
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	_, err = w.Watch(ctx, su, store.WatchQuery{After: from})
	wantCode(t, err, secret.CodeForgotten)
	w.watch(su, store.WatchQuery{After: w.Index()})

	result = w.waiting(su, store.WatchQuery{After: w.Index()})
	w.log.must(t, &fsmpb.Command{Op: &fsmpb.Command_SetSeal{SetSeal: &fsmpb.SetSeal{Sealed: true, ExpectedGeneration: 2}}})
	_, err = result()
	wantCode(t, err, secret.CodeSealed)
}

// A snapshot that is installed under a watch ends it: what lies between is not known.
func TestWatchOverASnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.put("a/b", "x")
	result := w.waiting(su, store.WatchQuery{Path: "quiet", After: from})
	source := newWorld(t)
	for range 5 {
		source.put("quiet", "x")
	}
	var b bytes.Buffer
	err := source.machine.View().WriteSnapshot(&b)
	if err == nil {
		err = w.machine.Restore(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = result()
	wantCode(t, err, secret.CodeForgotten)
	w.watch(su, store.WatchQuery{After: w.Index()})
}

// A context that ends with a reason ends the watch with it.
func TestWatchIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, why := range []error{secret.Errorf(secret.CodeUnavailable, "drained"), errors.New("gone")} {
		ctx, end := context.WithCancelCause(ctx)
		done := make(chan error)
		go func() {
			_, err := w.Watch(ctx, su, store.WatchQuery{Wait: time.Minute})
			done <- err
		}()
		end(why)
		err := <-done
		wantCode(t, err, secret.CodeUnavailable)
		if secret.CodeOf(why) == secret.CodeUnavailable && err != why {
			t.Error(err)
		}
	}
	if n := store.Waiting(w.Store); n != 0 {
		t.Errorf("%d are left", n)
	}
}

// A batch is on record before it leaves; without the record it does not leave. A
// watch without events is on record once, and again under other policies.
func TestWatchIsAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.allow("p", "a", secret.Read|secret.List)
	q := store.WatchQuery{Path: "a/b", After: w.Index()}
	before := w.audit.len()
	for range 5 {
		w.watch(web, q)
	}
	if got := w.audit.since(before); !reflect.DeepEqual(got, []string{"secret.watch decision allow"}) {
		t.Errorf("idle: %q", got)
	}
	w.allow("q", "z", secret.Read)
	before = w.audit.len()
	w.watch(web, q)
	w.watch(web, q)
	if got := w.audit.since(before); len(got) != 1 {
		t.Errorf("under other policies: %q", got)
	}
	index := w.put("a/b", "x")
	before = w.audit.len()
	w.watch(web, q)
	w.watch(web, q)
	if got := w.audit.since(before); len(got) != 2 {
		t.Errorf("batches: %q", got)
	}
	r := w.audit.last()
	if want := fmt.Sprintf("1 events of indexes %d to %d", index, index); r.Detail != want || strings.Contains(r.Path, "a/b") || r.Path == "" {
		t.Errorf("%+v", r)
	}
	w.audit.fail = func(audit.Record) error { return errDisk }
	b, err := w.Watch(ctx, web, q)
	if secret.CodeOf(err) != secret.CodeUnavailable || len(b.Events) > 0 {
		t.Errorf("without a record: %+v, %v", b, err)
	}
}

// Whoever goes on from the index of each answer hears of each change that
// concerns it once and in order, wherever the batches end and whichever of two
// peers answers.
func TestWatchProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		peers := []*store.Store{w.Store, w.other()}
		from := w.Index()
		at := from
		q := store.WatchQuery{Prefix: rapid.SampledFrom([]string{"", "a", "a/", "b/"}).Draw(r, "prefix")}
		var want, got []string
		look := func() {
			q.After = at
			b, err := peers[rapid.IntRange(0, 1).Draw(r, "peer")].Watch(ctx, su, q)
			if err != nil {
				r.Fatal(err)
			}
			for _, e := range b.Events {
				if e.Index <= at || e.Index > b.Index {
					r.Fatalf("index %d between %d and %d", e.Index, at, b.Index)
				}
			}
			got = append(got, told(b)...)
			at = b.Index
		}
		for range rapid.IntRange(1, 30).Draw(r, "steps") {
			path := rapid.SampledFrom([]string{"a", "a/x", "a/y", "ab", "b/x"}).Draw(r, "path")
			var what string
			var c store.Changed
			var err error
			switch rapid.IntRange(0, 5).Draw(r, "do") {
			case 0:
				look()
				continue
			case 1:
				c, err = w.DeleteVersions(ctx, su, path, nil)
				what = "deleted"
			case 2:
				c, err = w.UndeleteVersions(ctx, su, path, nil)
				what = "undeleted"
			case 3:
				if c, err = w.PurgeSecret(ctx, su, path); err == nil {
					c.Versions = []secret.Version{}
				}
				what = "purged"
			default:
				if c, err = w.PutSecret(ctx, su, path, values("x"), nil); err == nil {
					c.Versions = []secret.Version{c.Version}
				}
				what = "put"
			}
			if err == nil && c.Versions != nil && strings.HasPrefix(path, q.Prefix) {
				want = append(want, fmt.Sprintf("%s %s %v", what, path, c.Versions))
			}
		}
		look()
		if !reflect.DeepEqual(got, want) {
			r.Fatalf("told %q, want %q", got, want)
		}
		// From the middle: the rest of the same history.
		q.After = from + uint64(rapid.IntRange(0, int(at-from)).Draw(r, "middle"))
		all, err := w.Watch(ctx, su, q)
		if err != nil {
			r.Fatal(err)
		}
		if rest := told(all); len(rest) > len(want) || !reflect.DeepEqual(append([]string{}, want[len(want)-len(rest):]...), append([]string{}, rest...)) {
			r.Fatalf("from the middle %q of %q", rest, want)
		}
	})
}

// What is kept is bounded in number and in bytes, and nothing after the floor is missing.
func TestFeedIsBounded(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ n, path int }{{10, 1000}, {store.FeedEvents + 10, 10}, {store.FeedBytes/1000 + 100, 1000}} {
		kept, bytes, whole := store.FeedOf(x.n, x.path)
		if kept > store.FeedEvents || bytes > store.FeedBytes || bytes < kept*x.path || !whole || kept < min(x.n, 1000) {
			t.Errorf("of %d events with %d bytes: %d, %d bytes, whole: %t", x.n, x.path, kept, bytes, whole)
		}
	}
}
