package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// A stream is decided from a read-index round when it begins and each second after that; a piece in between costs none.
// A round that fails ends it, and so do keys that go.
func TestStreamsAreDecidedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Unix(1000, 0)
	log := &fakeLog{machine: w.machine, shared: w.log}
	s := store.New(store.Config{Machine: w.machine, Log: log, Keys: w.keys, Recorder: w.audit, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, Timeout: time.Second})
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	caller := secret.Caller{ID: "spiffe://spike.ist/spike/workload/role/lite", Role: secret.RoleLite}
	var out bytes.Buffer
	sealed, err := s.EncryptStream(context.Background(), store.Request{ID: "1", Caller: caller}, &out)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := s.DecryptStream(context.Background(), store.Request{ID: "2", Caller: caller}, bytes.NewReader(make([]byte, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	both := func() error {
		_, err := sealed.Write([]byte("piece"))
		_, err2 := io.ReadFull(opened, make([]byte, 1))
		return errors.Join(err, err2)
	}
	begun := log.rounds()
	seal := func(sealed bool) {
		w.keys.mu.Lock()
		defer w.keys.mu.Unlock()
		w.keys.sealed = sealed
	}
	for _, step := range []struct {
		passes time.Duration
		rounds int
	}{{0, 0}, {time.Second - 1, 0}, {1, 2}, {0, 2}, {time.Minute, 4}} {
		now = now.Add(step.passes)
		if err := both(); err != nil || log.rounds() != begun+step.rounds {
			t.Fatalf("after %v: %d rounds, want %d; %v", step.passes, log.rounds()-begun, step.rounds, err)
		}
	}
	if n := len(w.audit.records); n != 2 {
		t.Errorf("%d records of two streams", n)
	}
	seal(true)
	if err := sealed.Close(); secret.CodeOf(err) != secret.CodeSealed {
		t.Errorf("without keys: %v", err)
	}
	gone, cancel := context.WithCancel(context.Background())
	seal(false)
	third, err := s.EncryptStream(gone, store.Request{ID: "3", Caller: caller}, &out)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := third.Write([]byte("piece")); secret.CodeOf(err) != secret.CodeUnavailable {
		t.Errorf("given up: %v", err)
	}
	stranger := secret.Caller{ID: "spiffe://spike.ist/workload/web"}
	if _, err := s.EncryptStream(context.Background(), store.Request{ID: "4", Caller: stranger}, &out); secret.CodeOf(err) != secret.CodeDenied {
		t.Errorf("a stranger: %v", err)
	}
}

// A stream that ended while it waited for its caller answers nothing of what came then, however long that took.
func TestStreamEndsWhileItWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Unix(1000, 0)
	s := store.New(store.Config{Machine: w.machine, Log: w.log, Keys: w.keys, Recorder: w.audit, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, Timeout: time.Second})
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	late := afterwards{bytes.NewReader(make([]byte, 100)), cancel}
	caller := secret.Caller{ID: "spiffe://spike.ist/spike/workload/role/lite", Role: secret.RoleLite}
	opened, err := s.DecryptStream(ctx, store.Request{ID: "1", Caller: caller}, late)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := opened.Read(make([]byte, 50)); n != 0 || secret.CodeOf(err) != secret.CodeUnavailable {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// afterwards is a source that gives something only after something else has happened.
type afterwards struct {
	io.Reader
	happens func()
}

func (a afterwards) Read(p []byte) (int, error) {
	a.happens()
	return a.Reader.Read(p)
}
