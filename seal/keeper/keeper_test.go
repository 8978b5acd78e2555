package keeper_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
)

var (
	quiet = slog.New(slog.NewTextHandler(io.Discard, nil))
	td    = spiffeid.RequireTrustDomainFromString("spike.ist")
	trust = keeper.Trust{Nexus: []spiffeid.TrustDomain{td}, Bootstrap: []spiffeid.TrustDomain{td}}
)

func authority(t testing.TB, domain string) *devca.Authority {
	t.Helper()
	dir, err := os.MkdirTemp("", "kp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := devca.Serve(context.Background(), devca.Options{Dir: dir, TrustDomain: domain, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// issued is an identity without a socket: an SVID of the authority that lives for ttl.
func issued(t testing.TB, a *devca.Authority, path string, ttl time.Duration) *identity.Source {
	t.Helper()
	svid, err := a.Issue(path, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return identity.New(svid, x509bundle.NewSet(a.Bundle()))
}

type running struct {
	url  string
	stop func()
}

// serve starts a Keeper called name on a port of the system's choice.
func serve(t testing.TB, a *devca.Authority, name string, o keeper.ServerOptions) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, issued(t, a, "/spike/keeper/"+name, time.Hour), o)
}

func serveOn(t testing.TB, l net.Listener, source *identity.Source, o keeper.ServerOptions) *running {
	t.Helper()
	o.Logger = quiet
	if o.Trust.Nexus == nil {
		o.Trust = trust
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- keeper.NewServer(o).Serve(ctx, l, source) }()
	stopped := false
	r := &running{url: "https://" + l.Addr().String()}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

func client(t testing.TB, r *running, name string, source *identity.Source) *keeper.Client {
	t.Helper()
	c, err := keeper.NewClient(keeper.ClientOptions{Name: name, URL: r.url, TrustDomains: trust.Nexus, Source: source})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// raw posts as SPIKE's programs do.
func raw(t testing.TB, r *running, source *identity.Source, path, body string) (int, string, http.Header, error) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: source.Client(func(spiffeid.ID) error { return nil })}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Post(r.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header, err
}

func slot(cluster byte, incarnation uint64, set byte, index int) seal.Slot {
	return seal.Slot{Cluster: seal.ClusterRef{ID: [16]byte{cluster}, Incarnation: incarnation}, Set: [16]byte{set}, Index: index}
}

func share(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func TestPlaceFetchSettle(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	r := serve(t, a, "keeper-1", keeper.ServerOptions{})
	c := client(t, r, "keeper-1", issued(t, a, "/spike/nexus/nexus-1", time.Hour))
	other := client(t, r, "keeper-1", issued(t, a, "/spike/nexus/nexus-2", time.Hour)) // one identity alone would fetch too often
	ctx := t.Context()
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	holds := func(what string, s seal.Slot, want byte) {
		t.Helper()
		got, err := other.Fetch(ctx, s)
		if err != nil || !bytes.Equal(got, share(want)) {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
	fetch := func(s seal.Slot) error { _, err := c.Fetch(ctx, s); return err }

	is("empty", fetch(slot(1, 1, 1, 1)), seal.ErrNoShare)
	is("settle nothing", c.Settle(ctx, slot(1, 1, 1, 0).Cluster, [16]byte{1}, 0), seal.ErrNoShare)
	is("place", c.Place(ctx, slot(1, 1, 1, 1), share(1)), nil)
	holds("pending share", slot(1, 1, 1, 1), 1)
	is("other index", fetch(slot(1, 1, 1, 2)), seal.ErrOtherSet)
	is("other set", fetch(slot(1, 1, 9, 1)), seal.ErrOtherSet)
	is("foreign fetch", fetch(slot(2, 1, 1, 1)), seal.ErrForeignSet)
	is("foreign place", c.Place(ctx, slot(2, 1, 1, 1), share(9)), seal.ErrForeignSet)
	is("settle", c.Settle(ctx, slot(1, 1, 1, 1).Cluster, [16]byte{1}, 0), nil)
	is("settle again", c.Settle(ctx, slot(1, 1, 1, 1).Cluster, [16]byte{1}, 0), nil)
	is("replace", c.Place(ctx, slot(1, 1, 1, 1), share(2)), nil)
	holds("replaced share", slot(1, 1, 1, 1), 2)

	is("settle by a newer state", c.Settle(ctx, slot(1, 1, 1, 1).Cluster, [16]byte{1}, 20), nil)
	is("place the next set", c.Place(ctx, slot(1, 1, 2, 1), share(3)), nil)
	holds("current beside pending", slot(1, 1, 1, 1), 2)
	holds("pending beside current", slot(1, 1, 2, 1), 3)
	is("settle by an older state", c.Settle(ctx, slot(1, 1, 2, 1).Cluster, [16]byte{2}, 19), seal.ErrStale)
	holds("current as it was", slot(1, 1, 1, 1), 2)
	is("settle the next set", c.Settle(ctx, slot(1, 1, 2, 1).Cluster, [16]byte{2}, 21), nil)
	is("the old set is gone", fetch(slot(1, 1, 1, 1)), seal.ErrStale)
	is("the old set stays gone", c.Place(ctx, slot(1, 1, 1, 1), share(2)), seal.ErrStale)

	is("higher incarnation", c.Place(ctx, slot(1, 2, 3, 1), share(4)), nil)
	holds("lower one until it is settled", slot(1, 1, 2, 1), 3)
	is("settle the higher", c.Settle(ctx, slot(1, 2, 3, 1).Cluster, [16]byte{3}, 2), nil)
	is("lower fetch", fetch(slot(1, 1, 2, 1)), seal.ErrStale)
	is("lower place", c.Place(ctx, slot(1, 1, 7, 1), share(9)), seal.ErrStale)
	slots, err := c.Holds(ctx)
	if err != nil || len(slots) != 1 || slots[0] != slot(1, 2, 3, 1) {
		t.Errorf("holds %v, %v", slots, err)
	}
}

// However many initialisations race, what was placed last but a few stays, and the current share always does.
func TestPendingSetsAreBounded(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	c := client(t, serve(t, a, "k", keeper.ServerOptions{}), "k", issued(t, a, "/spike/nexus", time.Hour))
	if err := errors.Join(c.Place(t.Context(), slot(1, 1, 200, 1), share(1)), c.Settle(t.Context(), slot(1, 1, 0, 0).Cluster, [16]byte{200}, 0)); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := c.Place(t.Context(), slot(1, 1, byte(i+1), 1), share(2)); err != nil {
			t.Fatal(err)
		}
	}
	slots, err := c.Holds(t.Context())
	if err != nil || len(slots) != 9 {
		t.Fatalf("%d slots, %v", len(slots), err)
	}
	for _, s := range []seal.Slot{slot(1, 1, 200, 1), slot(1, 1, 43, 1), slot(1, 1, 50, 1)} {
		if _, err := c.Fetch(t.Context(), s); err != nil {
			t.Errorf("%v: %v", s.Set[0], err)
		}
	}
}

func TestPinnedToAConfiguredCluster(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	c := client(t, serve(t, a, "k", keeper.ServerOptions{ClusterID: [16]byte{5}}), "k", issued(t, a, "/spike/nexus/n", time.Hour))
	if err := c.Place(t.Context(), slot(1, 1, 1, 1), share(1)); !errors.Is(err, seal.ErrForeignSet) {
		t.Errorf("foreign: %v", err)
	}
	if err := c.Place(t.Context(), slot(5, 1, 1, 1), share(1)); err != nil {
		t.Errorf("own: %v", err)
	}
}

func TestSpikeWire(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	r := serve(t, a, "k", keeper.ServerOptions{})
	nexus, boot := issued(t, a, "/spike/nexus", time.Hour), issued(t, a, "/spike/bootstrap/job", time.Hour)
	numbers := "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,255"
	zeros := strings.Repeat("0,", 31) + "0"
	steps := []struct {
		name   string
		who    *identity.Source
		path   string
		body   string
		status int
		want   string
	}{
		{"no share yet", nexus, "/v1/store/shard", `{}`, 400, `{"shard":null,"Err":"api_bad_request"}`},
		{"bootstrap may not read", boot, "/v1/store/shard", `{}`, 401, `{"shard":null,"Err":"access_unauthorized"}`},
		{"no shard", boot, "/v1/store/contribute", `{}`, 400, `{"err":"api_bad_request"}`},
		{"null shard", boot, "/v1/store/contribute", `{"shard":null}`, 400, `{"err":"api_bad_request"}`},
		{"zero shard", boot, "/v1/store/contribute", `{"shard":[` + zeros + `]}`, 400, `{"err":"api_bad_request"}`},
		{"31 numbers", boot, "/v1/store/contribute", `{"shard":[` + strings.TrimPrefix(numbers, "1,") + `]}`, 400, `{"err":"api_bad_request"}`},
		{"256 in it", boot, "/v1/store/contribute", `{"shard":[` + strings.TrimSuffix(numbers, "255") + `256]}`, 400, `{"err":"api_bad_request"}`},
		{"twice", boot, "/v1/store/contribute", `{"shard":[` + numbers + `],"Shard":[` + numbers + `]}`, 400, `{"err":"api_bad_request"}`},
		{"bad JSON", boot, "/v1/store/contribute", `{"shard":`, 400, `{"err":"api_bad_request"}`},
		{"too long", boot, "/v1/store/contribute", `{"pad":"` + strings.Repeat("x", 5000) + `"}`, 400, `{"err":"api_bad_request"}`},
		{"contribution, with a field it does not know", boot, "/v1/store/contribute", `{"x":{"y":[1]},"shard":[` + numbers + `]}`, 200, `{}`},
		{"and back", nexus, "/v1/store/shard", `{}`, 200, `{"shard":[` + numbers + `],"Err":""}`},
		{"unknown path", nexus, "/v1/store/keep", `{}`, 400, `{"err":"api_bad_request"}`},
		{"unknown action", nexus, "/v1/store/shard?action=get", `{}`, 400, `{"err":"api_bad_request"}`},
		{"bootstrap on our routes", boot, "/v1/keeper/holds", `{}`, 403, `{"err":"access_unauthorized"}`},
		{"the contribution is no share of ours", nexus, "/v1/keeper/holds", `{}`, 200, `{"slots":[]}`},
		{"our routes are strict", nexus, "/v1/keeper/holds", `{"x":1}`, 400, `{"err":"api_bad_request"}`},
	}
	for _, s := range steps { // in order: later ones see what earlier ones did
		status, body, head, err := raw(t, r, s.who, s.path, s.body)
		if err != nil || status != s.status || body != s.want {
			t.Errorf("%s: %d %s, %v", s.name, status, body, err)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "Pragma": "no-cache", "Expires": "0",
			"Cache-Control": "no-store, no-cache, must-revalidate, private",
		} {
			if got := head.Get(name); got != want {
				t.Errorf("%s: %s: %q", s.name, name, got)
			}
		}
	}
	c := client(t, r, "k", nexus)
	if _, err := c.Fetch(t.Context(), slot(1, 1, 1, 1)); !errors.Is(err, seal.ErrNoShare) {
		t.Errorf("a bare contribution was served as a share: %v", err)
	}
}

func TestWhoMayTalk(t *testing.T) {
	t.Parallel()
	a, other, twin := authority(t, "spike.ist"), authority(t, "other.ist"), authority(t, "spike.ist")
	r := serve(t, a, "k", keeper.ServerOptions{})
	for _, path := range []string{"/spike/nexus", "/spike/nexus/nexus-1", "/spike/bootstrap", "/spike/bootstrap/a/b"} {
		if _, _, _, err := raw(t, r, issued(t, a, path, time.Hour), "/v1/store/shard", "{}"); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, source := range map[string]*identity.Source{
		"longer segment":       issued(t, a, "/spike/nexus-evil", time.Hour),
		"deeper":               issued(t, a, "/spike/nexus/a/b", time.Hour),
		"prefixed":             issued(t, a, "/x/spike/nexus", time.Hour),
		"another case":         issued(t, a, "/spike/Nexus", time.Hour),
		"keeper":               issued(t, a, "/spike/keeper/k", time.Hour),
		"superuser":            issued(t, a, "/spike/pilot/role/superuser", time.Hour),
		"workload":             issued(t, a, "/workload/web", time.Hour),
		"bootstrapper":         issued(t, a, "/spike/bootstrapper", time.Hour),
		"other trust domain":   issued(t, other, "/spike/nexus/n", time.Hour),
		"same name, other key": issued(t, twin, "/spike/nexus/n", time.Hour),
		"expired":              issued(t, a, "/spike/nexus/n", -time.Second),
	} {
		if status, body, _, err := raw(t, r, source, "/v1/store/shard", "{}"); err == nil {
			t.Errorf("%s: admitted: %d %s", name, status, body)
		}
	}
	bare := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}
	if resp, err := bare.Post(r.url+"/v1/store/shard", "application/json", strings.NewReader("{}")); err == nil {
		t.Errorf("without a certificate: %d", resp.StatusCode)
	}
}

func TestClientInsistsOnItsKeeper(t *testing.T) {
	t.Parallel()
	a, twin := authority(t, "spike.ist"), authority(t, "spike.ist")
	nexus := issued(t, a, "/spike/nexus/n", time.Hour)
	for name, r := range map[string]*running{
		"another Keeper":       serve(t, a, "keeper-2", keeper.ServerOptions{}),
		"another authority":    serve(t, twin, "keeper-1", keeper.ServerOptions{}),
		"not a Keeper":         serveAs(t, issued(t, a, "/spike/nexus/keeper-1", time.Hour)),
		"deeper than a Keeper": serveAs(t, issued(t, a, "/spike/keeper/keeper-1/x", time.Hour)),
		"expired":              serveAs(t, issued(t, a, "/spike/keeper/keeper-1", -time.Second)),
	} {
		c := client(t, r, "keeper-1", nexus)
		if err := c.Place(t.Context(), slot(1, 1, 1, 1), share(1)); err == nil {
			t.Errorf("%s: got a share", name)
		}
	}
	for name, o := range map[string]keeper.ClientOptions{
		"http":      {Name: "k", URL: "http://127.0.0.1:1", Source: nexus, TrustDomains: trust.Nexus},
		"path":      {Name: "k", URL: "https://127.0.0.1:1/x", Source: nexus, TrustDomains: trust.Nexus},
		"bad name":  {Name: "k/../x", URL: "https://127.0.0.1:1", Source: nexus, TrustDomains: trust.Nexus},
		"no name":   {URL: "https://127.0.0.1:1", Source: nexus, TrustDomains: trust.Nexus},
		"no source": {Name: "k", URL: "https://127.0.0.1:1", TrustDomains: trust.Nexus},
		"no domain": {Name: "k", URL: "https://127.0.0.1:1", Source: nexus},
	} {
		if _, err := keeper.NewClient(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func serveAs(t testing.TB, source *identity.Source) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, source, keeper.ServerOptions{})
}

// A connection that outlives the SVID it was made with gets no further answer.
func TestOpenConnectionEndsWithItsSVID(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	r := serve(t, a, "k", keeper.ServerOptions{})
	short := issued(t, a, "/spike/nexus/n", 2*time.Second)
	tr := &http.Transport{TLSClientConfig: short.Client(func(spiffeid.ID) error { return nil }), MaxConnsPerHost: 1}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	deadline := time.Now().Add(20 * time.Second)
	for served := 0; ; served++ {
		resp, err := c.Post(r.url+"/v1/keeper/holds", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatalf("after %d answers the connection was not the same any more: %v", served, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized && served > 0 {
			return
		}
		if resp.StatusCode != http.StatusOK || time.Now().After(deadline) {
			t.Fatalf("answer %d: %d", served, resp.StatusCode)
		}
		<-time.After(20 * time.Millisecond) // the passing of time is what is tested
	}
}

func TestRotatedSVIDsKeepTalking(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	open := func(path string) *identity.Source {
		socket, err := a.Add(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := identity.Open(t.Context(), identity.Options{Socket: socket, Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	nexus, keep := open("/spike/nexus/n"), open("/spike/keeper/k")
	r := serveAs(t, keep)
	c := client(t, r, "k", nexus)
	if err := c.Place(t.Context(), slot(1, 1, 1, 1), share(1)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*identity.Source{nexus, keep} {
		before := s.Expiry()
		for deadline := time.Now().Add(10 * time.Second); s.Expiry().Equal(before); {
			if err := a.Rotate(s.ID().Path()); err != nil || time.Now().After(deadline) {
				t.Fatal("no rotation", err)
			}
			select {
			case <-s.Updated():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	c.Close() // so that the next request makes a handshake
	if got, err := c.Fetch(t.Context(), slot(1, 1, 1, 1)); err != nil || !bytes.Equal(got, share(1)) {
		t.Fatal(got, err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	r := serve(t, a, "k", keeper.ServerOptions{MaxConnections: 1})
	nexus := issued(t, a, "/spike/nexus/n", time.Hour)
	hog, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), nexus.Client(func(spiffeid.ID) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, r, "k", nexus)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Holds(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second connection was served: %v", err)
	}
	hog.Close()
	if _, err := c.Holds(t.Context()); err != nil {
		t.Fatalf("after the first one ended: %v", err)
	}
}

// The whole of it: three Keepers, initialisation, a second peer, and a Keeper that restarts.
func TestClusterOverRealKeepers(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	nexus := issued(t, a, "/spike/nexus/nexus-1", time.Hour)
	names := []string{"keeper-1", "keeper-2", "keeper-3"}
	var servers []*running
	var keepers []seal.Keeper
	for _, name := range names {
		r := serve(t, a, name, keeper.ServerOptions{})
		servers = append(servers, r)
		keepers = append(keepers, client(t, r, name, nexus))
	}
	l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
	first := seal.New(seal.Config{Logger: quiet})
	defer first.Lock()
	if err := first.Initialise(t.Context(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 2}); err != nil {
		t.Fatal(err)
	}
	blob, err := first.Encrypt(seal.Data, seal.AAD{Kind: "x"}, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}

	addr := strings.TrimPrefix(servers[1].url, "https://")
	servers[1].stop() // forgets its share
	second := seal.New(seal.Config{Logger: quiet})
	defer second.Lock()
	reports, err := second.Unseal(t.Context(), l.state, keepers)
	if err != nil {
		t.Fatal(err, reports)
	}
	if got, err := second.Decrypt(seal.Data, seal.AAD{Kind: "x"}, blob); err != nil || string(got) != "hello" {
		t.Fatal(got, err)
	}
	reports, err = second.Inspect(t.Context(), l.state, keepers)
	if err != nil || reports[1].Health != seal.Unreachable || reports[0].Health != seal.Good {
		t.Fatal(reports, err)
	}
	again, err := net.Listen("tcp", addr)
	for deadline := time.Now().Add(30 * time.Second); err != nil; again, err = net.Listen("tcp", addr) {
		if time.Now().After(deadline) { // somebody else's short-lived connection may have it for a moment
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	serveOn(t, again, issued(t, a, "/spike/keeper/keeper-2", time.Hour), keeper.ServerOptions{})
	if reports, _ = second.Inspect(t.Context(), l.state, keepers); reports[1].Health != seal.Empty {
		t.Fatal(reports)
	}
	if reports, err = second.Refill(t.Context(), l.state, keepers); err != nil || !reports[1].Refilled {
		t.Fatal(reports, err)
	}
	third := seal.New(seal.Config{Logger: quiet})
	defer third.Lock()
	if _, err := third.Unseal(t.Context(), l.state, keepers[1:]); err != nil {
		t.Fatal(err)
	}
}

// Two initialisations that race at real Keepers: one wins, and its shares are still there.
func TestTwoInitialisationsAtOnce(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	for range 5 {
		var keepers []seal.Keeper
		for _, name := range []string{"k1", "k2", "k3"} {
			keepers = append(keepers, client(t, serve(t, a, name, keeper.ServerOptions{}), name, issued(t, a, "/spike/nexus/n", time.Hour)))
		}
		l := &ledger{state: seal.State{Cluster: seal.ClusterRef{ID: [16]byte{1}, Incarnation: 1}}}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				s := seal.New(seal.Config{Logger: quiet})
				errs[i] = s.Initialise(context.Background(), l, seal.Split{Keepers: keepers, Shares: 3, Threshold: 3})
				s.Lock()
			})
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatal(errs)
		}
		s := seal.New(seal.Config{Logger: quiet})
		st, _ := l.State(t.Context())
		if reports, err := s.Unseal(t.Context(), st, keepers); err != nil {
			t.Fatal(err, reports)
		}
		s.Lock()
	}
}

// ledger is as much of the replicated state as these tests need.
type ledger struct {
	seal.Ledger // for what these tests do not use

	mu    sync.Mutex
	state seal.State
}

func (l *ledger) State(context.Context) (seal.State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, nil
}

func (l *ledger) Begin(_ context.Context, set seal.ShareSet, supersedes [16]byte, _ uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Committed != nil && l.state.Committed.ID != supersedes || l.state.Committed == nil && supersedes != [16]byte{} {
		return seal.ErrSuperseded
	}
	l.state.Pending = &set
	l.state.Index++
	return nil
}

func (l *ledger) Commit(_ context.Context, c seal.Commitment, _ uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Pending == nil || l.state.Pending.ID != c.Set {
		return seal.ErrSuperseded
	}
	l.state.Committed, l.state.Pending, l.state.Keyring, l.state.Epochs = l.state.Pending, nil, c.Keyring, c.Epochs
	l.state.Cluster.Incarnation = max(l.state.Cluster.Incarnation, c.Incarnation)
	l.state.Index++
	return nil
}
