package api

import (
	"net/http"
	"sync"

	"github.com/spike-ha/spike-ha/secret"
)

// admission bounds the requests under way on one peer, and of one identity
// among them. HTTP/2 lets one connection carry many requests, each of which may
// hold a body and wait for a leader: without a bound a burst would end in
// collapse, and without one per identity one application could be that burst.
type admission struct {
	all, each int // limits

	mu       sync.Mutex // guards what follows
	underWay int
	byCaller map[string]int // of those with requests under way
}

// Limits of requests under way; one that is over is refused at once.
const (
	maxUnderWay       = 2048
	maxUnderWayOfEach = maxUnderWay / 2
)

var errOverloaded = secret.Errorf(secret.CodeOverloaded, "too many requests are under way; try again later or ask another peer")

func newAdmission(all, each int) *admission {
	return &admission{all: all, each: each, byCaller: map[string]int{}}
}

// enter counts a request of caller; who got true calls leave afterwards.
func (a *admission) enter(caller string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.underWay >= a.all || a.byCaller[caller] >= a.each {
		return false
	}
	a.underWay++
	a.byCaller[caller]++
	return true
}

func (a *admission) leave(caller string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.underWay--
	if a.byCaller[caller]--; a.byCaller[caller] == 0 {
		delete(a.byCaller, caller)
	}
}

// caller names who is counted: the identity in the certificate that the
// handshake has verified.
func caller(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.PeerCertificates[0].URIs) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].URIs[0].String()
}
