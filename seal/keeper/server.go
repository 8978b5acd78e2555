package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// Trust says whom a Keeper admits: roles by whole path segments, per trust domain.
type Trust struct {
	Nexus     []spiffeid.TrustDomain // /spike/nexus and /spike/nexus/<id>
	Bootstrap []spiffeid.TrustDomain // /spike/bootstrap and below
}

func (t Trust) nexus(id spiffeid.ID) bool {
	rest, ok := strings.CutPrefix(id.Path(), "/spike/nexus")
	return ok && member(t.Nexus, id) && (rest == "" || rest[0] == '/' && !strings.Contains(rest[1:], "/"))
}

func (t Trust) bootstrap(id spiffeid.ID) bool {
	rest, ok := strings.CutPrefix(id.Path(), "/spike/bootstrap")
	return ok && member(t.Bootstrap, id) && (rest == "" || rest[0] == '/')
}

func member(domains []spiffeid.TrustDomain, id spiffeid.ID) bool {
	for _, td := range domains {
		if id.MemberOf(td) {
			return true
		}
	}
	return false
}

// admits is the check in the TLS handshake.
func (t Trust) admits(id spiffeid.ID) error {
	if t.nexus(id) || t.bootstrap(id) {
		return nil
	}
	return errors.New("a Keeper talks to Nexus and Bootstrap only")
}

// ServerOptions configures a Server.
type ServerOptions struct {
	Trust          Trust
	ClusterID      [16]byte // the only cluster to serve; zero: the first that places a share
	MaxConnections int      // more wait to be accepted; default 256
	Logger         *slog.Logger
}

// Version is the release, set when the binary is linked.
var Version = "dev"

// Server is a Keeper.
type Server struct {
	o       ServerOptions
	name    string // of its SVID; set by Serve
	started time.Time
	vault   *vault
	askers  *askers
	log     *slog.Logger
}

