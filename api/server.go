package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// Config joins a Server to what it serves.
type Config struct {
	Store   *store.Store
	Domains secret.TrustDomains
	Logger  *slog.Logger
	// BodyLimit bounds request bodies in bytes; DefaultBodyLimit when 0.
	BodyLimit int64
	// Health and Status describe this peer and the cluster.
	Health func() client.Health
	// Draining tells whether this peer is being emptied: leaving, it still serves but
	// ends each connection with its answer; closed, it refuses everything but the
	// routes of operators. Optional.
	Draining func() (leaving, closed bool)
	Status   func(context.Context) client.Status
	// Removed tells whether this peer is no member any more: it then only says how
	// it is. Optional.
	Removed func() bool
}

// Server answers requests; see Handler and Serve.
type Server struct {
	cfg                 Config
	http                *http.Server
	requests, operators *admission
	watches             *watches
	streams             *admission
	streamPatience      time.Duration
	figures             figures
}

// New makes a server.
func New(cfg Config) *Server {
	if cfg.BodyLimit <= 0 {
		cfg.BodyLimit = DefaultBodyLimit
	}
	s := &Server{cfg: cfg, requests: newAdmission(requestLimits), operators: newAdmission(operatorLimits), watches: newWatches(watchLimits), streams: newAdmission(streamLimits), streamPatience: streamPatience}
	s.http = &http.Server{
		Handler: s.Handler(),
		// "OPTIONS *" comes to the handler as well, which asks who it is first.
		DisableGeneralOptionsHandler: true,
		// A client that sends or reads slowly holds a connection, not the server.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100},
		ErrorLog:          slog.NewLogLogger(cfg.Logger.With("from", "http").Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, opened{}, time.Now())
		},
	}
	return s
}

// What a client may take to send a request and to take the answer; streams have
// bounds of their own.
var readTimeout, writeTimeout = 30 * time.Second, 60 * time.Second

// idleTimeout is how long a connection may wait for its next request.
const idleTimeout = 2 * time.Minute

// opened is the key under which a request's context has the time at which its
// connection was opened.
type opened struct{}

// aging tells a connection whose SVID ends soon: in the last quarter of the time
// that it had left when the connection was opened, or within a little more than
// the connection may be idle. Its next answer asks the client to connect anew, so
// that no request ever meets an SVID that has ended.
func aging(r *http.Request, now time.Time) bool {
	since, ok := r.Context().Value(opened{}).(time.Time)
	if !ok || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	end := r.TLS.PeerCertificates[0].NotAfter
	return end.Sub(now) < min(end.Sub(since)/4, idleTimeout+30*time.Second)
}

// MaxConnections bounds the open connections of one server. SPIKE's SDK opens
// one per call and leaves it idle for 30 s.
const MaxConnections = 4096

// Serve answers on listener until Shutdown. config authenticates both sides.
func (s *Server) Serve(listener net.Listener, config *tls.Config) error {
	s.http.TLSConfig = config
	err := s.http.ServeTLS(netutil.LimitListener(listener, MaxConnections), "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown lets requests under way finish, until ctx ends; watches end at once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.watches.close()
	return errors.Join(s.http.Shutdown(ctx), s.http.Close())
}

// Handler is the whole surface. It needs requests that came over mTLS.
func (s *Server) Handler() http.Handler {
	native := map[string]http.HandlerFunc{}
	s.nativeRoutes(native)
	wire := s.wireRoutes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A route is matched on the bytes that were sent: nothing is unescaped,
		// cleaned or redirected on the way.
		handler, isNative := native[r.URL.EscapedPath()]
		if !isNative {
			handler = wire
		}
		s.counted(w, r, isNative, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, handler, isNative) })
	})
}

// answer has handler answer r when it is its turn.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, handler http.HandlerFunc, isNative bool) {
	refuse := func(err error) {
		if isNative {
			s.sendFailure(w, store.Request{}, err)
		} else {
			s.sendWire(w, store.Request{}, &failed{}, err)
		}
	}
	leaving, closed := s.draining()
	if leaving || aging(r, time.Now()) {
		w.Header().Set("Connection", "close")
	}
	if s.cfg.Removed != nil && s.cfg.Removed() && !describes(r) {
		refuse(errRemoved)
		return
	}
	if closed && !forOperators(r) {
		refuse(errDraining)
		return
	}
	leave, ok := s.admit(r)
	if !ok {
		refuse(errOverloaded)
		return
	}
	defer leave()
	ctx, cancel, err := within(r)
	if err != nil {
		refuse(err)
		return
	}
	defer cancel()
	handler(w, r.WithContext(ctx))
}

// within is r's context, bounded by the time that the client gives. What is not
// done by then is withdrawn, and the client told so while it still waits.
func within(r *http.Request) (context.Context, context.CancelFunc, error) {
	header := r.Header.Get(client.HeaderTimeout)
	if header == "" {
		return r.Context(), func() {}, nil
	}
	ms, err := strconv.ParseUint(header, 10, 31)
	if err != nil || ms == 0 {
		return nil, nil, secret.Invalid(client.HeaderTimeout, "it is not a number of milliseconds")
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(ms)*time.Millisecond)
	return ctx, cancel, nil
}

