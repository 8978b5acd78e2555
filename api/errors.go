package api

import (
	"errors"
	"net/http"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// outcome is how one error code shows on each surface. On the SPIKE wire only
// the five statuses that its SDK knows are used where it matters: a denial is
// 401, everything that passes with time or at another peer is 503.
type outcome struct {
	native int
	wire   int
	word   string // of the SPIKE wire
}

var outcomes = map[secret.Code]outcome{
	secret.CodeInvalid:     {http.StatusBadRequest, http.StatusBadRequest, "api_bad_request"},
	secret.CodeTooLarge:    {http.StatusRequestEntityTooLarge, http.StatusBadRequest, "api_bad_request"},
	secret.CodeUndecrypted: {http.StatusBadRequest, http.StatusBadRequest, "api_bad_request"},
	secret.CodeDenied:      {http.StatusForbidden, http.StatusUnauthorized, "access_unauthorized"},
	secret.CodeNotFound:    {http.StatusNotFound, http.StatusNotFound, "api_not_found"},
	secret.CodeConflict:    {http.StatusConflict, http.StatusBadRequest, "api_bad_request"},
	secret.CodeSealed:      {http.StatusServiceUnavailable, http.StatusServiceUnavailable, "state_not_ready"},
	secret.CodeUnavailable: {http.StatusServiceUnavailable, http.StatusServiceUnavailable, "state_not_ready"},
	secret.CodeOverloaded:  {http.StatusTooManyRequests, http.StatusServiceUnavailable, "state_not_ready"},
	secret.CodeUnknown:     {http.StatusGatewayTimeout, http.StatusServiceUnavailable, "state_not_ready"},
	secret.CodeFull:        {http.StatusInsufficientStorage, http.StatusServiceUnavailable, "state_not_ready"},
	// Only who sends headers of ours sees these, so they are the same on the wire.
	secret.CodeForgotten:     {http.StatusGone, http.StatusGone, "api_bad_request"},
	secret.CodeForeignToken:  {http.StatusPreconditionFailed, http.StatusPreconditionFailed, "api_bad_request"},
	secret.CodeIndexRequired: {http.StatusPreconditionRequired, http.StatusPreconditionRequired, "api_bad_request"},
	secret.CodeInternal:      {http.StatusInternalServerError, http.StatusInternalServerError, "api_internal_error"},
}

// lookup finds how err shows.
func lookup(err error) (*secret.Error, outcome) {
	var e *secret.Error
	if !errors.As(err, &e) {
		e = &secret.Error{Code: secret.CodeInternal, Message: "the request could not be completed; the peer's log says more", Cause: err}
	}
	o, ok := outcomes[e.Code]
	if !ok {
		o = outcomes[secret.CodeInternal]
	}
	return e, o
}

func (s *Server) sendFailure(w http.ResponseWriter, r store.Request, err error) {
	e, o := lookup(err)
	s.logInternal(r.ID, e)
	s.stamp(w, r)
	retryAfter(w, o.native)
	send(w, o.native, client.Failure{Code: e.Code, Message: e.Error(), Reason: e.Reason, Current: e.Current, Operation: e.Operation, Request: r.ID})
}

// retryAfter tells clients when to ask again; elections take about a second.
func retryAfter(w http.ResponseWriter, status int) {
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
}

func (s *Server) logInternal(requestID string, e *secret.Error) {
	if e.Code == secret.CodeInternal {
		s.cfg.Logger.Error("a request failed", "request", requestID, "error", e.Error(), "reason", e.Reason, "cause", e.Cause)
	}
}
