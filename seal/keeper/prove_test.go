package keeper_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
)

func TestProve(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	r := serve(t, a, "keeper-1", keeper.ServerOptions{})
	c := client(t, r, "keeper-1", issued(t, a, "/spike/nexus/nexus-1", time.Hour))
	nonce := [32]byte{1, 2, 3}
	if _, err := c.Prove(t.Context(), slot(1, 1, 1, 1), nonce); !errors.Is(err, seal.ErrNoShare) {
		t.Errorf("an empty Keeper: %v", err)
	}
	if err := errors.Join(c.Place(t.Context(), slot(1, 1, 1, 1), share(7)), c.Place(t.Context(), slot(1, 1, 2, 1), share(8))); err != nil {
		t.Fatal(err)
	}
	for set, b := range map[byte]byte{1: 7, 2: 8} { // current or pending
		got, err := c.Prove(t.Context(), slot(1, 1, set, 1), nonce)
		if err != nil || got != seal.Proof(share(b), slot(1, 1, set, 1), "keeper-1", nonce) {
			t.Errorf("set %d: %x, %v", set, got, err)
		}
		if bytes.Contains(got[:], share(b)[:8]) {
			t.Error("the proof holds the share")
		}
	}
	for what, c2 := range map[string]struct {
		slot seal.Slot
		want error
	}{"another index": {slot(1, 1, 1, 2), seal.ErrOtherSet}, "another set": {slot(1, 1, 9, 1), seal.ErrOtherSet}, "another cluster": {slot(2, 1, 1, 1), seal.ErrForeignSet}} {
		if _, err := c.Prove(t.Context(), c2.slot, nonce); !errors.Is(err, c2.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	boot := issued(t, a, "/spike/bootstrap", time.Hour)
	for _, route := range []string{"/v1/keeper/prove", "/v1/keeper/status"} {
		if status, body, _, err := raw(t, r, boot, route, "{}"); err != nil || status != http.StatusForbidden {
			t.Errorf("bootstrap at %s: %d %s, %v", route, status, body, err)
		}
	}
}

// Who asks too often is refused, alone, and remembered with it; a refusal is not taken for a missing share.
func TestThrottledAndRemembered(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	began := time.Now().Add(-time.Second)
	r := serve(t, a, "keeper-1", keeper.ServerOptions{})
	greedy := client(t, r, "keeper-1", issued(t, a, "/spike/nexus/greedy", time.Hour))
	decent := client(t, r, "keeper-1", issued(t, a, "/spike/nexus/decent", time.Hour))
	if err := decent.Place(t.Context(), slot(1, 1, 1, 1), share(1)); err != nil {
		t.Fatal(err)
	}
	var refused uint64
	for range 40 {
		switch _, err := greedy.Fetch(t.Context(), slot(1, 1, 1, 1)); {
		case errors.Is(err, seal.ErrThrottled):
			refused++
		case err != nil:
			t.Fatal(err)
		}
	}
	if refused < 20 { // a slow machine may have let some more pass
		t.Errorf("%d of 40 were refused", refused)
	}
	if _, err := decent.Fetch(t.Context(), slot(1, 1, 1, 1)); err != nil {
		t.Errorf("another peer: %v", err)
	}
	// That there is no share is told however often it is asked for.
	for range 30 {
		if _, err := decent.Fetch(t.Context(), slot(1, 1, 9, 1)); !errors.Is(err, seal.ErrOtherSet) {
			t.Fatal(err)
		}
	}
	s, err := decent.Status(t.Context())
	if err != nil || s.Version != keeper.Version || s.Started.Before(began) || len(s.Slots) != 1 || s.Slots[0].Slot != slot(1, 1, 1, 1) {
		t.Fatalf("%+v, %v", s, err)
	}
	found := map[string]keeper.Asking{}
	for _, q := range s.Askers {
		found[strings.TrimPrefix(q.Peer, "spiffe://spike.ist/spike/nexus/")+" "+q.Op] = q
	}
	if q := found["greedy fetch"]; q.Count != 40 || q.Refused != refused || q.Last.Before(began) {
		t.Errorf("%+v", q)
	}
	if q := found["decent fetch"]; q.Count != 31 || q.Refused != 0 {
		t.Errorf("%+v", q)
	}
	if len(found) != 4 || found["decent place"].Count != 1 || found["decent status"].Count != 1 {
		t.Errorf("%+v", s.Askers)
	}
}

// before is a Keeper of a release that knows nothing of proofs and status, and of settling as of an index: it answers 400 to
// routes and fields that it does not know.
func before(t *testing.T, a *devca.Authority, name string) *running {
	t.Helper()
	s := keeper.NewServer(keeper.ServerOptions{Trust: trust, Logger: quiet})
	source := issued(t, a, "/spike/keeper/"+name, time.Hour)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{TLSConfig: source.Server(func(spiffeid.ID) error { return nil }, "http/1.1"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if r.URL.Path == "/v1/keeper/prove" || r.URL.Path == "/v1/keeper/status" || bytes.Contains(body, []byte("as_of")) {
			w.WriteHeader(http.StatusBadRequest)
			w.Write([]byte(`{"err":"api_bad_request"}`))
			return
		}
		s.ServeHTTP(w, r)
	})}
	go h.ServeTLS(l, "", "")
	t.Cleanup(func() { h.Close() })
	return &running{url: "https://" + l.Addr().String()}
}

// Keepers of both releases side by side are all looked after.
func TestMixedReleases(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	nexus := issued(t, a, "/spike/nexus/n", time.Hour)
	keepers := []seal.Keeper{client(t, before(t, a, "k1"), "k1", nexus), client(t, serve(t, a, "k2", keeper.ServerOptions{}), "k2", nexus), client(t, before(t, a, "k3"), "k3", nexus)}
	again := client(t, before(t, a, "k1"), "k1", nexus)
	if err := errors.Join(again.Place(t.Context(), slot(1, 1, 1, 1), share(1)), again.Settle(t.Context(), slot(1, 1, 1, 1).Cluster, [16]byte{1}, 9)); err != nil {
		t.Error("settling a Keeper of the release before: ", err)
	}
	if _, err := keepers[0].(*keeper.Client).Status(t.Context()); !errors.Is(err, seal.ErrOldKeeper) {
		t.Errorf("status: %v", err)
	}
	l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
	s := seal.New(seal.Config{Logger: quiet})
	defer s.Lock()
	if err := s.Initialise(t.Context(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 2}); err != nil {
		t.Fatal(err)
	}
	for _, look := range []func(context.Context, seal.State, []seal.Keeper) ([]seal.KeeperReport, error){s.Inspect, s.Refill} {
		reports, err := look(t.Context(), l.state, keepers)
		if err != nil || seal.Count(reports) != 3 || !reports[0].Fetched || reports[1].Fetched {
			t.Fatalf("%+v, %v", reports, err)
		}
	}
}

// A peer that acts on a share set of before cannot make a Keeper drop the share of the set that took its place, not
// even at one that restarted since and so does not know the old set.
func TestOldStateCostsNoShare(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	nexus := issued(t, a, "/spike/nexus/n", time.Hour)
	var keepers []seal.Keeper
	for _, name := range []string{"k1", "k2", "k3"} {
		keepers = append(keepers, client(t, serve(t, a, name, keeper.ServerOptions{}), name, nexus))
	}
	l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
	old := seal.New(seal.Config{Logger: quiet})
	defer old.Lock()
	if err := old.Initialise(t.Context(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 2}); err != nil {
		t.Fatal(err)
	}
	before := l.state
	// Another set takes its place, at Keepers of which the first restarted in between.
	l.state = seal.State{Cluster: before.Cluster, Index: before.Index}
	keepers[0] = client(t, serve(t, a, "k1", keeper.ServerOptions{}), "k1", nexus)
	fresh := seal.New(seal.Config{Logger: quiet})
	defer fresh.Lock()
	if err := fresh.Initialise(t.Context(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 2}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := old.Refill(t.Context(), before, keepers); err != nil {
			t.Fatal(err)
		}
	}
	if reports, err := fresh.Inspect(t.Context(), l.state, keepers); err != nil || seal.Count(reports) != 3 {
		t.Fatalf("%+v, %v", reports, err)
	}
}

// BenchmarkUnseal is a peer that restarts: five Keepers, three shares needed, every connection new. The floor is the
// same five handshakes and an empty request on each, at once.
func BenchmarkUnseal(b *testing.B) {
	a := authority(b, "spike.ist")
	l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
	var servers []*running
	names := []string{"k1", "k2", "k3", "k4", "k5"}
	for _, name := range names {
		servers = append(servers, serve(b, a, name, keeper.ServerOptions{}))
	}
	connect := func(source *identity.Source) (keepers []seal.Keeper) {
		for i, name := range names {
			keepers = append(keepers, client(b, servers[i], name, source))
		}
		return keepers
	}
	s := seal.New(seal.Config{Logger: quiet})
	if err := s.Initialise(context.Background(), l, seal.Split{Keepers: connect(issued(b, a, "/spike/nexus/first", time.Hour)), Shares: 5, Threshold: 3}); err != nil {
		b.Fatal(err)
	}
	s.Lock()
	var sources []*identity.Source // as many as it takes to stay within what Keepers grant one
	for range 64 {
		sources = append(sources, issued(b, a, "/spike/nexus/n"+string(rune('a'+len(sources)%26))+string(rune('a'+len(sources)/26)), time.Hour))
	}
	at := 0
	next := func() *identity.Source { at++; return sources[at%len(sources)] }
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			keepers := connect(next())
			b.StartTimer()
			if _, err := s.Unseal(context.Background(), l.state, keepers); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			s.Lock()
			for _, k := range keepers {
				k.(*keeper.Client).Close()
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/unseal")
	})
	b.Run("floor", func(b *testing.B) {
		for b.Loop() {
			source := next()
			var wg sync.WaitGroup
			for _, r := range servers {
				wg.Go(func() {
					conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), identity.TLS13(source.Client(func(spiffeid.ID) error { return nil }, "http/1.1")))
					if err != nil {
						b.Error(err)
						return
					}
					conn.Close()
				})
			}
			wg.Wait()
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/handshakes")
	})
}
