package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func anyone(spiffeid.ID) error { return nil }

// authority starts a development authority whose directory is short enough for a socket and private.
func authority(t *testing.T, domain string, ttl time.Duration) *devca.Authority {
	t.Helper()
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := devca.Serve(t.Context(), devca.Options{Dir: dir, TrustDomain: domain, TTL: ttl, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func open(t *testing.T, a *devca.Authority, path string) *identity.Source {
	t.Helper()
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

// handshake runs one TLS handshake over loopback, sends a byte each way, and returns both ends' outcome. The
// client has to read: under TLS 1.3 it learns of its refusal only then.
func handshake(t *testing.T, server, client *tls.Config) (srv, cli tls.ConnectionState, srvErr, cliErr error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type outcome struct {
		cs  tls.ConnectionState
		err error
	}
	served := make(chan outcome, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- outcome{err: err}
			return
		}
		defer c.Close()
		conn := c.(*tls.Conn)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		err = conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		served <- outcome{conn.ConnectionState(), err}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, client)
	if cliErr = c.Handshake(); cliErr == nil {
		_, cliErr = io.ReadFull(c, make([]byte, 1))
	}
	cli = c.ConnectionState()
	raw.Close()
	o := <-served
	return o.cs, cli, o.err, cliErr
}

func TestMutualIdentity(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist", time.Hour)
	nexus, app := open(t, a, "/spike/nexus/nexus-1"), open(t, a, "/workload/web")
	if got := nexus.ID().String(); got != "spiffe://spike.ist/spike/nexus/nexus-1" {
		t.Fatalf("ID = %s", got)
	}
	if left := time.Until(nexus.Expiry()); left < 50*time.Minute || left > time.Hour {
		t.Fatalf("expiry in %s", left)
	}
	srv, cli, srvErr, cliErr := handshake(t, nexus.Server(anyone, "h2", "http/1.1"), app.Client(anyone, "http/1.1"))
	if srvErr != nil || cliErr != nil {
		t.Fatal(srvErr, cliErr)
	}
	if id, err := identity.PeerID(srv); err != nil || id.Path() != "/workload/web" {
		t.Fatalf("server sees %v, %v", id, err)
	}
	if id, err := identity.PeerID(cli); err != nil || id.Path() != "/spike/nexus/nexus-1" {
		t.Fatalf("client sees %v, %v", id, err)
	}
	if srv.NegotiatedProtocol != "http/1.1" {
		t.Fatalf("ALPN %q", srv.NegotiatedProtocol)
	}
	if _, err := identity.PeerIDAt(srv, time.Now().Add(2*time.Hour)); !errors.Is(err, identity.ErrExpired) {
		t.Fatalf("after the SVID ended: %v", err)
	}
	if _, err := identity.PeerIDAt(srv, time.Now().Add(-2*time.Hour)); !errors.Is(err, identity.ErrExpired) {
		t.Fatalf("before the SVID began: %v", err)
	}
	if _, err := identity.PeerID(tls.ConnectionState{}); !errors.Is(err, identity.ErrNoPeer) {
		t.Fatalf("no connection: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a, b := authority(t, "spike.ist", time.Hour), authority(t, "other.ist", time.Hour)
	twin := authority(t, "spike.ist", time.Hour) // the same name, another key
	server := open(t, a, "/spike/nexus/nexus-1")
	deny := func(id spiffeid.ID) error { return errors.New("not you") }

	offline := func(a *devca.Authority, path string, ttl time.Duration) *identity.Source {
		svid, err := a.Issue(path, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return identity.New(svid, x509bundle.NewSet(a.Bundle()))
	}
	noCert := server.Client(anyone)
	noCert.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	old := offline(a, "/workload/web", time.Hour).Client(anyone)
	old.MaxVersion = tls.VersionTLS11
	tls12 := offline(a, "/workload/web", time.Hour).Client(anyone)
	tls12.MaxVersion = tls.VersionTLS12

	cases := []struct {
		name           string
		server, client *tls.Config
	}{
		{"no certificate", server.Server(anyone), noCert},
		{"other trust domain", server.Server(anyone), open(t, b, "/workload/web").Client(anyone)},
		{"same domain name, other authority", server.Server(anyone), offline(twin, "/workload/web", time.Hour).Client(anyone)},
		{"expired client", server.Server(anyone), offline(a, "/workload/web", -time.Minute).Client(anyone)},
		{"expired server", offline(a, "/spike/nexus/nexus-1", -time.Minute).Server(anyone), offline(a, "/workload/web", time.Hour).Client(anyone)},
		{"server says no", server.Server(deny), offline(a, "/workload/web", time.Hour).Client(anyone)},
		{"server names nobody", server.Server(nil), offline(a, "/workload/web", time.Hour).Client(anyone)},
		{"client says no", server.Server(anyone), offline(a, "/workload/web", time.Hour).Client(deny)},
		{"client names nobody", server.Server(anyone), offline(a, "/workload/web", time.Hour).Client(nil)},
		{"TLS 1.1", server.Server(anyone), old},
		{"TLS 1.2 on a peer link", identity.TLS13(server.Server(anyone)), tls12},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, srvErr, cliErr := handshake(t, c.server, c.client)
			if srvErr == nil || cliErr == nil {
				t.Fatalf("server: %v, client: %v; both must fail", srvErr, cliErr)
			}
		})
	}
	t.Run("TLS 1.2 elsewhere", func(t *testing.T) {
		if _, _, srvErr, cliErr := handshake(t, server.Server(anyone), tls12); srvErr != nil || cliErr != nil {
			t.Fatal(srvErr, cliErr)
		}
	})
}

func TestRotationReachesRunningConfigurations(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist", time.Hour)
	nexus, app := open(t, a, "/spike/nexus/nexus-1"), open(t, a, "/workload/web")
	server, client := nexus.Server(anyone), app.Client(anyone)
	_, before, _, err := handshake(t, server, client)
	if err != nil {
		t.Fatal(err)
	}
	for len(nexus.Updated()) > 0 { // the first SVID counts as an update
		<-nexus.Updated()
	}
	if err := a.Rotate("/spike/nexus/nexus-1"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-nexus.Updated():
	case <-time.After(10 * time.Second):
		t.Fatal("no update after a rotation")
	}
	_, after, srvErr, cliErr := handshake(t, server, client)
	if srvErr != nil || cliErr != nil {
		t.Fatal(srvErr, cliErr)
	}
	if before.PeerCertificates[0].Equal(after.PeerCertificates[0]) {
		t.Fatal("the configuration still presents the old SVID")
	}
	if after.DidResume {
		t.Fatal("a session was resumed")
	}
}

func TestRotationByAge(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist", 2*time.Second)
	s := open(t, a, "/workload/web")
	first := s.Expiry()
	deadline := time.After(20 * time.Second)
	for !s.Expiry().After(first) {
		select {
		case <-s.Updated():
		case <-deadline:
			t.Fatal("an SVID of two seconds was not replaced")
		}
	}
}

func TestSessionsAreNeverResumed(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist", time.Hour)
	server, client := open(t, a, "/spike/nexus/n").Server(anyone), open(t, a, "/workload/web").Client(anyone)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8) // even a careless client cannot
	client.SessionTicketsDisabled = false
	for range 2 {
		srv, _, srvErr, cliErr := handshake(t, server, client)
		if srvErr != nil || cliErr != nil {
			t.Fatal(srvErr, cliErr)
		}
		if srv.DidResume {
			t.Fatal("resumed")
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none.sock")
	begin := time.Now()
	_, err := identity.Open(t.Context(), identity.Options{Socket: missing, Timeout: 300 * time.Millisecond})
	if !errors.Is(err, identity.ErrUnavailable) {
		t.Fatalf("err = %v", err)
	}
	for _, want := range []string{missing, "no such socket", identity.SocketEnv} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %q", err, want)
		}
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the bounded wait took %s", took)
	}
	if _, err := identity.Open(t.Context(), identity.Options{Socket: "http://x"}); err == nil || !strings.Contains(err.Error(), "unix:///") {
		t.Errorf("bad scheme: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := identity.Open(ctx, identity.Options{Socket: missing}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestClosedSourceRefuses(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist", time.Hour)
	server, app := open(t, a, "/spike/nexus/n"), open(t, a, "/workload/web")
	cfg := server.Server(anyone)
	server.Close()
	if _, _, srvErr, _ := handshake(t, cfg, app.Client(anyone)); srvErr == nil {
		t.Fatal("a closed source still makes handshakes")
	}
	if !server.ID().IsZero() || !server.Expiry().IsZero() {
		t.Fatal("a closed source still has an identity")
	}
}
