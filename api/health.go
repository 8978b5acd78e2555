package api

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

// The statuses of a peer's health, as load balancers and scripts for clusters of
// this kind expect them. A follower here reads and writes like the leader: what
// they call a performance standby.
const (
	statusStandby   = 473 // serves, and is not the leader
	statusUnhealthy = 474 // has its keys, and knows no leader
	statusRemoved   = 530 // is no member any more
)

// healthCodes are the parameters that replace a status; some are of states that
// no peer here is ever in, and change nothing.
var healthCodes = map[string]bool{"activecode": true, "standbycode": true, "performancestandbycode": true, "haunhealthycode": true,
	"sealedcode": true, "uninitcode": true, "drsecondarycode": true, "removedcode": true}

// health says how this peer is: to any trusted identity, from memory, GET or HEAD.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	request, err := s.open(w, r)
	if err == nil && r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		s.stamp(w, request)
		send(w, http.StatusMethodNotAllowed, client.Failure{Code: secret.CodeInvalid, Message: "this route takes GET or HEAD", Request: request.ID})
		return
	}
	var status int
	h := s.cfg.Health()
	if err == nil {
		status, err = healthStatus(h, r.URL.RawQuery)
	}
	if err != nil {
		s.sendFailure(w, request, err)
		return
	}
	retryAfter(w, status)
	s.stamp(w, request)
	send(w, status, h)
}

// healthStatus is the status that shows h, with what the query replaces.
func healthStatus(h client.Health, rawQuery string) (int, error) {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return 0, secret.Invalid("query", "it cannot be read")
	}
	code, ok := map[string]int{}, map[string]bool{}
	for name, values := range query {
		if len(values) != 1 {
			return 0, secret.Invalid("query", "it has a parameter twice")
		}
		switch {
		case healthCodes[name]:
			n, err := strconv.Atoi(values[0])
			if err != nil || n < 200 || n > 599 {
				return 0, secret.Invalid("query", "a status is a number from 200 to 599")
			}
			code[name] = n
		case name == "standbyok" || name == "perfstandbyok":
			yes, err := strconv.ParseBool(values[0])
			if values[0] != "" && err != nil {
				return 0, secret.Invalid("query", "standbyok and perfstandbyok are true or false")
			}
			ok[name] = yes || values[0] == ""
		default:
			return 0, secret.Invalid("query", "it has a parameter that this route does not know")
		}
	}
	pick := func(status int, names ...string) (int, error) {
		for _, name := range names {
			if code[name] != 0 {
				return code[name], nil
			}
		}
		return status, nil
	}
	switch {
	case h.Removed:
		return pick(statusRemoved, "removedcode")
	case h.Draining: // none of theirs; balancers must not take it for one that serves
		return http.StatusServiceUnavailable, nil
	case !h.Formed || h.Current && !h.Initialised: // a peer that has just started may not know yet that it has a key
		return pick(http.StatusNotImplemented, "uninitcode")
	case h.Sealed:
		return pick(http.StatusServiceUnavailable, "sealedcode")
	case !h.Leader && !h.LeaderKnown:
		return pick(statusUnhealthy, "haunhealthycode")
	case h.Leader, ok["standbyok"], ok["perfstandbyok"]:
		return pick(http.StatusOK, "activecode")
	}
	return pick(statusStandby, "performancestandbycode", "standbycode")
}
