// Package identity gives a process its SPIFFE identity and TLS configurations made from it.
//
// It assumes a SPIFFE Workload API (a SPIRE agent, or the development authority in identity/devca) on a local
// socket. It guarantees that every handshake, in both directions, presents the SVID that is current at that
// moment and verifies the whole chain of the other side against the trust bundle that is current at that moment;
// that the other side's leaf names exactly one URI; and that no session is ever resumed, because a resumed
// session skips the check of a certificate (golang/go#77217).
//
// Who may connect is the caller's business: every configuration takes an authorize function, and none given
// means nobody.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// SocketEnv names the environment variable that holds the Workload API's address when Options.Socket is empty.
const SocketEnv = workloadapi.SocketEnv

// DefaultSocket is where a SPIRE agent listens when nothing else is configured.
const DefaultSocket = "unix:///tmp/spire-agent/public/api.sock"

// DefaultTimeout bounds the wait for the first SVID.
const DefaultTimeout = 30 * time.Second

// ErrUnavailable is wrapped by the error of Open when no SVID arrived in time.
var ErrUnavailable = errors.New("no SVID from the SPIFFE Workload API")

// Options says where the identity comes from.
type Options struct {
	// Socket is the Workload API's address: unix:///path, tcp://ip:port, or a bare absolute path.
	// Empty means SPIFFE_ENDPOINT_SOCKET, and when that is unset too, DefaultSocket.
	Socket string
	// Timeout bounds the wait for the first SVID; zero means DefaultTimeout.
	Timeout time.Duration
	// Logger hears of a Workload API that went away or refused; nil means silence.
	Logger *slog.Logger
}

// Source is the identity of this process: its SVID and the trust bundles, both kept current in the background.
// All methods may be called from any goroutine.
type Source struct {
	svids   x509svid.Source
	bundles x509bundle.Source
	x509    *workloadapi.X509Source // nil for a Source made by New
}

// New makes a Source from any go-spiffe sources; Open is the ordinary door. Rotation is then the sources' affair.
func New(svids x509svid.Source, bundles x509bundle.Source) *Source {
	return &Source{svids: svids, bundles: bundles}
}

// Open connects to the Workload API and waits, for at most Options.Timeout, until it has handed out an SVID.
// Its error names the socket, the last thing that went wrong there, and what to do about it; it wraps
// ErrUnavailable, or the error of ctx when that ended first.
func Open(ctx context.Context, o Options) (*Source, error) {
	addr, origin := address(o.Socket)
	if err := workloadapi.ValidateAddress(addr); err != nil {
		return nil, fmt.Errorf("identity: %s is %q: %w; write it as unix:///absolute/path", origin, addr, err)
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	watch := &watchLog{out: o.Logger, socket: addr}
	x, err := workloadapi.NewX509Source(wait, workloadapi.WithClientOptions(
		workloadapi.WithAddr(addr), workloadapi.WithLogger(watch)))
	if err == nil {
		return &Source{svids: x, bundles: x, x509: x}, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("identity: gave up waiting for an SVID from %s: %w", addr, ctx.Err())
	}
	reason := watch.last()
	if reason == "" {
		reason = err.Error()
	}
	return nil, fmt.Errorf("identity: %w: nothing usable from %s (%s) within %s: %s; %s",
		ErrUnavailable, addr, origin, timeout, reason, advice(addr, reason))
}

// address completes the configured address and says, for error messages, where it came from.
func address(configured string) (addr, origin string) {
	addr, origin = configured, "the configured socket"
	if addr == "" {
		if env, ok := workloadapi.GetDefaultAddress(); ok && env != "" {
			addr, origin = env, SocketEnv
		} else {
			addr, origin = DefaultSocket, "the default socket, "+SocketEnv+" being unset"
		}
	}
	if strings.HasPrefix(addr, "/") {
		addr = "unix://" + addr
	}
	return addr, origin
}

// advice turns the usual causes of a missing SVID into the next step.
func advice(addr, reason string) string {
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		switch info, err := os.Stat(path); {
		case errors.Is(err, os.ErrNotExist):
			return "there is no such socket: start the SPIRE agent, or set " + SocketEnv
		case errors.Is(err, os.ErrPermission):
			return "this user may not reach the socket: check the permissions of its directory"
		case err == nil && info.Mode()&os.ModeSocket == 0:
			return "that is not a socket: check " + SocketEnv
		}
	}
	if strings.Contains(reason, "PermissionDenied") {
		return "the agent knows no identity for this process: register a workload entry that selects it"
	}
	return "check that the SPIRE agent runs and has an entry for this process"
}

// ID is the SPIFFE id of the current SVID; the zero ID after Close.
func (s *Source) ID() spiffeid.ID {
	v, err := s.svids.GetX509SVID()
	if err != nil {
		return spiffeid.ID{}
	}
	return v.ID
}

// Expiry is when the current SVID ends; the zero time after Close.
func (s *Source) Expiry() time.Time {
	v, err := s.svids.GetX509SVID()
	if err != nil || len(v.Certificates) == 0 {
		return time.Time{}
	}
	return v.Certificates[0].NotAfter
}

// Updated delivers a value after the SVID or a bundle changed; changes nobody waited for merge into one.
// It is nil, and so never delivers, for a Source that was not opened from the Workload API.
func (s *Source) Updated() <-chan struct{} {
	if s.x509 == nil {
		return nil
	}
	return s.x509.Updated()
}

// Close ends the connection to the Workload API. Handshakes fail afterwards; connections that exist live on.
func (s *Source) Close() error {
	if s.x509 == nil {
		return nil
	}
	return s.x509.Close()
}

// watchLog hands go-spiffe's complaints to slog and remembers the latest for the error of Open.
type watchLog struct {
	out     *slog.Logger
	socket  string
	problem atomic.Pointer[string]
}

func (w *watchLog) last() string {
	if p := w.problem.Load(); p != nil {
		return *p
	}
	return ""
}

func (w *watchLog) note(level slog.Level, format string, args []any) {
	text := fmt.Sprintf(format, args...)
	if level >= slog.LevelWarn {
		w.problem.Store(&text)
	}
	if w.out != nil {
		w.out.Log(context.Background(), level, "workload api: "+text, "socket", w.socket)
	}
}

func (w *watchLog) Debugf(f string, a ...any) { w.note(slog.LevelDebug, f, a) }
func (w *watchLog) Infof(f string, a ...any)  { w.note(slog.LevelDebug, f, a) }
func (w *watchLog) Warnf(f string, a ...any)  { w.note(slog.LevelWarn, f, a) }
func (w *watchLog) Errorf(f string, a ...any) { w.note(slog.LevelWarn, f, a) }
