package s3server

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Fault is what a Proxy does to a request.
type Fault string

// The faults.
const (
	SlowDown       Fault = "503 SlowDown"
	Internal       Fault = "500 InternalError"
	Conflict       Fault = "409 ConditionalRequestConflict"
	NotImplemented Fault = "501 NotImplemented"
	Denied         Fault = "403 AccessDenied"
	Locked         Fault = "403 AccessDenied, and why"
	Skewed         Fault = "403 RequestTimeTooSkewed"
	ResetBefore    Fault = "the connection is reset and nothing was done"
	ResetAfter     Fault = "it was done and the connection is reset"
	FailedAfter    Fault = "it was done and the answer is 500" // "failed but persisted"
	TakenAfter     Fault = "it was done and the answer is 412" // as after a retry that the caller knows nothing of
	Hang           Fault = "no answer, and nothing was done"
	HangAfter      Fault = "it was done and there is no answer"
	HangInBody     Fault = "the answer stops half way"
	Torn           Fault = "the answer breaks off half way"
	Short          Fault = "the answer is half of it, and says that this is all"
	Flipped        Fault = "one bit of the answer is another"
	Late           Fault = "it was done and the answer comes seconds later"
	StaleList      Fault = "a list is answered as it was when first asked for"
)

// Rule says which requests meet a fault.
type Rule struct {
	Fault  Fault
	Method string  // GET, PUT, HEAD, DELETE, or LIST; empty: any
	Name   string  // part of the object's name or of the prefix asked for
	Header string  // that the request has
	Skip   int     // so many are spared first
	Times  int     // and then so many meet it; 0: all
	Chance float64 // of each; 0: certain
}

// Proxy is a server with a fault injector in front of it. Requests reach the server as they were signed, with the proxy's
// name as their host.
type Proxy struct {
	*Server
	back  string // the server's address
	next  *http.Transport
	front *httptest.Server
	ended chan struct{} // closed at the end

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	rules []*rule
	lists map[string]*answer // first ones, by request
	deaf  *s3.Client         // that removes what is in the way of a conditional PUT; nil: nothing does
}

type rule struct {
	Rule
	seen, hit int
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// Proxy puts a proxy in front of the server, which does chance from a seed and ends with the test.
func (s *Server) Proxy(t testing.TB, seed uint64, rules ...Rule) *Proxy {
	t.Helper()
	p, err := s.Front("127.0.0.1:0", seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	p.Do(rules...)
	return p
}

// Front is Proxy at an address, which the server's certificate must be good for.
func (s *Server) Front(address string, seed uint64) (*Proxy, error) {
	transport, err := s.transport()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(s.CA)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	server := *s
	server.Address = listener.Addr().String()
	p := &Proxy{Server: &server, back: s.Address, next: transport, ended: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, seed)), lists: map[string]*answer{}}
	p.front = &httptest.Server{Listener: listener, TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
		Config: &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}} // which is full of what clients did not like
	p.front.StartTLS()
	return p, nil
}

// Close ends the proxy, and not the server.
func (p *Proxy) Close() {
	close(p.ended)
	p.front.CloseClientConnections()
	p.front.Close()
	p.next.CloseIdleConnections()
}

// Do replaces the rules.
func (p *Proxy) Do(rules ...Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
	for _, r := range rules {
		p.rules = append(p.rules, &rule{Rule: r})
	}
}

// Add puts rules behind those that there are, and does chance from a seed henceforth. end takes them away again; hit is
// how many requests met one of them so far.
func (p *Proxy) Add(seed uint64, rules ...Rule) (end func(), hit func() int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rng = rand.New(rand.NewPCG(seed, seed))
	var added []*rule
	for _, r := range rules {
		added = append(added, &rule{Rule: r})
	}
	p.rules = append(p.rules, added...)
	end = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.rules = slices.DeleteFunc(p.rules, func(r *rule) bool { return slices.Contains(added, r) })
	}
	return end, func() (n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, r := range added {
			n += r.hit
		}
		return n
	}
}

