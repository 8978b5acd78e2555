package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Protocols of the peer port, chosen by ALPN.
const (
	alpnRaft = "spike-raft/1"
	alpnRPC  = "h2"
)

const (
	handshakeTimeout = 5 * time.Second
	maxHandshakes    = 32  // at once; more are closed at once
	maxConns         = 512 // accepted and open
)

// port is the one TCP port of a peer: it shakes hands, tells who is there, and
// passes the connection to Raft or gRPC. It also dials. Safe for concurrent use.
type port struct {
	ln      net.Listener
	sec     Security
	log     *slog.Logger
	dialTCP func(ctx context.Context, network, address string) (net.Conn, error)
	age     time.Duration
	stale   time.Duration              // unacknowledged data older than this ends a connection
	member  func(id, alpn string) bool // whether to talk to this peer so
	places  func(id string) []string   // addresses to try, likeliest first
	found   func(id, address string)   // hears where a peer was; optional
	greet   func(c *peerConn) error    // Raft's hello on an accepted connection

	raft, rpc *handOff

	handshakes chan struct{}
	ctx        context.Context // ends handshakes when the port closes
	cancel     context.CancelFunc

	mu     sync.Mutex // guards the rest
	conns  map[*peerConn]struct{}
	open   int // accepted, handshake or later
	closed bool
	wg     sync.WaitGroup
}

// peerConn is an authenticated connection.
type peerConn struct {
	*tls.Conn
	id       string
	port     *port
	accepted bool
	oneByOne bool // dialled for Raft: one request, then its answer
	old      *time.Timer

	once sync.Once
	err  error

	mu       sync.Mutex // guards the rest; used when oneByOne
	retire   bool       // closes at the next request instead of sending it
	answered bool       // the last thing that happened was a read
}

var errRetired = errors.New("connection was due for replacement")

func (c *peerConn) Close() error {
	c.once.Do(func() {
		c.old.Stop()
		c.port.forget(c)
		// Without TLS's close alert: a peer that does not read must not hold us up.
		c.err = c.NetConn().Close()
	})
	return c.err
}

func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.oneByOne {
		c.mu.Lock()
		c.answered = true
		c.mu.Unlock()
	}
	return n, err
}

// Write refuses to begin another request on a connection past its age. The
// library dials anew after an error; nothing of the request was sent.
func (c *peerConn) Write(b []byte) (int, error) {
	if c.oneByOne {
		c.mu.Lock()
		due := c.retire && c.answered
		c.answered = false
		c.mu.Unlock()
		if due {
			_ = c.Close()
			return 0, errRetired
		}
	}
	return c.Conn.Write(b)
}

func (p *port) adopt(t *tls.Conn, id string, accepted bool) (*peerConn, error) {
	c := &peerConn{Conn: t, id: id, port: p, accepted: accepted,
		oneByOne: !accepted && t.ConnectionState().NegotiatedProtocol == alpnRaft}
	age := p.age*4/5 + time.Duration(rand.Int64N(int64(p.age*2/5)+1)) // ± 20 %
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = t.NetConn().Close()
		return nil, net.ErrClosed
	}
	if !c.oneByOne {
		// Replaced in time by the other side, or by gRPC; this is for when not.
		c.old = time.AfterFunc(2*age, func() { _ = c.Close() })
	} else {
		c.old = time.AfterFunc(age, func() {
			c.mu.Lock()
			c.retire = true
			c.mu.Unlock()
		})
	}
	p.conns[c] = struct{}{}
	return c, nil
}

func (p *port) forget(c *peerConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if c.accepted {
		p.open--
	}
}

func (p *port) serve() {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		delay := time.Duration(0)
		for {
			conn, err := p.ln.Accept()
			if err != nil {
				if p.isClosed() || errors.Is(err, net.ErrClosed) {
					return
				}
				delay = min(max(2*delay, 5*time.Millisecond), time.Second)
				p.log.Warn("cannot accept a peer connection", "error", err, "retry", delay)
				select {
				case <-time.After(delay):
				case <-p.ctx.Done():
				}
				continue
			}
			delay = 0
			p.take(conn)
		}
	}()
}

