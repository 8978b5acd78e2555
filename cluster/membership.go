package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

var (
	// ErrNotCaughtUp: the learner is too far behind to be promoted; see
	// NotCaughtUpError.
	ErrNotCaughtUp = errors.New("the learner has not caught up")
	// ErrQuorumAtRisk: too few voters would be alive afterwards; see QuorumError.
	ErrQuorumAtRisk = errors.New("too few voters would be left alive")
	// ErrChangeUnderWay: another change of the members is being made, or came
	// between. Nothing was changed.
	ErrChangeUnderWay = errors.New("the members are being changed by somebody else; look at them, then try again")
	// ErrMember: the id or the address is a member's already.
	ErrMember = errors.New("there is such a member already")
	// ErrInvalidChange: what was asked for makes no sense.
	ErrInvalidChange = errors.New("not a possible change of the members")
	// ErrNotAdmitted: this peer waits for an operator to add it.
	ErrNotAdmitted = errors.New("this peer is not a member yet")
	// ErrAddress: the peer was not found at the address that it is said to have.
	ErrAddress = errors.New("the peer does not answer at this address")
	// ErrLevel: the cluster uses a format that this version does not know.
	ErrLevel = errors.New("the cluster uses a newer format level than this version knows; run a newer version")

	errNotLeader = fmt.Errorf("%w: this peer does not lead", ErrNoLeader)
)

// NotCaughtUpError is ErrNotCaughtUp with the numbers: indexes of commands.
type NotCaughtUpError struct {
	ID                     string
	Applied, Commit, Bound uint64
}

func (e *NotCaughtUpError) Error() string {
	return fmt.Sprintf("%v: %s has applied %d of %d, and may be %d behind; wait, then try again", ErrNotCaughtUp, e.ID, e.Applied, e.Commit, e.Bound)
}

func (e *NotCaughtUpError) Unwrap() error { return ErrNotCaughtUp }

// QuorumError is ErrQuorumAtRisk with who does not answer.
type QuorumError struct {
	ID           string   // whose vote was to go
	Voters, Need int      // voters that would be left, and how many of them must be alive
	Unreachable  []string // of those
}

func (e *QuorumError) Error() string {
	if e.Voters == 0 {
		return fmt.Sprintf("%v: %s is the last voter", ErrQuorumAtRisk, e.ID)
	}
	return fmt.Sprintf("%v: without %s %d of %d voters must be alive, and these do not answer: %s",
		ErrQuorumAtRisk, e.ID, e.Need, e.Voters, strings.Join(e.Unreachable, ", "))
}

func (e *QuorumError) Unwrap() error { return ErrQuorumAtRisk }

func validAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" || len(address) > 300 {
		return fmt.Errorf("%w: %q is not an address host:port", ErrInvalidChange, address)
	}
	return nil
}

// AddLearner makes the peer id, which answers at address, a member without a
// vote. The peer itself may start before or after; see Config.Join. Adding it
// again is no error.
//
// AddLearner, Promote, Demote, Remove and Transfer may be called at any peer;
// the leader does it. ctx (Timing.Patience without a deadline) bounds them.
// Errors, besides those named: ErrChangeUnderWay, ErrUnknownPeer, ErrNoLeader
// and ErrNotReady say that nothing was changed, ErrUnknownOutcome that it is
// not known: look at Status.Members.
func (n *Node) AddLearner(ctx context.Context, id, address string) error {
	if err := validID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidChange, err)
	}
	if err := validAddress(address); err != nil {
		return err
	}
	return n.alter(ctx, peerpb.ChangeRequest_OP_ADD, id, address)
}

// Promote gives a learner a vote; *NotCaughtUpError when it lags.
func (n *Node) Promote(ctx context.Context, id string) error {
	return n.alter(ctx, peerpb.ChangeRequest_OP_PROMOTE, id, "")
}

// Demote makes a voter a learner; *QuorumError when that puts the cluster at
// risk. A leader hands leadership over first.
func (n *Node) Demote(ctx context.Context, id string) error {
	return n.alter(ctx, peerpb.ChangeRequest_OP_DEMOTE, id, "")
}

// Remove takes a member out of the cluster, as Demote does with its vote.
func (n *Node) Remove(ctx context.Context, id string) error {
	return n.alter(ctx, peerpb.ChangeRequest_OP_REMOVE, id, "")
}

// Transfer is TransferLeadership from any peer.
func (n *Node) Transfer(ctx context.Context, to string) error {
	return n.alter(ctx, peerpb.ChangeRequest_OP_TRANSFER, to, "")
}

// alter has the leader make a change, and asks the next leader when there is
// another.
func (n *Node) alter(ctx context.Context, op peerpb.ChangeRequest_Op, id, address string) error {
	ctx, cancel := n.patient(ctx)
	defer cancel()
	for {
		changed := n.hub.wait()
		err := n.alterOnce(ctx, op, id, address)
		again := errors.Is(err, ErrNoLeader) || errors.Is(err, ErrNotReady) && op != peerpb.ChangeRequest_OP_TRANSFER
		if !again || errors.Is(err, ErrUnknownOutcome) {
			return err
		}
		pause := time.NewTimer(20 * time.Millisecond)
		select {
		case <-changed:
		case <-pause.C:
		case <-n.ctx.Done():
		case <-ctx.Done():
		}
		pause.Stop()
		switch {
		case n.ctx.Err() != nil:
			return ErrStopped
		case n.removed.Load():
			return fmt.Errorf("%w: %w", ErrNotReady, ErrRemoved)
		case ctx.Err() != nil:
			return err
		}
	}
}

