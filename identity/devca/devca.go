// Package devca is a SPIFFE authority for development and tests: a Workload API that hands X509-SVIDs to
// whoever opens one of its sockets.
//
// It attests nobody. Reaching a socket is the whole proof of identity, so the sockets are 0600 in a 0700
// directory, and everything that runs as the same user is every identity. It must never serve a system that
// holds real secrets; Warning says so, in the log at start and wherever a program prints it.
//
// It keeps its own certificate authority, in memory unless Options.CAFile is set, issues short-lived SVIDs and
// replaces each at half its life on the open streams, so that clients see rotation as SPIRE does it. The rest of
// the Workload API (JWT and WIT SVIDs) answers Unimplemented.
package devca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Warning is what programs that start this authority print.
const Warning = "WARNING: development SPIFFE authority: it attests nobody. Whoever can open its sockets is whoever " +
	"they claim to be. For development only; use SPIRE for anything that holds real secrets."

// DefaultTTL is the life of an SVID unless Options.TTL says otherwise.
const DefaultTTL = time.Hour

// Options configures an authority.
type Options struct {
	// Dir holds the sockets; it is created with mode 0700 and must be private to this user. Keep it short: the
	// whole path of a socket has to fit 103 bytes.
	Dir string
	// TrustDomain is the trust domain of every identity, for example "spike.ist".
	TrustDomain string
	// TTL is the life of an SVID (default DefaultTTL); it is replaced at half of it.
	TTL time.Duration
	// CAFile, if set, keeps the authority's key across restarts, in a file of mode 0600. By default the key
	// lives as long as this process and every identity ends with it.
	CAFile string
	// Logger hears the warning and what is served; nil means slog.Default, since the warning must not be lost.
	Logger *slog.Logger
}

// Authority is a running development authority. All methods may be called from any goroutine.
type Authority struct {
	dir    string
	domain spiffeid.TrustDomain
	ttl    time.Duration
	log    *slog.Logger
	caFile string

	mu      sync.Mutex // guards what follows
	closed  bool
	paused  bool                // the sockets are gone, until Resume
	workers map[string]*worker  // by SPIFFE path
	ca      *ca                 // signs
	retired []*x509.Certificate // of authorities that sign no more and are still trusted
}

// Serve starts an authority. It lives until ctx ends or Close is called; no identity exists before Add.
func Serve(ctx context.Context, o Options) (*Authority, error) {
	td, err := spiffeid.TrustDomainFromString(o.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("devca: trust domain %q: %w", o.TrustDomain, err)
	}
	if o.TTL < 0 || (o.TTL > 0 && o.TTL < time.Second) {
		return nil, fmt.Errorf("devca: an SVID life of %s is too short: X.509 counts in seconds", o.TTL)
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	dir, err := privateDir(o.Dir)
	if err != nil {
		return nil, err
	}
	authority, err := openCA(o.CAFile, td)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, domain: td, ttl: o.TTL, log: o.Logger, caFile: o.CAFile, ca: authority, workers: make(map[string]*worker)}
	context.AfterFunc(ctx, a.Close)
	a.log.Warn(Warning, "trust_domain", td.Name(), "dir", dir)
	return a, nil
}

// privateDir makes dir and insists that nobody else may enter it.
func privateDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("devca: no directory given for the sockets")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("devca: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("devca: cannot make the socket directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("devca: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("devca: %s is open to other users (mode %04o): make it 0700 or choose another directory", dir, info.Mode().Perm())
	}
	return dir, nil
}

// Add serves the identity spiffe://<trust domain><path> on a socket of its own and returns the socket's
// address, ready for SPIFFE_ENDPOINT_SOCKET. Adding a path again returns the same address.
func (a *Authority) Add(path string) (socketURL string, err error) {
	id, err := spiffeid.FromPath(a.domain, path)
	if err != nil {
		return "", fmt.Errorf("devca: identity path %q: %w", path, err)
	}
	if path == "" {
		return "", errors.New("devca: an identity needs a path, for example /workload/web")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return "", errors.New("devca: the authority is closed")
	}
	if w, ok := a.workers[path]; ok {
		return w.url, nil
	}
	if a.paused {
		return "", errors.New("devca: the authority is paused")
	}
	w, err := startWorker(a, id, a.ca, a.roots())
	if err != nil {
		return "", err
	}
	a.workers[path] = w
	a.log.Info("devca serves an identity without attesting it", "spiffe_id", id.String(), "socket", w.url)
	return w.url, nil
}