func (p *port) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// take refuses early what there is no room for: an unauthenticated crowd costs
// a bounded number of goroutines and handshakes.
func (p *port) take(conn net.Conn) {
	p.mu.Lock()
	full := p.closed || p.open >= maxConns
	if !full {
		select {
		case p.handshakes <- struct{}{}:
			p.open++
			p.wg.Add(1)
		default:
			full = true
		}
	}
	p.mu.Unlock()
	if full {
		_ = conn.Close()
		return
	}
	go func() {
		defer p.wg.Done()
		c, err := p.shake(conn)
		<-p.handshakes
		if err != nil {
			_ = conn.Close()
			p.log.Warn("refused a peer connection", "from", conn.RemoteAddr().String(), "error", err)
			p.mu.Lock()
			p.open--
			p.mu.Unlock()
			return
		}
		to := p.rpc
		if c.ConnectionState().NegotiatedProtocol == alpnRaft {
			_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
			if err := p.greet(c); err != nil {
				p.log.Warn("refused a Raft connection", "peer", c.id, "error", err)
				_ = c.Close()
				return
			}
			_ = c.SetDeadline(time.Time{})
			to = p.raft
		}
		if !to.put(c) {
			_ = c.Close()
		}
	}()
}

func (p *port) shake(conn net.Conn) (*peerConn, error) {
	setStale(conn, p.stale)
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTimeout)
	defer cancel()
	t := tls.Server(conn, hardened(p.sec.Server(), alpnRaft, alpnRPC))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	state := t.ConnectionState()
	id, err := p.sec.Peer(state)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrongPeer, err)
	}
	proto := state.NegotiatedProtocol
	if proto != alpnRaft && proto != alpnRPC {
		return nil, fmt.Errorf("peer %s speaks no protocol of ours", id)
	}
	if !p.member(id, proto) {
		return nil, fmt.Errorf("%w: %q is not a member", ErrWrongPeer, id)
	}
	return p.adopt(t, id, true)
}

// dialAt connects to the peer id at an address, and to nobody else.
func (p *port) dialAt(ctx context.Context, id, address, alpn string) (*peerConn, error) {
	conn, err := p.dialTCP(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	setStale(conn, p.stale)
	t := tls.Client(conn, hardened(p.sec.Client(id), alpn))
	fail := func(err error) (*peerConn, error) {
		_ = conn.Close()
		return nil, fmt.Errorf("peer %s at %s: %w", id, address, err)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		// Unverified, so good for the kind of error alone.
		if got, whoErr := p.sec.Peer(t.ConnectionState()); whoErr == nil && got != id {
			err = fmt.Errorf("%w: %w", ErrWrongPeer, err)
		}
		return fail(err)
	}
	state := t.ConnectionState()
	got, err := p.sec.Peer(state)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrWrongPeer, err))
	}
	if got != id {
		return fail(fmt.Errorf("%w: it is %q", ErrWrongPeer, got))
	}
	if state.NegotiatedProtocol != alpn {
		return fail(fmt.Errorf("it does not speak %s", alpn))
	}
	return p.adopt(t, id, false)
}

// hardened sets what is not for the Security to choose. No tickets: a resumed
// session would outlive the certificate that it was opened with.
func hardened(c *tls.Config, alpn ...string) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = alpn
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	return c
}

func (p *port) close() {
	p.mu.Lock()
	p.closed = true
	conns := make([]*peerConn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	p.cancel()
	_ = p.ln.Close()
	p.raft.Close()
	p.rpc.Close()
	for _, c := range conns {
		_ = c.Close()
	}
	p.wg.Wait()
}

// handOff is a net.Listener whose connections come from the port.
type handOff struct {
	addr net.Addr
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newHandOff(addr net.Addr) *handOff {
	return &handOff{addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handOff) put(c net.Conn) bool {
	select {
	case h.ch <- c:
		return true
	case <-h.done:
		return false
	}
}

func (h *handOff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handOff) Addr() net.Addr { return h.addr }

func (h *handOff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}