func (s *Server) draining() (leaving, closed bool) {
	if s.cfg.Draining == nil {
		return false, false
	}
	return s.cfg.Draining()
}

// describes tells the routes that only say how the peer is.
func describes(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return path == client.RouteHealth || path == client.RouteStatus
}

var errRemoved = &secret.Error{Code: secret.CodeUnavailable, Message: "this peer was removed from the cluster: stop it, or ask another", Reason: client.ReasonRemoved}

var errDraining = &secret.Error{Code: secret.CodeUnavailable, Message: "this peer is being drained; ask another", Reason: client.ReasonDraining}

// open authenticates r and gives it an id. It writes the answer itself when
// there is no valid identity.
func (s *Server) open(w http.ResponseWriter, r *http.Request) (store.Request, error) {
	var id [12]byte
	rand.Read(id[:])
	request := store.Request{ID: hex.EncodeToString(id[:])}
	w.Header().Set(client.HeaderRequestID, request.ID)
	w.Header().Set(client.HeaderIndex, strconv.FormatUint(s.cfg.Store.Index(), 10))
	if r.TLS == nil {
		return request, errNoIdentity
	}
	peer, err := identity.PeerID(*r.TLS)
	if err != nil {
		w.Header().Set("Connection", "close") // an identity that ended ends its connection
		return request, errNoIdentity
	}
	request.Caller = s.cfg.Domains.ParseCaller(peer.TrustDomain().Name(), peer.Path())
	request.Seen = new(uint64)
	if request.Write, err = writeID(r.Header); err == nil {
		request.Level, request.Token, err = level(r.Header)
	}
	return request, err
}

// level reads how new the state must be that a read is answered from.
func level(h http.Header) (store.Level, string, error) {
	token := h.Get(client.HeaderToken)
	switch h.Get(client.HeaderConsistency) {
	case "", client.Linearizable:
		return store.Linearizable, "", nil
	case client.AtIndex:
		if token == "" {
			return 0, "", secret.Invalid(client.HeaderToken, "reads of level index need the token of an earlier answer")
		}
		return store.AtIndex, token, nil
	}
	return 0, "", secret.Invalid(client.HeaderConsistency, "it is neither linearizable nor index")
}

// stamp gives an authenticated caller the token of what the answer stands on.
func (s *Server) stamp(w http.ResponseWriter, r store.Request) {
	if r.Seen == nil {
		return
	}
	if token := s.cfg.Store.Token(*r.Seen); token != "" {
		w.Header().Set(client.HeaderToken, token)
	}
}

var errNoIdentity = &secret.Error{Code: secret.CodeDenied, Message: "the connection's SVID is missing or has expired; connect anew"}

// writeID reads what makes retries of a request harmless: our own id, or a key
// of the client's with an index.
func writeID(h http.Header) (store.WriteID, error) {
	keys := h.Values(client.HeaderIdempotencyKey)
	switch own := h.Get(client.HeaderWriteID); {
	case len(keys) == 0:
		return parseWriteID(own)
	case own != "":
		return store.WriteID{}, secret.Invalid(client.HeaderIdempotencyKey, "a request has one, or a "+client.HeaderWriteID+", not both")
	case len(keys) > 1:
		return store.WriteID{}, secret.Invalid(client.HeaderIdempotencyKey, "it is given twice")
	}
	return parseKey(keys[0], h.Values(client.HeaderIndex))
}

const maxKeyBytes = 128

func parseKey(key string, index []string) (store.WriteID, error) {
	if key == "" || len(key) > maxKeyBytes || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return store.WriteID{}, secret.Invalid(client.HeaderIdempotencyKey, "it is not 1 to 128 printable ASCII characters")
	}
	sum := sha256.Sum256([]byte("spike idempotency key\x00" + key)) // the door binds it to the caller
	w := store.WriteID{ID: [16]byte(sum[:16]), Keyed: true}
	if len(index) == 0 {
		return w, nil
	}
	var err error
	if w.Index, err = strconv.ParseUint(index[0], 10, 64); err != nil || len(index) > 1 {
		return store.WriteID{}, secret.Invalid(client.HeaderIndex, "it is not an index that an answer carried")
	}
	return w, nil
}

func parseWriteID(header string) (store.WriteID, error) {
	if header == "" {
		return store.WriteID{}, nil
	}
	id, index, _ := strings.Cut(header, ".")
	var w store.WriteID
	n, err := hex.Decode(w.ID[:], []byte(id[:min(len(id), 2*len(w.ID))]))
	if err != nil || n != len(w.ID) || len(id) != 2*len(w.ID) || w.ID == ([16]byte{}) {
		return store.WriteID{}, secret.Invalid(client.HeaderWriteID, "it is not 32 hexadecimal digits, a dot and an index")
	}
	if w.Index, err = strconv.ParseUint(index, 10, 64); err != nil {
		return store.WriteID{}, secret.Invalid(client.HeaderWriteID, "it is not 32 hexadecimal digits, a dot and an index")
	}
	return w, nil
}