// Rotate replaces the SVID of an identity now, on all its streams, rather than at half its life.
func (a *Authority) Rotate(path string) error {
	a.mu.Lock()
	w, ok := a.workers[path]
	a.mu.Unlock()
	if !ok {
		return fmt.Errorf("devca: no identity %q is served here", path)
	}
	return w.renew()
}

// RotateAuthority lets a new authority sign from now on, and replaces every SVID. The one before stays in the
// trust bundle until RetireAuthorities. In Options.CAFile only the new one is kept.
func (a *Authority) RotateAuthority() error {
	next, err := newCA(a.domain)
	if err != nil {
		return err
	}
	if a.caFile != "" {
		if err := next.save(a.caFile); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.retired = append(a.retired, a.ca.cert)
	a.ca = next
	a.mu.Unlock()
	return a.renewAll()
}

// RetireAuthorities takes all authorities but the one that signs out of the trust bundle: no SVID that they
// signed is admitted any more, once the bundle has reached who is asked.
func (a *Authority) RetireAuthorities() error {
	a.mu.Lock()
	a.retired = nil
	a.mu.Unlock()
	return a.renewAll()
}

func (a *Authority) renewAll() error {
	a.mu.Lock()
	workers := slices.Collect(maps.Values(a.workers))
	a.mu.Unlock()
	var errs []error
	for _, w := range workers {
		errs = append(errs, w.renew())
	}
	return errors.Join(errs...)
}

// roots are the authorities that are trusted; the lock is held.
func (a *Authority) roots() []*x509.Certificate {
	return append([]*x509.Certificate{a.ca.cert}, a.retired...)
}

func (a *Authority) signer() (*ca, []*x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ca, a.roots()
}

// Issue makes an SVID outside any socket, valid from now for ttl, which may be negative for one that has
// already ended. It is for tests and for programs that embed the authority.
func (a *Authority) Issue(path string, ttl time.Duration) (*x509svid.SVID, error) {
	id, err := spiffeid.FromPath(a.domain, path)
	if err != nil {
		return nil, fmt.Errorf("devca: identity path %q: %w", path, err)
	}
	ca, _ := a.signer()
	return ca.issue(id, time.Now(), ttl)
}

// Bundle is the authority's trust bundle.
func (a *Authority) Bundle() *x509bundle.Bundle {
	_, roots := a.signer()
	return x509bundle.FromX509Authorities(a.domain, roots)
}

// TrustDomain is the trust domain of every identity served here.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.domain }

// Pause stops serving, as an agent does that crashed: streams end, the sockets are gone, and the SVIDs that were
// handed out run out. No identity can be added until Resume; Issue goes on.
func (a *Authority) Pause() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused = true
	for _, w := range a.workers {
		w.stop()
	}
}

// Resume serves every identity again, each with a new SVID, at the address that it had. After an error it may be
// called again. It does nothing when the authority is not paused.
func (a *Authority) Resume() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.paused || a.closed {
		return nil
	}
	for path, w := range a.workers {
		if !w.stopped() {
			continue // served again by an earlier call
		}
		next, err := startWorker(a, w.id, a.ca, a.roots())
		if err != nil {
			return err
		}
		a.workers[path] = next
	}
	a.paused = false
	return nil
}

// Close ends every stream and removes the sockets. It is idempotent.
func (a *Authority) Close() {
	a.mu.Lock()
	workers := a.workers
	a.workers, a.closed = make(map[string]*worker), true
	a.mu.Unlock()
	for _, w := range workers {
		w.stop()
	}
}
