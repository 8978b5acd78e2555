package devca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxSocketPath is what sockaddr_un holds (108 bytes on Linux, 104 elsewhere), less the final zero.
const maxSocketPath = 103

// worker serves one identity on one socket.
type worker struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	authority *Authority
	id        spiffeid.ID
	url       string
	grpc      *grpc.Server
	done      chan struct{} // closed to stop
	served    chan struct{} // closed once the listener is closed and its socket gone
	stopOnce  sync.Once
	renewing  sync.Mutex

	mu      sync.Mutex
	svid    *workload.X509SVIDResponse // guarded by mu, replaced as a whole
	expiry  time.Time                  // guarded by mu
	renewed chan struct{}              // guarded by mu; closed when svid is replaced
}

func startWorker(a *Authority, id spiffeid.ID, signer *ca, roots []*x509.Certificate) (*worker, error) {
	path := filepath.Join(a.dir, socketName(id))
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("devca: the socket path %s has %d bytes and the system allows %d: choose a shorter directory",
			path, len(path), maxSocketPath)
	}
	w := &worker{authority: a, id: id, url: "unix://" + path, done: make(chan struct{}), served: make(chan struct{}), renewed: make(chan struct{})}
	if err := w.renewBy(signer, roots); err != nil {
		return nil, err
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	w.grpc = grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(w.grpc, w)
	go func() {
		defer close(w.served)
		_ = w.grpc.Serve(l) // ends with stop
	}()
	go w.rotate()
	return w, nil
}

// socketName is short, readable and unique: the last segment of the path and a hash of the whole.
func socketName(id spiffeid.ID) string {
	sum := sha256.Sum256([]byte(id.Path()))
	last := id.Path()[strings.LastIndexByte(id.Path(), '/')+1:]
	if len(last) > 16 {
		last = last[:16]
	}
	return last + "-" + hex.EncodeToString(sum[:4]) + ".sock"
}

// listen takes over the socket of an authority that died, but not of one that lives.
func listen(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("devca: another authority already serves %s: stop it or choose another directory", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("devca: %s is in the way and is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("devca: cannot replace a stale socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		if errors.Is(err, syscall.EINVAL) {
			return nil, fmt.Errorf("devca: the system refuses the socket path %s: choose a shorter directory: %w", path, err)
		}
		return nil, fmt.Errorf("devca: %w", err)
	}
	// The directory is 0700, so nobody else can connect between these two lines.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("devca: %w", err), l.Close())
	}
	return l, nil
}

func (w *worker) stop() {
	w.stopOnce.Do(func() {
		close(w.done)
		w.grpc.Stop() // closes the listener, which removes the socket
		<-w.served    // a Serve that had not begun yet closes it itself
	})
}

func (w *worker) stopped() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// renew issues a new SVID and wakes every stream.
func (w *worker) renew() error {
	w.renewing.Lock() // else the SVID of an older signer could replace that of a newer one
	defer w.renewing.Unlock()
	return w.renewBy(w.authority.signer())
}

func (w *worker) renewBy(signer *ca, roots []*x509.Certificate) error {
	svid, err := signer.issue(w.id, time.Now(), w.authority.ttl)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		return fmt.Errorf("devca: %w", err)
	}
	var bundle []byte
	for _, c := range roots {
		bundle = append(bundle, c.Raw...)
	}
	resp := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId:    w.id.String(),
		X509Svid:    svid.Certificates[0].Raw,
		X509SvidKey: key,
		Bundle:      bundle,
	}}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.svid, w.expiry = resp, svid.Certificates[0].NotAfter
	close(w.renewed)
	w.renewed = make(chan struct{})
	return nil
}

func (w *worker) current() (*workload.X509SVIDResponse, time.Time, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.svid, w.expiry, w.renewed
}

// rotate renews at half of the remaining life, also after a renewal by hand.
func (w *worker) rotate() {
	for {
		_, expiry, renewed := w.current()
		t := time.NewTimer(max(time.Until(expiry)/2, 100*time.Millisecond))
		select {
		case <-w.done:
			t.Stop()
			return
		case <-renewed:
		case <-t.C:
			if err := w.renew(); err != nil {
				w.authority.log.Error("devca cannot renew an SVID", "spiffe_id", w.id.String(), "error", err)
			}
		}
		t.Stop()
	}
}

// FetchX509SVID streams the SVID, and each one that replaces it.
func (w *worker) FetchX509SVID(_ *workload.X509SVIDRequest, s grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return w.follow(s.Context(), s.Send)
}

// FetchX509Bundles streams the trust bundle, and each one that replaces it.
func (w *worker) FetchX509Bundles(_ *workload.X509BundlesRequest, s grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return w.follow(s.Context(), func(svid *workload.X509SVIDResponse) error {
		return s.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{w.id.TrustDomain().IDString(): svid.GetSvids()[0].GetBundle()}})
	})
}

// follow hands send what is current, again each time that it is replaced.
func (w *worker) follow(ctx context.Context, send func(*workload.X509SVIDResponse) error) error {
	if err := checkHeader(ctx); err != nil {
		return err
	}
	for {
		svid, _, renewed := w.current()
		if err := send(svid); err != nil {
			return err
		}
		select {
		case <-renewed:
		case <-w.done:
			return status.Error(codes.Unavailable, "the authority stops")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkHeader demands the security header of the SPIFFE Workload Endpoint specification, section 6: it keeps a
// browser or another tricked client that cannot set metadata away from the keys.
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "the security header workload.spiffe.io is missing")
	}
	return nil
}
