package store_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// behind is a peer that has the state of w as of its last catchUp.
type behind struct {
	*store.Store
	w       *world
	machine *fsm.Machine
	log     *fakeLog
}

func (w *world) behind() *behind {
	b := &behind{w: w, machine: fsm.New(fsm.Options{})}
	b.log = &fakeLog{machine: b.machine, shared: w.log}
	b.catchUp()
	b.Store = store.New(store.Config{Machine: b.machine, Log: b.log, Keys: w.keys, Recorder: w.audit, Logger: slog.New(slog.DiscardHandler)})
	if err := b.Open(); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (b *behind) catchUp() {
	var snapshot bytes.Buffer
	if err := b.w.machine.View().WriteSnapshot(&snapshot); err != nil {
		b.w.t.Error(err)
	}
	if err := b.machine.Restore(&snapshot); err != nil {
		b.w.t.Error(err)
	}
}

func atIndex(r store.Request, token string) store.Request {
	r.Level, r.Token = store.AtIndex, token
	return r
}

func (w *world) indexReads(on bool) {
	w.t.Helper()
	if s, err := w.PutSettings(ctx, su, store.SettingsChange{IndexReads: &on}); err != nil || s.IndexReads != on {
		w.t.Fatal(s, err)
	}
}

// Reads of level index stand on at least the token, data and policies alike, and
// ask nobody; in the negative they are linearizable.
func TestIndexReads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.allow("web", "a/", secret.Read)
	old, err := w.PutSecret(ctx, su, "a/b", values("old"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.GetSecret(ctx, atIndex(su, w.Token(0)), "a/b", 0)
	wantCode(t, err, secret.CodeInvalid)
	if err.(*secret.Error).Reason != "index_reads_off" {
		t.Fatalf("%+v", err)
	}
	w.indexReads(true)
	b := w.behind()
	b.log.noRead = secret.Errorf(secret.CodeUnavailable, "no leader") // whoever asks others gets nothing
	get := func(r store.Request, path string) (string, error) {
		v, err := b.GetSecret(ctx, r, path, 0)
		return string(v.JSON), err
	}
	var seen uint64
	r := atIndex(web, w.Token(old.Index))
	r.Seen = &seen
	if got, err := get(r, "a/b"); err != nil || got != `{"v":"old"}` || seen < old.Index {
		t.Fatal(got, err, seen)
	}
	// A missing secret and a denial may be missing and denied only here.
	_, err = get(r, "a/none")
	wantCode(t, err, secret.CodeUnavailable)
	_, err = get(r, "b/b")
	wantCode(t, err, secret.CodeUnavailable)
	_, _, err = b.ListPrefix(ctx, r, "")
	wantCode(t, err, secret.CodeUnavailable)
	b.log.noRead = nil
	_, err = get(r, "a/none")
	wantCode(t, err, secret.CodeNotFound)
	_, err = get(r, "b/b")
	wantCode(t, err, secret.CodeDenied)

	// What the token stands for is waited for, not forever.
	changed, err := w.PutSecret(ctx, su, "a/b", values("new"), nil)
	if err != nil {
		t.Fatal(err)
	}
	newer := atIndex(web, w.Token(changed.Index))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = b.GetSecret(short, newer, "a/b", 0)
	wantCode(t, err, secret.CodeUnavailable)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := get(newer, "a/b"); err != nil || got != `{"v":"new"}` {
				t.Error(got, err)
			}
		})
	}
	b.catchUp()
	wg.Wait()

	// After a revocation its token brings the denial; older ones promise no more
	// than they did.
	if _, err := w.DeletePolicy(ctx, su, "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := get(newer, "a/b"); err != nil {
		t.Fatal(err)
	}
	revoked := w.Token(0)
	b.catchUp()
	_, err = get(atIndex(web, revoked), "a/b")
	wantCode(t, err, secret.CodeDenied)
	_, err = get(newer, "a/b")
	wantCode(t, err, secret.CodeDenied)

	w.indexReads(false)
	b.catchUp()
	_, err = get(atIndex(su, w.Token(0)), "a/b")
	wantCode(t, err, secret.CodeInvalid)
}

func TestForeignTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.indexReads(true)
	w.PutSecret(ctx, su, "a/b", values("x"), nil)
	good := w.Token(0)
	if _, err := w.GetSecret(ctx, atIndex(su, good), "a/b", 0); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{"x", good + "A", good[1:], good[:len(good)-1] + "=", w.tokenOf(2), w.tokenOf(0)}
	for i := range raw {
		altered := bytes.Clone(raw)
		altered[i] ^= 1
		bad = append(bad, base64.RawURLEncoding.EncodeToString(altered))
	}
	for _, token := range bad {
		_, err := w.GetSecret(ctx, atIndex(su, token), "a/b", 0)
		wantCode(t, err, secret.CodeForeignToken)
	}
}

// tokenOf makes a token under the same key, of another incarnation or, for 0, of
// another cluster.
func (w *world) tokenOf(incarnation uint64) string {
	id := make16(1)
	if incarnation == 0 {
		id, incarnation = make16(9), 1
	}
	m := fsm.New(fsm.Options{})
	log := &fakeLog{machine: m}
	log.must(w.t, &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{ClusterId: id, Incarnation: incarnation}}})
	s := store.New(store.Config{Machine: m, Log: log, Keys: w.keys, Recorder: w.audit, Logger: slog.New(slog.DiscardHandler)})
	if err := s.Open(); err != nil {
		w.t.Fatal(err)
	}
	return s.Token(1)
}

func TestSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	on, limit, small, none := true, uint64(1<<24), uint64(5), uint32(0)
	w.allow("all", "spike/", secret.Super|secret.Write)
	for _, r := range []store.Request{web, {Caller: secret.Caller{ID: "spiffe://example.org/op", Role: secret.RoleOperator}}} {
		_, err := w.PutSettings(ctx, r, store.SettingsChange{IndexReads: &on})
		wantCode(t, err, secret.CodeDenied)
	}
	_, err := w.GetSettings(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	for _, c := range []store.SettingsChange{{}, {StateLimitBytes: &small}, {MaxVersions: &none}} {
		_, err := w.PutSettings(ctx, su, c)
		wantCode(t, err, secret.CodeInvalid)
	}
	// Two at once both take effect: the one that was late decides on what there is.
	other := w.other()
	w.log.before = func(*fsmpb.Command) {
		if _, err := other.PutSettings(ctx, su, store.SettingsChange{StateLimitBytes: &limit}); err != nil {
			t.Error(err)
		}
	}
	n := w.audit.len()
	if _, err := w.PutSettings(ctx, su, store.SettingsChange{IndexReads: &on}); err != nil {
		t.Fatal(err)
	}
	got, err := w.GetSettings(ctx, su)
	if err != nil || !got.IndexReads || got.StateLimitBytes != limit || got.MaxVersions != 10 {
		t.Fatal(got, err)
	}
	if list := w.audit.since(n); len(list) != 5 || list[0] != "settings.put intent allow" || list[3] != "settings.put outcome allow ok" {
		t.Fatal(list)
	}
}
