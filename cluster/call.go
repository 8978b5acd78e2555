package cluster

import (
	"context"
	"fmt"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Leader, as the target of Call, is whoever leads. No peer can have this id.
const Leader = "@leader"

// Handle sets the handler for calls of a kind, replacing an earlier one.
func (n *Node) Handle(kind string, h Handler) {
	n.handlerMu.Lock()
	defer n.handlerMu.Unlock()
	n.handlers[kind] = h
}

func (n *Node) handler(kind string) Handler {
	n.handlerMu.RLock()
	defer n.handlerMu.RUnlock()
	return n.handlers[kind]
}

// Call asks the peer to, or Leader, with at most 4 MiB each way; it is not
// repeated. Calling oneself works and touches no network. ctx
// (Timing.Patience without a deadline) bounds it, and reaches the handler.
//
// Errors: *RemoteError when the handler refused, ErrNoHandler, ErrUnknownPeer,
// ErrNoLeader, ErrTooLarge, ErrForeignData, ErrStopped; ErrNotReady means that nothing was
// sent, ErrUnknownOutcome that no answer came back.
func (n *Node) Call(ctx context.Context, to, kind string, payload []byte) ([]byte, error) {
	ctx, cancel := n.patient(ctx)
	defer cancel()
	if len(payload) > maxCallBytes || len(kind) > maxKind {
		return nil, fmt.Errorf("%w: a call carries at most %d bytes", ErrTooLarge, maxCallBytes)
	}
	if n.ctx.Err() != nil {
		return nil, ErrStopped
	}
	if to == Leader {
		if to = n.leader(); to == "" {
			return nil, n.whyNoLeader()
		}
	}
	req := &peerpb.CallRequest{Kind: kind, Payload: payload, Scope: n.scope()}
	var resp *peerpb.CallResponse
	if to == n.cfg.ID {
		resp = n.answer(ctx, to, req)
	} else {
		conn, err := n.peers.ready(ctx, to)
		if err != nil {
			return nil, fmt.Errorf("%w: call %q of peer %s: %w", ErrNotReady, kind, to, err)
		}
		if resp, err = peerpb.NewPeerClient(conn).Call(ctx, req); err != nil {
			return nil, fmt.Errorf("%w: call %q of peer %s: %w", ErrUnknownOutcome, kind, to, err)
		}
	}
	switch resp.GetStatus() {
	case peerpb.CallResponse_STATUS_OK:
		return resp.GetPayload(), nil
	case peerpb.CallResponse_STATUS_UNKNOWN_KIND:
		return nil, fmt.Errorf("peer %s, call %q: %w", to, kind, ErrNoHandler)
	case peerpb.CallResponse_STATUS_TOO_LARGE:
		return nil, fmt.Errorf("peer %s, call %q: the answer is %w", to, kind, ErrTooLarge)
	case peerpb.CallResponse_STATUS_FOREIGN:
		return nil, fmt.Errorf("peer %s, call %q: %w", to, kind, ErrForeignData)
	default:
		return nil, &RemoteError{Peer: to, Kind: kind, Message: resp.GetError()}
	}
}

func (s service) Call(ctx context.Context, req *peerpb.CallRequest) (*peerpb.CallResponse, error) {
	from, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	return s.n.answer(ctx, from, req), nil
}

func (n *Node) answer(ctx context.Context, from string, req *peerpb.CallRequest) *peerpb.CallResponse {
	if _, _, formed := n.Identity(); formed && req.GetScope() != nil && !n.ours(req.GetScope()) {
		return &peerpb.CallResponse{Status: peerpb.CallResponse_STATUS_FOREIGN}
	}
	h := n.handler(req.GetKind())
	if h == nil {
		return &peerpb.CallResponse{Status: peerpb.CallResponse_STATUS_UNKNOWN_KIND}
	}
	if len(req.GetPayload()) > maxCallBytes {
		return &peerpb.CallResponse{Status: peerpb.CallResponse_STATUS_TOO_LARGE}
	}
	out, err := h(ctx, from, req.GetPayload())
	switch {
	case err != nil:
		return &peerpb.CallResponse{Status: peerpb.CallResponse_STATUS_FAILED, Error: err.Error()}
	case len(out) > maxCallBytes:
		return &peerpb.CallResponse{Status: peerpb.CallResponse_STATUS_TOO_LARGE}
	}
	return &peerpb.CallResponse{Payload: out}
}
