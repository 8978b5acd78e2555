package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// run runs a shipper while do runs.
func run(t testing.TB, sh *snapshot.Shipper, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { sh.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	do()
}

// Whatever the store does, shippers that follow one another bring the whole log of each of two clusters into one bucket, and
// what is read of one is nothing of the other.
func TestShippingUnderFaults(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	s.Bucket(t, "archive")
	chance := func(f s3server.Fault, method string) s3server.Rule {
		return s3server.Rule{Fault: f, Method: method, Chance: 0.06}
	}
	rules := []s3server.Rule{chance(s3server.StaleList, "LIST"), chance(s3server.SlowDown, ""), chance(s3server.Internal, ""), chance(s3server.ResetBefore, ""), chance(s3server.ResetAfter, ""),
		chance(s3server.FailedAfter, ""), chance(s3server.TakenAfter, "PUT"), chance(s3server.Conflict, "PUT"), chance(s3server.HangAfter, "PUT"), chance(s3server.Hang, ""), chance(s3server.Torn, "GET"), chance(s3server.HangInBody, "GET")}
	for n, cluster := range [][16]byte{{1}, {2}} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			p := s.Proxy(t, uint64(n), rules...)
			b, err := s3.OpenQuick(t.Context(), parse(t, p.URL("archive")), 300*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			a := snapshot.New(b, "p", t.TempDir())
			log := &source{}
			for range 4 {
				sh := shipper(a, log, cluster)
				run(t, sh, func() {
					for range 3 {
						log.grow(20)
						eventually(t, "everything is shipped", func() bool { return sh.Status().Shipped == log.at() })
					}
				})
			}
			if hit, _ := p.Hits(); hit == 0 {
				t.Error("no request met a fault")
			}
			p.Do()
			if got, last := replayed(t, a, cluster); last != log.at() || !bytes.Equal(got, state(last)) {
				t.Errorf("%d bytes to %d, want %d", len(got), last, log.at())
			}
			list, err := a.List(t.Context(), cluster)
			if err != nil || slices.ContainsFunc(list, func(i snapshot.Item) bool { return i.Cluster != cluster }) {
				t.Errorf("another cluster's objects are in the list: %v", err)
			}
		})
	}
}

// What the store gives otherwise than it got it is found by the archive, which names the object.
func TestLyingStore(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	a := snapshot.New(open(t, s.Bucket(t, "archive")), "", t.TempDir())
	log := &source{}
	log.grow(50)
	sh := shipper(a, log, cluster)
	run(t, sh, func() { eventually(t, "it is shipped", func() bool { return sh.Status().Shipped == 50 }) })
	list, err := a.List(t.Context(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	for seed, fault := range []s3server.Fault{s3server.Flipped, s3server.Flipped, s3server.Flipped, s3server.Short} {
		p := s.Proxy(t, uint64(seed), s3server.Rule{Fault: fault, Method: "GET"})
		lying := snapshot.New(quick(t, p.URL("archive")), "", t.TempDir())
		for _, i := range list {
			var err error
			switch i.Kind {
			case snapshot.Snapshot:
				err = lying.ReadSnapshot(t.Context(), i, box{}, func(_ snapshot.Header, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
			case snapshot.Segment:
				_, err = lying.ReadSegment(t.Context(), i, box{}, func(snapshot.LogEntry) error { return nil })
			case snapshot.Keyring:
				_, _, err = lying.ReadKeyring(t.Context(), i)
			}
			if !errors.Is(err, snapshot.ErrDamaged) && !errors.Is(err, snapshot.ErrFormat) && !errors.Is(err, snapshot.ErrForeign) || !bytes.Contains([]byte(err.Error()), []byte(i.Name)) {
				t.Errorf("%s of %s: %v", fault, i.Name, err)
			}
		}
	}
}
