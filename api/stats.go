package api

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/measure"
)

// route is what a request is counted as: a surface and a kind of work, never a
// path or an identity, so that there are few.
type route int

const (
	routeOther route = iota // nothing that there is
	routeRead
	routeWrite
	routeWatch
	routePolicy
	routeCipher
	routeSys
	routeHealth
	routeWireRead
	routeWireWrite
	routeWirePolicy
	routeWireCipher
	routeWireOperator
	routes // how many
)

var routeNames = [routes]string{"other", "native_read", "native_write", "native_watch", "native_policy", "native_cipher", "native_sys", "native_health",
	"spike_read", "spike_write", "spike_policy", "spike_cipher", "spike_operator"}

var nativeRoutes = map[string]route{
	client.RouteSecretGet: routeRead, client.RouteSecretList: routeRead, client.RouteSecretMetadata: routeRead,
	client.RouteSecretWatch: routeWatch, client.RouteHealth: routeHealth,
	client.RouteCipherEncrypt: routeCipher, client.RouteCipherDecrypt: routeCipher,
}

// routeOf tells what r is counted as; native that it is a native route, by its
// path alone.
func routeOf(r *http.Request, native bool) route {
	path := r.URL.EscapedPath()
	if native {
		if known, ok := nativeRoutes[path]; ok {
			return known
		}
		switch {
		case strings.HasPrefix(path, client.RoutesOfOperators):
			return routeSys
		case strings.HasPrefix(path, routesOfPolicies):
			return routePolicy
		}
		return routeWrite
	}
	switch path {
	case client.WireSecrets:
		if q := r.URL.RawQuery; q == "action=get" || q == "action=list" {
			return routeWireRead
		}
		return routeWireWrite
	case client.WireMetadata:
		return routeWireRead
	case client.WirePolicy:
		return routeWirePolicy
	case client.WireEncrypt, client.WireDecrypt:
		return routeWireCipher
	case client.WireRecover, client.WireRestore, client.WireVerify:
		return routeWireOperator
	}
	return routeOther
}

const routesOfPolicies = "/v1/policies/"

// statuses are those that answers have; a health route may be asked for any
// other one.
var statuses = [...]int{200, 400, 401, 403, 404, 405, 409, 410, 412, 413, 428, 429, statusStandby, statusUnhealthy, 500, 501, 503, 504, 507, statusRemoved}

// figures counts answers. Safe for concurrent use.
type figures struct {
	answers [routes][len(statuses) + 1]atomic.Uint64
	took    [routes]measure.Histogram
}

func (f *figures) note(r route, status int, took time.Duration) {
	at := len(statuses)
	for i, s := range statuses {
		if s == status {
			at = i
			break
		}
	}
	f.answers[r][at].Add(1)
	f.took[r].Observe(took)
}

// observed remembers the status of an answer on its way.
type observed struct {
	http.ResponseWriter
	status int
}

func (a *observed) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *observed) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController, and for inner.
func (a *observed) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// inner is the server's own writer: http.MaxBytesReader tells that one when a
// body is too large, so that the rest is not read.
func inner(w http.ResponseWriter) http.ResponseWriter {
	if a, ok := w.(*observed); ok {
		return a.ResponseWriter
	}
	return w
}

var pool = sync.Pool{New: func() any { return new(observed) }}

// counted has do answer r, and counts the answer. One that never came, because
// the client went away or the handler failed, counts as "other".
func (s *Server) counted(w http.ResponseWriter, r *http.Request, native bool, do http.HandlerFunc) {
	begun := time.Now()
	a := pool.Get().(*observed)
	*a = observed{ResponseWriter: w}
	defer func() {
		s.figures.note(routeOf(r, native), a.status, time.Since(begun))
		*a = observed{}
		pool.Put(a)
	}()
	do(a, r)
}

// Stats are figures of the requests at this server since it started.
type Stats struct {
	Routes []RouteStats // all that there are, asked for or not
	Lanes  []LaneStats
}

// RouteStats are those of one kind of request.
type RouteStats struct {
	Route   string
	Answers []Answers // by status; those that there were
	Took    measure.Distribution
}

// Answers counts those of one status, "other" for what has no name.
type Answers struct {
	Code  string
	Count uint64
}

// LaneStats are of requests that share their places; see admission.
type LaneStats struct {
	Lane             string
	Running, Waiting int    // now
	Refused          uint64 // so far, because too many ran or waited
}

// Stats returns the figures.
func (s *Server) Stats() (stats Stats) {
	for i := range routes {
		r := RouteStats{Route: routeNames[i], Took: s.figures.took[i].Read()}
		for j := range s.figures.answers[i] {
			count := s.figures.answers[i][j].Load()
			if count == 0 {
				continue
			}
			code := "other"
			if j < len(statuses) {
				code = strconv.Itoa(statuses[j])
			}
			r.Answers = append(r.Answers, Answers{code, count})
		}
		stats.Routes = append(stats.Routes, r)
	}
	for _, l := range []struct {
		name string
		of   *admission
	}{{"requests", s.requests}, {"operators", s.operators}, {"watches", s.watches.admission}, {"streams", s.streams}} {
		running, waiting := l.of.load()
		stats.Lanes = append(stats.Lanes, LaneStats{l.name, running, waiting, l.of.refused.Load()})
	}
	return stats
}