// NewServer makes a Keeper with no share.
func NewServer(o ServerOptions) *Server {
	if o.MaxConnections <= 0 {
		o.MaxConnections = 256
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Server{o: o, started: time.Now(), vault: newVault(o.ClusterID), askers: newAskers(time.Now), log: o.Logger}
}

// Holds lists the shares held now.
func (s *Server) Holds() []HeldSlot { return s.vault.slots() }

const (
	headerTimeout = 5 * time.Second // also bounds the TLS handshake
	ioTimeout     = 10 * time.Second
	idleTimeout   = 60 * time.Second
	stopTimeout   = 5 * time.Second
)

// Serve answers on l until ctx ends, then finishes what is under way, for at most five seconds, wipes the shares
// and returns nil. It closes l. The Keeper's name is the one in source's SVID.
func (s *Server) Serve(ctx context.Context, l net.Listener, source *identity.Source) error {
	s.name = strings.TrimPrefix(source.ID().Path(), "/spike/keeper/")
	h := &http.Server{
		Handler:           s,
		TLSConfig:         source.Server(s.o.Trust.admits, "http/1.1"),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       ioTimeout,
		WriteTimeout:      ioTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // failed handshakes, mostly
		Protocols:         new(http.Protocols),                                 // HTTP/2 would add nothing but surface
	}
	h.Protocols.SetHTTP1(true)
	defer s.vault.wipe()
	failed := make(chan error, 1)
	go func() { failed <- h.ServeTLS(limit(l, s.o.MaxConnections), "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("keeper: serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := h.Shutdown(stop); err != nil {
		s.log.Warn("closing connections that did not end in time", "error", err)
		h.Close()
	}
	return nil
}

// ServeHTTP answers one request. The connection must be TLS made from Serve's configuration.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Type", "application/json")
	head.Set("Cache-Control", "no-store, no-cache, must-revalidate, private")
	head.Set("Pragma", "no-cache")
	head.Set("Expires", "0")

	if r.TLS == nil {
		answerError(w, http.StatusUnauthorized, codeUnauthorised)
		return
	}
	id, err := identity.PeerID(*r.TLS)
	if err != nil {
		s.log.Warn("refused a request without a valid identity", "error", err)
		head.Set("Connection", "close")
		answerError(w, http.StatusUnauthorized, codeUnauthorised)
		return
	}
	route := r.URL.Path
	if operations[route] == "" || r.Method != http.MethodPost || r.URL.Query().Get("action") != "" {
		answerError(w, http.StatusBadRequest, codeBadRequest)
		return
	}
	if route != routeContribute && route != routeShard && !s.o.Trust.nexus(id) {
		s.log.Warn("refused", "peer", id.String(), "route", route)
		answerError(w, http.StatusForbidden, codeUnauthorised)
		return
	}
	if ok, first := s.askers.admit(id.String(), route); !ok {
		s.refused(id, route, first)
		head.Set("Retry-After", "1")
		answerError(w, http.StatusTooManyRequests, codeThrottled)
		return
	}
	body, err := readAll(http.MaxBytesReader(w, r.Body, maxBody), maxBody)
	defer locked.Wipe(body)
	if err != nil {
		answerError(w, http.StatusBadRequest, codeBadRequest)
		return
	}
	switch route {
	case routeContribute:
		s.contribute(w, id, body)
	case routeShard:
		s.shard(w, id, body)
	default:
		s.native(w, route, id, body)
	}
}

// give says whether the identity may have a share now: nil, or ErrThrottled.
func (s *Server) give(id spiffeid.ID, route string) error {
	ok, first := s.askers.give(id.String(), route)
	if ok {
		return nil
	}
	s.refused(id, route, first)
	return seal.ErrThrottled
}

func (s *Server) refused(id spiffeid.ID, route string, first bool) {
	if first {
		s.log.Warn("this identity asks too often; its requests are refused until it asks less", "peer", id.String(), "op", operations[route])
	}
}

// readAll reads at most limit bytes, and fails if there are more. It reads into one buffer, so that wiping the result
// wipes every copy made here.
func readAll(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, limit+1)
	n, err := io.ReadFull(r, b)
	switch {
	case err == nil:
		return b, fmt.Errorf("keeper: more than %d bytes", limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return b[:n], nil
	}
	return b[:n], err
}

// contribute is SPIKE's route for a bare share.
func (s *Server) contribute(w http.ResponseWriter, id spiffeid.ID, body []byte) {
	share, err := parseContribution(body)
	if err != nil {
		answerError(w, http.StatusBadRequest, codeBadRequest)
		return
	}
	s.vault.contribute(share)
	locked.Wipe(share)
	s.log.Info("took a bare contribution, which unsealing does not use", "peer", id.String())
	answer(w, http.StatusOK, []byte("{}"))
}

// shard is SPIKE's route to get the bare share back.
func (s *Server) shard(w http.ResponseWriter, id spiffeid.ID, body []byte) {
	refuse := func(status int, code string) { answer(w, status, []byte(`{"shard":null,"Err":"`+code+`"}`)) }
	if parseEmpty(body, false) != nil {
		refuse(http.StatusBadRequest, codeBadRequest)
		return
	}
	if !s.o.Trust.nexus(id) {
		s.log.Warn("refused", "peer", id.String(), "route", routeShard)
		refuse(http.StatusUnauthorized, codeUnauthorised)
		return
	}
	out := make([]byte, 0, 256)
	var err error
	if !s.vault.contribution(func(share []byte) {
		if err = s.give(id, routeShard); err == nil {
			out = shardAnswer(out, share)
		}
	}) {
		refuse(http.StatusBadRequest, codeBadRequest)
		return
	}
	if err != nil {
		status, text := code(err)
		refuse(status, text)
		return
	}
	defer locked.Wipe(out)
	answer(w, http.StatusOK, out)
}

// native answers our own routes.
func (s *Server) native(w http.ResponseWriter, route string, id spiffeid.ID, body []byte) {
	out := []byte("{}")
	var err error
	switch route {
	case routePlace:
		var slot seal.Slot
		var share []byte
		if slot, share, err = parseSlot(body, placeFields); err == nil {
			failpoint.Hit(failpoint.KeeperPlaceBefore)
			err = s.vault.place(slot, share)
			failpoint.Hit(failpoint.KeeperPlaceAfter)
			locked.Wipe(share)
			s.note("place", id, slot, err)
		}
	case routeFetch:
		var slot seal.Slot
		if slot, _, err = parseSlot(body, fetchFields); err == nil {
			out = make([]byte, 0, 128)
			failpoint.Hit(failpoint.KeeperFetchBefore)
			err = s.vault.fetch(slot, func(share []byte) error {
				err := s.give(id, routeFetch)
				if err == nil {
					out = fetchAnswer(out, share)
				}
				return err
			})
			if !errors.Is(err, seal.ErrThrottled) { // that has its own word, not for each
				s.note("fetch", id, slot, err)
			}
		}
	case routeSettle:
		var slot seal.Slot
		var asOf uint64
		if slot, asOf, err = parseSettle(body); err == nil {
			failpoint.Hit(failpoint.KeeperSettleBefore)
			err = s.vault.settle(slot.Cluster, slot.Set, asOf)
			failpoint.Hit(failpoint.KeeperSettleAfter)
			s.note("settle", id, slot, err)
		}
	case routeProve:
		var slot seal.Slot
		var nonce []byte
		if slot, nonce, err = parseSlot(body, proveFields); err == nil {
			var proof [32]byte
			if proof, err = s.vault.prove(slot, s.name, [32]byte(nonce)); err == nil {
				out = proofAnswer(proof)
			}
		}
	case routeHolds:
		if err = parseEmpty(body, true); err == nil {
			out = holdsAnswer(s.vault.slots())
		}
	case routeStatus:
		if err = parseEmpty(body, true); err == nil {
			out = statusAnswer(Status{Version, s.started, s.vault.slots(), s.askers.list()})
		}
	}
	if err != nil {
		status, text := code(err)
		answerError(w, status, text)
		return
	}
	answer(w, http.StatusOK, out)
	locked.Wipe(out)
}

// note logs who did what with which share; never the share.
func (s *Server) note(what string, id spiffeid.ID, slot seal.Slot, err error) {
	args := []any{"op", what, "peer", id.String(), "cluster", slot.Cluster.String(), "set", fmt.Sprintf("%x", slot.Set), "index", slot.Index}
	if err != nil {
		s.log.Warn("refused a share operation", append(args, "reason", err.Error())...)
		return
	}
	s.log.Info("share operation", args...)
}

func answer(w http.ResponseWriter, status int, body []byte) {
	w.WriteHeader(status)
	_, _ = w.Write(body) // the peer went away; there is nobody to tell
}

func answerError(w http.ResponseWriter, status int, code string) {
	answer(w, status, []byte(`{"err":"`+code+`"}`))
}

// limit is a listener that has at most n connections open; further ones wait in the system's backlog.
func limit(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, free: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	free   chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