// IgnoreConditions makes a store of it that heeds no condition of a PUT. Conditions are signed, so that it takes out of their way
// what they would meet.
func (p *Proxy) IgnoreConditions(t testing.TB) {
	client := p.Client(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = client
}

// Hits is how many requests met a fault, and how many of the rules' method and name there were.
func (p *Proxy) Hits() (hit, seen int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rules {
		hit, seen = hit+r.hit, seen+r.seen
	}
	return hit, seen
}

// fault is the first one that a rule has for the request.
func (p *Proxy) fault(r *http.Request) Fault {
	method, name := r.Method, r.URL.Path
	if r.URL.Query().Get("list-type") != "" {
		method, name = "LIST", r.URL.Query().Get("prefix")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, rule := range p.rules {
		if rule.Method != "" && rule.Method != method || !strings.Contains(name, rule.Name) || rule.Header != "" && r.Header.Get(rule.Header) == "" {
			continue
		}
		rule.seen++
		if rule.seen <= rule.Skip || rule.Times > 0 && rule.hit >= rule.Times || rule.Chance > 0 && p.rng.Float64() >= rule.Chance {
			continue
		}
		rule.hit++
		return rule.Fault
	}
	return ""
}

// latest is how late an answer may come.
const latest = 4 * time.Second

// ServeHTTP passes a request on, or not.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	fault := p.fault(req)
	if r, is := refusals[fault]; is && !r.after {
		r.answer(w, req)
		return
	}
	switch fault {
	case ResetBefore:
		reset(w)
	case Hang:
		p.hang(req)
	}
	a, err := p.pass(req)
	if err != nil { // the client went away, or the server did
		panic(http.ErrAbortHandler)
	}
	if r, is := refusals[fault]; is {
		r.answer(w, req)
		return
	}
	body := a.body
	switch fault {
	case ResetAfter:
		reset(w)
	case HangAfter:
		p.hang(req)
	case Short, Torn, HangInBody:
		body = body[:len(body)/2]
	case Flipped:
		if len(body) > 0 {
			p.mu.Lock()
			at := p.rng.IntN(8 * len(body))
			p.mu.Unlock()
			body[at/8] ^= 1 << (at % 8)
		}
	case Late:
		p.mu.Lock()
		late := time.Duration(p.rng.Int64N(int64(latest)))
		p.mu.Unlock()
		select {
		case <-time.After(late):
		case <-p.ended:
			panic(http.ErrAbortHandler)
		}
	case StaleList:
		body = p.first(req, a).body
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if req.Method != http.MethodHead && a.status != http.StatusNoContent {
		size := len(body)
		if fault == Torn || fault == HangInBody {
			size = len(a.body)
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
	}
	w.WriteHeader(a.status)
	w.Write(body)
	switch fault {
	case Torn:
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case HangInBody:
		w.(http.Flusher).Flush()
		p.hang(req)
	}
}

// pass asks the server.
func (p *Proxy) pass(r *http.Request) (*answer, error) {
	p.mu.Lock()
	deaf := p.deaf
	p.mu.Unlock()
	if deaf != nil && r.Header.Get("If-None-Match") != "" {
		bucket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if _, err := deaf.DeleteObject(r.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &name}); err != nil {
			return nil, err
		}
	}
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "https", p.back
	if r.ContentLength == 0 {
		out.Body = nil
	}
	response, err := p.next.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	a := &answer{response.StatusCode, response.Header, body}
	if r.URL.Query().Get("list-type") != "" && a.status == http.StatusOK {
		p.first(r, a)
	}
	return a, nil
}

// first is the first answer to a list request.
func (p *Proxy) first(r *http.Request, a *answer) *answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := r.URL.String()
	if p.lists[key] == nil {
		p.lists[key] = &answer{a.status, a.header, bytes.Clone(a.body)}
	}
	return p.lists[key]
}

// hang waits until the client has gone, or the proxy ends.
func (p *Proxy) hang(r *http.Request) {
	io.Copy(io.Discard, r.Body) // only after it is a client seen to go
	select {
	case <-r.Context().Done():
	case <-p.ended:
	}
	panic(http.ErrAbortHandler)
}

// refusal is an error that a store answers.
type refusal struct {
	status        int
	code, message string
	after         bool // it was done
}

var refusals = map[Fault]refusal{
	SlowDown:       {status: http.StatusServiceUnavailable, code: "SlowDown"},
	Internal:       {status: http.StatusInternalServerError, code: "InternalError"},
	Conflict:       {status: http.StatusConflict, code: "ConditionalRequestConflict"},
	NotImplemented: {status: http.StatusNotImplemented, code: "NotImplemented"},
	Denied:         {status: http.StatusForbidden, code: "AccessDenied"},
	Locked:         {status: http.StatusForbidden, code: "AccessDenied", message: "Access Denied because object protected by object lock."},
	Skewed:         {status: http.StatusForbidden, code: "RequestTimeTooSkewed"},
	FailedAfter:    {status: http.StatusInternalServerError, code: "InternalError", after: true},
	TakenAfter:     {status: http.StatusPreconditionFailed, code: "PreconditionFailed", after: true},
}

func (e refusal) answer(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	body := fmt.Sprintf("<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>%s</Message></Error>", e.code, e.message)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		io.WriteString(w, body)
	}
}

// reset ends a connection rudely.
func reset(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		raw := c.(*tls.Conn).NetConn()
		raw.(*net.TCPConn).SetLinger(0)
		raw.Close()
	}
	panic(http.ErrAbortHandler)
}
