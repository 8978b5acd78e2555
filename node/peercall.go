package node

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
)

// refused is the part of an answer between peers that says why something was not
// done, in the words for who asked first.
type refused struct {
	Code    secret.Code `json:"code,omitempty"`
	Message string      `json:"message,omitempty"`
	Reason  string      `json:"reason,omitempty"`
}

// refusedFor is the refusal that err is; empty for none.
func refusedFor(err error) refused {
	if err == nil {
		return refused{}
	}
	var e *secret.Error
	if !errors.As(err, &e) {
		e = &secret.Error{Code: secret.CodeUnavailable, Message: err.Error()}
	}
	return refused{e.Code, e.Message, e.Reason}
}

// err is the way back.
func (r refused) err(subject string) error {
	if r.Code == "" {
		return nil
	}
	return &secret.Error{Code: r.Code, Subject: subject, Message: r.Message, Reason: r.Reason}
}

// onOff is a call that has a peer begin or end something; the answer is a refused.
type onOff struct {
	On bool `json:"on"`
}

// callOnOff makes the call to the peer id, this one included. For a peer that
// does not answer otherwise says what to do instead.
func (n *Node) callOnOff(ctx context.Context, rpc, id string, on bool, otherwise string) error {
	payload, err := json.Marshal(onOff{on})
	if err != nil {
		return err
	}
	raw, err := n.cluster.Call(ctx, id, rpc, payload)
	switch {
	case errors.Is(err, cluster.ErrUnknownPeer):
		return memberError(id, err)
	case err != nil: // a conflict, which clients do not repeat by themselves; repeating it does no harm
		return &secret.Error{Code: secret.CodeConflict, Subject: id, Reason: "does_not_answer", Message: "the peer does not answer; " + otherwise, Cause: err}
	}
	var answer refused
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	return answer.err(id)
}

// answerOnOff makes act the answer to such calls.
func answerOnOff(act func(ctx context.Context, on bool) error) func(context.Context, string, []byte) ([]byte, error) {
	return func(ctx context.Context, _ string, payload []byte) ([]byte, error) {
		var call onOff
		if err := json.Unmarshal(payload, &call); err != nil {
			return nil, errors.New("not a call of this kind")
		}
		return json.Marshal(refusedFor(act(ctx, call.On)))
	}
}
