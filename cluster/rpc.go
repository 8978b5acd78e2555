package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// shaken tells gRPC who is on a connection that has shaken hands already.
type shaken struct{}

type peerAuth struct {
	credentials.CommonAuthInfo
	id string
}

func (peerAuth) AuthType() string { return "spike-peer" }

func (shaken) auth(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, ok := c.(*peerConn)
	if !ok {
		return nil, nil, ErrWrongPeer
	}
	return p, peerAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p.id}, nil
}

func (s shaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) { return s.auth(c) }
func (s shaken) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return s.auth(c)
}
func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (s shaken) Clone() credentials.TransportCredentials { return s }
func (shaken) OverrideServerName(string) error           { return nil }

func newServer(n *Node) *grpc.Server {
	s := grpc.NewServer(
		grpc.Creds(shaken{}),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(256),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(n.onlyMembers),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      n.cfg.Timing.ConnAge, // gRPC adds the jitter
			MaxConnectionAgeGrace: time.Minute,
		}),
	)
	peerpb.RegisterPeerServer(s, service{n: n})
	return s
}

// peerClients holds one gRPC connection per peer. Safe for concurrent use.
type peerClients struct {
	n      *Node
	mu     sync.Mutex // guards the rest
	conns  map[string]*grpc.ClientConn
	closed bool
}

func newPeerClients(n *Node) *peerClients {
	return &peerClients{n: n, conns: make(map[string]*grpc.ClientConn)}
}

func (p *peerClients) get(id string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrStopped
	}
	if c := p.conns[id]; c != nil {
		return c, nil
	}
	if len(p.n.placesOf(id)) == 0 {
		return nil, fmt.Errorf("%w: %q", ErrUnknownPeer, id)
	}
	c, err := grpc.NewClient("passthrough:///"+id,
		grpc.WithTransportCredentials(shaken{}),
		grpc.WithContextDialer(func(ctx context.Context, id string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, p.n.dialTimeout())
			defer cancel()
			c, err := p.n.port.dial(ctx, id, alpnRPC, nil)
			if err != nil {
				return nil, err
			}
			return c, nil
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: p.n.dialTimeout(),
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(), // a proposal sent twice would be two
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, err
	}
	p.conns[id] = c
	return c, nil
}

// ready returns a connection that is up. An error means that nothing was sent.
func (p *peerClients) ready(ctx context.Context, id string) (*grpc.ClientConn, error) {
	c, err := p.get(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.n.dialTimeout())
	defer cancel()
	for {
		s := c.GetState()
		if s == connectivity.Ready {
			return c, nil
		}
		if s == connectivity.Shutdown {
			return nil, ErrStopped
		}
		if s == connectivity.Idle {
			c.Connect()
		}
		if !c.WaitForStateChange(ctx, s) {
			return nil, errors.New("cannot connect")
		}
	}
}

func (p *peerClients) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// service answers the other peers. Who asks comes from the connection; the
// scope of a request must be this cluster's.
type service struct {
	peerpb.UnimplementedPeerServer
	n *Node
}

func caller(ctx context.Context) (string, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(peerAuth); ok {
			return a.id, nil
		}
	}
	return "", status.Error(codes.Unauthenticated, "no peer identity")
}

func (n *Node) scope() *peerpb.Scope {
	id, inc, ok := n.Identity()
	if !ok {
		return nil
	}
	return &peerpb.Scope{ClusterId: id[:], Incarnation: inc}
}

func (n *Node) ours(s *peerpb.Scope) bool {
	id, inc, ok := n.Identity()
	return ok && string(s.GetClusterId()) == string(id[:]) && s.GetIncarnation() == inc
}

func (s service) Propose(ctx context.Context, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	resp := &peerpb.ProposeResponse{Results: make([]*peerpb.Proposed, len(req.GetCommands()))}
	all := func(o peerpb.Outcome) (*peerpb.ProposeResponse, error) {
		for i := range resp.Results {
			resp.Results[i] = &peerpb.Proposed{Outcome: o}
		}
		return resp, nil
	}
	if !s.n.ours(req.GetScope()) || !s.n.leads() {
		return all(peerpb.Outcome_OUTCOME_NOT_PROPOSED)
	}
	if len(req.GetCommands()) > maxBatchCommands {
		return all(peerpb.Outcome_OUTCOME_TOO_LARGE)
	}
	items := make([]*item, len(req.GetCommands()))
	for i, c := range req.GetCommands() {
		if len(c) > s.n.cfg.MaxCommandBytes {
			return all(peerpb.Outcome_OUTCOME_TOO_LARGE)
		}
		items[i] = newItem(c, true)
	}
	if err := s.n.queue.add(items...); err != nil {
		if errors.Is(err, ErrOverloaded) {
			return all(peerpb.Outcome_OUTCOME_OVERLOADED)
		}
		return all(peerpb.Outcome_OUTCOME_NOT_PROPOSED)
	}
	size := 0
	for i, it := range items {
		out := s.n.queue.await(ctx, it)
		a := &peerpb.Proposed{}
		switch {
		case out.err == nil:
			size += len(out.result.Data)
			a.Outcome, a.Index, a.Term, a.Data = peerpb.Outcome_OUTCOME_APPLIED, out.result.Index, out.result.Term, out.result.Data
		case !errors.Is(out.err, ErrUnknownOutcome):
			a.Outcome = peerpb.Outcome_OUTCOME_NOT_PROPOSED
		}
		resp.Results[i] = a
	}
	if size > maxMessageBytes-(64<<10) {
		return all(peerpb.Outcome_OUTCOME_UNKNOWN)
	}
	return resp, nil
}

func (s service) Term(_ context.Context, req *peerpb.TermRequest) (*peerpb.TermResponse, error) {
	r := s.n.raft.Load()
	switch {
	case !s.n.ours(req.GetScope()):
		return &peerpb.TermResponse{Refusal: peerpb.Refusal_REFUSAL_FOREIGN}, nil
	case r == nil || s.n.ctx.Err() != nil:
		return &peerpb.TermResponse{Refusal: peerpb.Refusal_REFUSAL_NOT_READY}, nil
	}
	return &peerpb.TermResponse{Term: r.CurrentTerm(), Applied: s.n.Applied(), Last: r.LastIndex()}, nil
}