func (n *Node) alterOnce(ctx context.Context, op peerpb.ChangeRequest_Op, id, address string) error {
	if n.leads() {
		return n.change(ctx, op, id, address)
	}
	leader := n.leader()
	if leader == "" || leader == n.cfg.ID {
		return errNotLeader
	}
	conn, err := n.peers.ready(ctx, leader)
	if err != nil {
		return errNotLeader
	}
	resp, err := peerpb.NewPeerClient(conn).Change(ctx, &peerpb.ChangeRequest{Scope: n.scope(), Op: op, Id: id, Address: address})
	if err != nil {
		return fmt.Errorf("%w: asked leader %s: %w", ErrUnknownOutcome, leader, err)
	}
	return changeError(id, resp)
}

// Change answers another peer that passes a change on to the leader.
func (s service) Change(ctx context.Context, req *peerpb.ChangeRequest) (*peerpb.ChangeResponse, error) {
	if !s.n.ours(req.GetScope()) {
		return &peerpb.ChangeResponse{Verdict: peerpb.ChangeResponse_VERDICT_FOREIGN}, nil
	}
	if from, err := caller(ctx); err != nil || req.GetOp() == peerpb.ChangeRequest_OP_MOVE && from != req.GetId() {
		return changeVerdict(fmt.Errorf("%w: a peer moves itself alone", ErrInvalidChange)), nil
	}
	return changeVerdict(s.n.change(ctx, req.GetOp(), req.GetId(), req.GetAddress())), nil
}

var changeVerdicts = []struct {
	err     error
	verdict peerpb.ChangeResponse_Verdict
}{
	{ErrUnknownOutcome, peerpb.ChangeResponse_VERDICT_UNKNOWN},
	{errNotLeader, peerpb.ChangeResponse_VERDICT_NOT_LEADER},
	{ErrChangeUnderWay, peerpb.ChangeResponse_VERDICT_BUSY},
	{ErrInvalidChange, peerpb.ChangeResponse_VERDICT_INVALID},
	{ErrUnknownPeer, peerpb.ChangeResponse_VERDICT_NO_MEMBER},
	{ErrSilentPeer, peerpb.ChangeResponse_VERDICT_SILENT},
	{ErrMember, peerpb.ChangeResponse_VERDICT_EXISTS},
	{ErrAddress, peerpb.ChangeResponse_VERDICT_ADDRESS},
	{ErrForeignData, peerpb.ChangeResponse_VERDICT_FOREIGN},
	{ErrNotReady, peerpb.ChangeResponse_VERDICT_NOT_READY},
	{ErrNoLeader, peerpb.ChangeResponse_VERDICT_NOT_LEADER},
}

func changeVerdict(err error) *peerpb.ChangeResponse {
	if err == nil {
		return &peerpb.ChangeResponse{Verdict: peerpb.ChangeResponse_VERDICT_OK}
	}
	resp := &peerpb.ChangeResponse{Message: err.Error()}
	var behind *NotCaughtUpError
	var risk *QuorumError
	switch {
	case errors.As(err, &behind):
		resp.Verdict = peerpb.ChangeResponse_VERDICT_BEHIND
		resp.Applied, resp.Commit, resp.Bound = behind.Applied, behind.Commit, behind.Bound
		return resp
	case errors.As(err, &risk):
		resp.Verdict = peerpb.ChangeResponse_VERDICT_AT_RISK
		resp.Voters, resp.Need, resp.Unreachable = uint32(risk.Voters), uint32(risk.Need), risk.Unreachable
		return resp
	}
	for _, v := range changeVerdicts {
		if errors.Is(err, v.err) {
			resp.Verdict = v.verdict
			return resp
		}
	}
	return resp // unknown, rather than a promise
}

// told is another peer's words for one of this package's errors.
type told struct {
	kind  error
	words string
}

func (t *told) Error() string { return t.words }
func (t *told) Unwrap() error { return t.kind }

func changeError(id string, resp *peerpb.ChangeResponse) error {
	switch resp.GetVerdict() {
	case peerpb.ChangeResponse_VERDICT_OK:
		return nil
	case peerpb.ChangeResponse_VERDICT_BEHIND:
		return &NotCaughtUpError{id, resp.GetApplied(), resp.GetCommit(), resp.GetBound()}
	case peerpb.ChangeResponse_VERDICT_AT_RISK:
		return &QuorumError{id, int(resp.GetVoters()), int(resp.GetNeed()), resp.GetUnreachable()}
	}
	for _, v := range changeVerdicts {
		if resp.GetVerdict() == v.verdict {
			if resp.GetMessage() == "" {
				return v.err
			}
			return &told{v.err, resp.GetMessage()}
		}
	}
	return fmt.Errorf("%w: the leader answered %v", ErrUnknownOutcome, resp.GetVerdict())
}
