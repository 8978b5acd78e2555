package devca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestAddIsIdempotentAndPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "s")
	a, err := devca.Serve(t.Context(), devca.Options{Dir: dir, TrustDomain: "spike.ist", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	one, err := a.Add("/spike/nexus/nexus-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Add("/spike/nexus/nexus-1")
	if err != nil || again != one {
		t.Fatalf("again: %q, %v", again, err)
	}
	other, err := a.Add("/spike/keeper/nexus-1")
	if err != nil || other == one {
		t.Fatalf("two identities share %q, %v", other, err)
	}
	path := strings.TrimPrefix(one, "unix://")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("directory: %v, %v", info.Mode(), err)
	}
	second, err := devca.Serve(t.Context(), devca.Options{Dir: dir, TrustDomain: "spike.ist", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Add("/spike/nexus/nexus-1"); err == nil || !strings.Contains(err.Error(), "another authority") {
		t.Fatalf("a second authority took the socket over: %v", err)
	}
	a.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("the socket outlived the authority: %v", err)
	}
	if _, err := a.Add("/x"); err == nil {
		t.Fatal("a closed authority adds identities")
	}
	if _, err := second.Add("/spike/nexus/nexus-1"); err != nil {
		t.Fatalf("after the first one closed: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	open := shortDir(t)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(shortDir(t), strings.Repeat("d", 90))
	for name, o := range map[string]devca.Options{
		"trust domain":    {Dir: shortDir(t), TrustDomain: "No Such"},
		"no directory":    {TrustDomain: "spike.ist"},
		"open directory":  {Dir: open, TrustDomain: "spike.ist"},
		"life of 1 ms":    {Dir: shortDir(t), TrustDomain: "spike.ist", TTL: time.Millisecond},
		"authority file?": {Dir: shortDir(t), TrustDomain: "spike.ist", CAFile: "/dev/null"},
	} {
		o.Logger = quiet
		if _, err := devca.Serve(t.Context(), o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	a, err := devca.Serve(t.Context(), devca.Options{Dir: long, TrustDomain: "spike.ist", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Add("/spike/nexus/n"); err == nil || !strings.Contains(err.Error(), "shorter directory") {
		t.Errorf("long socket path: %v", err)
	}
	for _, path := range []string{"", "x", "/a/../b", "/a/", "//", "/ü", "/a b"} {
		if _, err := a.Add(path); err == nil {
			t.Errorf("path %q accepted", path)
		}
	}
	if err := a.Rotate("/nobody"); err == nil {
		t.Error("rotated an identity that does not exist")
	}
}

func TestWarnsLoudly(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a, err := devca.Serve(t.Context(), devca.Options{Dir: shortDir(t), TrustDomain: "spike.ist", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "attests nobody") {
		t.Fatalf("log: %s", log.String())
	}
}

func TestAuthorityFileSurvives(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	o := devca.Options{Dir: filepath.Join(dir, "s"), TrustDomain: "spike.ist", CAFile: filepath.Join(dir, "ca.pem"), Logger: quiet}
	first, err := devca.Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := first.Issue("/workload/web", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second, err := devca.Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, second.Bundle()); err != nil {
		t.Fatalf("the authority changed across a restart: %v", err)
	}
	if info, err := os.Stat(o.CAFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	o.TrustDomain = "other.ist"
	if _, err := devca.Serve(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another trust domain") {
		t.Fatalf("other trust domain: %v", err)
	}
}

// A new authority signs at once, and the one before is trusted until it is retired;
// the file has the new one.
func TestRotationOfTheAuthority(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	o := devca.Options{Dir: filepath.Join(dir, "s"), TrustDomain: "spike.ist", CAFile: filepath.Join(dir, "ca.pem"), Logger: quiet}
	a, err := devca.Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	issue := func() []*x509.Certificate {
		svid, err := a.Issue("/workload/web", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return svid.Certificates
	}
	verify := func(certificates []*x509.Certificate, bundle *x509bundle.Bundle) error {
		_, _, err := x509svid.Verify(certificates, bundle)
		return err
	}
	before, bundle := issue(), a.Bundle()
	if err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	after := issue()
	if verify(before, a.Bundle()) != nil || verify(after, a.Bundle()) != nil || verify(after, bundle) == nil {
		t.Error("after the rotation both are trusted, by who has the new bundle")
	}
	if err := a.RetireAuthorities(); err != nil {
		t.Fatal(err)
	}
	if verify(before, a.Bundle()) == nil || verify(after, a.Bundle()) != nil {
		t.Error("once it is retired, the old one is trusted no more")
	}
	a.Close()
	again, err := devca.Serve(t.Context(), o)
	if err != nil || verify(after, again.Bundle()) != nil {
		t.Errorf("the file does not have the new authority: %v", err)
	}
}

func TestWorkloadAPI(t *testing.T) {
	t.Parallel()
	a, err := devca.Serve(t.Context(), devca.Options{Dir: shortDir(t), TrustDomain: "spike.ist", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	socket, err := a.Add("/workload/web")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := workload.NewSpiffeWorkloadAPIClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	bare, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = bare.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("without the security header: %v", err)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	bundles, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := bundles.Recv()
	if err != nil || len(resp.Bundles["spiffe://spike.ist"]) == 0 {
		t.Fatalf("bundles: %v, %v", resp, err)
	}
	if err := a.RotateAuthority(); err != nil { // an open stream hears of it
		t.Fatal(err)
	}
	if next, err := bundles.Recv(); err != nil || len(next.Bundles["spiffe://spike.ist"]) <= len(resp.Bundles["spiffe://spike.ist"]) {
		t.Fatalf("the bundle of two authorities: %v, %v", next, err)
	}
	if _, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.Unimplemented {
		t.Fatalf("JWT: %v", err)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	a, err := devca.Serve(t.Context(), devca.Options{Dir: shortDir(t), TrustDomain: "spike.ist", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	socket, err := a.Add("/workload/web")
	if err != nil {
		t.Fatal(err)
	}
	source, err := identity.Open(t.Context(), identity.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	a.Pause()
	a.Pause()
	if _, err := os.Stat(strings.TrimPrefix(socket, "unix://")); !os.IsNotExist(err) {
		t.Errorf("the socket of a paused authority: %v", err)
	}
	if _, err := a.Add("/workload/db"); err == nil {
		t.Error("a paused authority adds identities")
	}
	for range 2 {
		if err := a.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := a.Add("/workload/web"); err != nil || again != socket {
		t.Errorf("the address is %q and was %q: %v", again, socket, err)
	}
	select { // it has connected again, and got another SVID
	case <-source.Updated():
	case <-t.Context().Done():
	}
	a.Pause()
	a.Close()
	if err := a.Resume(); err != nil {
		t.Errorf("closed: %v", err)
	}
	if _, err := a.Add("/workload/web"); err == nil {
		t.Error("a closed authority adds identities")
	}
}
