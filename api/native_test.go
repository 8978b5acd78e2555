package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// alone is an API server without a cluster: sealed for ever, which is all that
// tests of connections need.
type alone struct {
	address   string
	authority *devca.Authority
	server    *api.Server
}

type forgetful struct{}

func (forgetful) Append(audit.Record, bool) error { return nil }

type noKeys struct{ store.Keys }

func (noKeys) Sealed() bool { return true }
func (noKeys) HashPath(string) (string, error) {
	return "", secret.Errorf(secret.CodeSealed, "no keys")
}

func newAuthority(t *testing.T, domain string) *devca.Authority {
	t.Helper()
	dir, err := os.MkdirTemp("", "spike") // short: paths of sockets are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := devca.Serve(context.Background(), devca.Options{Dir: filepath.Join(dir, "id"), TrustDomain: domain, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func source(t *testing.T, a *devca.Authority, path string) *identity.Source {
	t.Helper()
	socket, err := a.Add(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.Open(context.Background(), identity.Options{Socket: socket, Timeout: nodetest.Patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newAlone(t *testing.T, prepare func(*api.Server)) *alone {
	t.Helper()
	authority := newAuthority(t, nodetest.Domain)
	domain := []string{nodetest.Domain}
	st := store.New(store.Config{Machine: fsm.New(fsm.Options{}), Keys: noKeys{}, Recorder: forgetful{}, Logger: slog.New(slog.DiscardHandler)})
	server := api.New(api.Config{Store: st, Domains: secret.TrustDomains{Nexus: domain, Pilot: domain}, Logger: slog.New(slog.DiscardHandler),
		Health: func() client.Health {
			return client.Health{Peer: "alone", Formed: true, Current: true, Initialised: true, Leader: true, LeaderKnown: true}
		}})
	if prepare != nil {
		prepare(server)
	}
	l := nodetest.Listen(t, "127.0.0.1:0")
	done := make(chan error, 1)
	config := source(t, authority, "/spike/nexus/alone").Server(nodetest.Anyone, "h2", "http/1.1")
	go func() { done <- server.Serve(l, config) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), nodetest.Patience)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
	})
	return &alone{l.Addr().String(), authority, server}
}

// issued makes a client configuration of one SVID.
func issued(t *testing.T, a *devca.Authority, path string, life time.Duration) (*tls.Config, *x509svid.SVID) {
	t.Helper()
	svid, err := a.Issue(path, life)
	if err != nil {
		t.Fatal(err)
	}
	certificate := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}}, svid
}

// refused expects that no request gets an answer on a connection with config.
func refused(t *testing.T, address, what string, config *tls.Config) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return
	}
	defer conn.Close()
	// In TLS 1.3 the client's side is done before the server has looked at its
	// certificate: the refusal comes with the first read.
	conn.SetDeadline(time.Now().Add(nodetest.Patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", client.RouteHealth)
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
		t.Errorf("%s: answered with %s", what, response.Status)
	}
}

// Invariant 9: who connects with anything but a valid SVID of a trusted domain
// is not even answered.
func TestInvariant9Connections(t *testing.T) {
	t.Parallel()
	a := newAlone(t, nil)
	const path = "/spike/pilot/role/superuser"
	good, _ := issued(t, a.authority, path, time.Hour)
	conn, err := tls.Dial("tcp", a.address, good)
	if err != nil {
		t.Fatalf("a valid identity: %v", err)
	}
	conn.Close()

	refused(t, a.address, "no certificate", &tls.Config{InsecureSkipVerify: true})
	expired, _ := issued(t, a.authority, path, -time.Minute)
	refused(t, a.address, "an expired SVID", expired)
	foreign, _ := issued(t, newAuthority(t, "other.org"), path, time.Hour)
	refused(t, a.address, "another trust domain", foreign)
	namesake, _ := issued(t, newAuthority(t, nodetest.Domain), path, time.Hour)
	refused(t, a.address, "another authority that calls itself the same", namesake)
	for version, name := range map[uint16]string{tls.VersionTLS10: "TLS 1.0", tls.VersionTLS11: "TLS 1.1"} {
		old := good.Clone()
		old.MinVersion, old.MaxVersion = version, version
		refused(t, a.address, name, old)
	}
	// The SDK of SPIKE may speak TLS 1.2.
	twelve := good.Clone()
	twelve.MaxVersion = tls.VersionTLS12
	if conn, err = tls.Dial("tcp", a.address, twelve); err != nil {
		t.Fatalf("TLS 1.2: %v", err)
	}
	conn.Close()
	// No session is resumed: each connection shows its certificate anew.
	cached := good.Clone()
	cached.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		conn, err := tls.Dial("tcp", a.address, cached)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", client.RouteHealth)
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("a TLS session was resumed")
		}
		conn.Close()
	}
	// Plain HTTP.
	plain, err := net.Dial("tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fmt.Fprintf(plain, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", client.RouteHealth)
	if response, err := http.ReadResponse(bufio.NewReader(plain), nil); err == nil && response.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP: answered with %s", response.Status)
	}
}

// A connection that outlives the SVID it was made with serves no more: each
// request looks at the certificate again, and the answer ends the connection.
func TestInvariant9ConnectionOutlivesSVID(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			t.Parallel()
			a := newAlone(t, nil)
			config, svid := issued(t, a.authority, "/workload/web", 2*time.Second)
			var dials int
			transport := &http.Transport{ForceAttemptHTTP2: http2, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				dials++
				config := config.Clone()
				if http2 {
					config.NextProtos = []string{"h2"}
				}
				return (&tls.Dialer{Config: config}).DialContext(ctx, network, address)
			}}
			defer transport.CloseIdleConnections()
			get := func() (*http.Response, error) {
				response, err := (&http.Client{Transport: transport}).Get("https://" + a.address + client.RouteHealth)
				if err == nil {
					io.Copy(io.Discard, response.Body)
					response.Body.Close()
				}
				return response, err
			}
			response, err := get()
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatal(response, err)
			}
			nodetest.Eventually(t, "the SVID ends", func() error {
				if time.Now().Before(svid.Certificates[0].NotAfter.Add(time.Second)) {
					return errors.New("not yet")
				}
				return nil
			})
			if response, err = get(); err != nil {
				t.Fatalf("the connection ended without an answer: %v", err)
			}
			if response.StatusCode != http.StatusForbidden || dials != 1 {
				t.Fatalf("%s over %d connections", response.Status, dials)
			}
			if !http2 && !response.Close {
				t.Error("the answer does not end the connection")
			}
			// The connection is gone, and a new one is refused.
			if response, err := get(); err == nil {
				t.Fatalf("answered with %s after the SVID had ended", response.Status)
			}
			if dials < 2 {
				t.Error("the connection was used on")
			}
		})
	}
}

// Who sends slowly, or nothing, holds a connection no longer than the server's
// patience, and none of it costs the others anything.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	a := newAlone(t, func(s *api.Server) { s.SetTimeouts(patience, 2*patience, 2*patience, patience) })
	config, _ := issued(t, a.authority, "/workload/web", time.Hour)
	for name, sent := range map[string]string{
		"nothing":          "",
		"half a line":      "POST /v1/secrets/get HT",
		"half a header":    "POST /v1/secrets/get HTTP/1.1\r\nHost: x\r\nContent-Le",
		"half a body":      "POST /v1/secrets/get HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"path\":",
		"half a chunk":     "POST /v1/store/secrets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
		"a whole request":  "GET " + client.RouteHealth + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"no TLS handshake": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var conn net.Conn
			var err error
			if name == "no TLS handshake" {
				conn, err = net.Dial("tcp", a.address)
			} else {
				conn, err = tls.Dial("tcp", a.address, config)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, sent)
			conn.SetReadDeadline(time.Now().Add(nodetest.Patience))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection is still open")
			}
		})
	}
}

// A request too many is refused at once, one identity cannot take all the places
// there are, and operators have places of their own.
func TestOverload(t *testing.T) {
	t.Parallel()
	a := newAlone(t, func(s *api.Server) { s.SetLimits(3, 2, 0, 0) })
	greedy, _ := issued(t, a.authority, "/workload/greedy", time.Hour)
	modest, _ := issued(t, a.authority, "/workload/modest", time.Hour)
	post := func(config *tls.Config, route string) *http.Response {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		response, err := c.Post("https://"+a.address+route, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response
	}
	hold := func(config *tls.Config) net.Conn {
		conn, err := tls.Dial("tcp", a.address, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", client.RouteSecretGet)
		return conn
	}
	becomes := func(config *tls.Config, route string, status int) {
		t.Helper()
		nodetest.Eventually(t, fmt.Sprint(route, " is answered with ", status), func() error {
			r := post(config, route)
			if r.StatusCode != status {
				return errors.New(r.Status)
			}
			if r.Header.Get("Retry-After") != "1" {
				t.Fatal("no Retry-After")
			}
			return nil
		})
	}
	first := hold(greedy)
	hold(greedy)
	becomes(greedy, client.RouteSecretGet, http.StatusTooManyRequests)
	becomes(modest, client.RouteSecretGet, http.StatusServiceUnavailable) // another identity is heard: this peer is sealed
	hold(modest)
	becomes(modest, client.RouteSecretGet, http.StatusTooManyRequests) // all places are taken
	if r := post(greedy, client.RouteHealth); r.StatusCode != http.StatusMethodNotAllowed {
		t.Fatalf("a route of operators: %s", r.Status)
	}
	io.WriteString(first, "{}")
	becomes(greedy, client.RouteSecretGet, http.StatusServiceUnavailable)
}

// What one request may be.
func TestRequestLimits(t *testing.T) {
	t.Parallel()
	a := newAlone(t, nil)
	config, _ := issued(t, a.authority, "/workload/web", time.Hour)
	ask := func(request string, rest io.Reader) (*http.Response, string) {
		t.Helper()
		conn, err := tls.Dial("tcp", a.address, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(nodetest.Patience))
		go func() {
			io.WriteString(conn, request)
			if rest != nil {
				io.Copy(conn, rest)
			}
		}()
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%.60q: %v", request, err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, string(body)
	}
	if r, _ := ask("GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 32<<10)+"\r\n\r\n", nil); r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 32 KiB: %s", r.Status)
	}
	if r, _ := ask("GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", nil); r.StatusCode != http.StatusBadRequest {
		t.Errorf("NUL in the target: %s", r.Status)
	}
	// A length that is too much is refused before a byte of the body is there.
	r, body := ask(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", client.RouteSecretPut, api.DefaultBodyLimit+1), nil)
	if r.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(body, `"too_large"`) {
		t.Errorf("a body that is too long: %s %s", r.Status, body)
	}
	// Without a length it is read to the limit and no further, though it never ends.
	r, body = ask(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", client.RouteSecretPut), endless{})
	if r.StatusCode != http.StatusRequestEntityTooLarge || !r.Close {
		t.Errorf("a body without end: %s %s", r.Status, body)
	}
	// "OPTIONS *" is answered by us, not by net/http.
	if r, body = ask("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", nil); r.StatusCode != http.StatusServiceUnavailable || body != `{"err":"state_not_ready"}` {
		t.Errorf("OPTIONS *: %s %s", r.Status, body)
	}
	// The absolute form names the same route; a request smuggled with two lengths is none.
	if r, _ = ask("GET https://x"+client.RouteHealth+" HTTP/1.1\r\nHost: y\r\n\r\n", nil); r.StatusCode != http.StatusOK {
		t.Errorf("absolute form: %s", r.Status)
	}
	if r, _ = ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", nil); r.StatusCode != http.StatusBadRequest {
		t.Errorf("two lengths: %s", r.Status)
	}
}

// endless sends chunks for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	return copy(p, "10\r\n"+strings.Repeat(" ", 16)+"\r\n"), nil
}

// While there are no keys: native routes say so; health and status answer.
func TestNativeSealed(t *testing.T) {
	t.Parallel()
	a := newAlone(t, nil)
	config, _ := issued(t, a.authority, "/spike/pilot/role/superuser", time.Hour)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer c.CloseIdleConnections()
	for route, body := range map[string]string{
		client.RouteSecretPut: `{"path":"a","values":{}}`, client.RouteSecretGet: `{"path":"a"}`, client.RouteSecretList: `{}`,
		client.RouteSecretDelete: `{"path":"a"}`, client.RouteSecretUndelete: `{"path":"a"}`, client.RouteSecretDestroy: `{"path":"a"}`,
		client.RouteSecretPurge: `{"path":"a"}`, client.RouteSecretMetadata: `{"path":"a"}`, client.RoutePolicyPut: `{"name":"a"}`,
		client.RoutePolicyGet: `{"name":"a"}`, client.RoutePolicyDelete: `{"name":"a"}`, client.RoutePolicyList: `{}`,
	} {
		response, err := c.Post("https://"+a.address+route, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var failure client.Failure
		err = json.NewDecoder(response.Body).Decode(&failure)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusServiceUnavailable || failure.Code != secret.CodeSealed ||
			response.Header.Get("Retry-After") != "1" || failure.Request != response.Header.Get(client.HeaderRequestID) {
			t.Errorf("%s: %s %+v %v", route, response.Status, failure, err)
		}
	}
	for given, want := range map[string]int{"1": http.StatusServiceUnavailable, "0": http.StatusBadRequest, "-1": http.StatusBadRequest,
		"1s": http.StatusBadRequest, "99999999999": http.StatusBadRequest} {
		r, err := http.NewRequest(http.MethodPost, "https://"+a.address+client.RouteSecretGet, strings.NewReader(`{"path":"a"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(client.HeaderTimeout, given)
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %s: %s", client.HeaderTimeout, given, response.Status)
		}
	}
}

// Our client refuses what JSON would change, before anything is sent.
func TestClientRefusesInvalidUTF8(t *testing.T) {
	t.Parallel()
	c, err := client.New(client.Config{Addresses: []string{"127.0.0.1:1"}, TLS: &tls.Config{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(context.Background(), "a", map[string]string{"k": "\xff"}, nil); secret.CodeOf(err) != secret.CodeInvalid {
		t.Fatal(err)
	}
}

// FuzzDecode: whatever decodes has a form that cannot be read in two ways.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"path":"a","values":{"k":"v"}}`, `{"path":"a","PATH":"b"}`, `{"a":[{"b":1},{"b":2}]}`, `{"k":"\ud83d\udd11"}`,
		`{"k":"\ud800"}`, `{"values":{"a":"1","A":"2"}}`, `[[[[[[[[[[`, `{"a":1}{}`, `nul`, `{"operations":[{"op":"put","path":"a","values":{"a":"1","A":"2"}},{"op":"purge","OP":"put"}]}`, "{\"\xff\":1}", `{"ver\u017fions":[],"versions":[]}`, `{"\\u":"\\ud800"}`} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, strict bool) {
		sent := bytes.Clone(body)
		var put client.PutRequest
		err := api.Decode(body, &put, strict)
		if !bytes.Equal(body, sent) {
			t.Fatal("the body was changed")
		}
		var versions client.VersionsRequest
		api.Decode(body, &versions, strict)
		var policy client.Policy
		api.Decode(body, &policy, strict)
		var transaction client.TransactRequest
		api.Decode(body, &transaction, strict)
		if err != nil {
			if secret.CodeOf(err) != secret.CodeInvalid {
				t.Fatalf("an error of code %q", secret.CodeOf(err))
			}
			return
		}
		if !json.Valid(body) {
			t.Fatal("what is not JSON was decoded")
		}
		// Decoding is lossless: reading what was written gives the same again.
		again, err := json.Marshal(put)
		if err != nil {
			t.Fatal(err)
		}
		var second client.PutRequest
		if err := api.Decode(again, &second, true); err != nil {
			t.Fatalf("%s decoded to %s, which is refused: %v", body, again, err)
		}
		if second.Path != put.Path || len(second.Values) != len(put.Values) {
			t.Fatalf("%s: %+v became %+v", body, put, second)
		}
		for k, v := range put.Values {
			if second.Values[k] != v {
				t.Fatalf("%s: %+v became %+v", body, put, second)
			}
		}
		// No key twice anywhere, by a walk of its own.
		walk := json.NewDecoder(bytes.NewReader(body))
		walk.UseNumber()
		if twice(walk) {
			t.Fatalf("%s has a key twice", body)
		}
	})
}

// twice walks one value.
func twice(d *json.Decoder) bool {
	token, err := d.Token()
	if err != nil {
		return false
	}
	keys := map[string]bool{}
	switch token {
	case json.Delim('{'):
		for d.More() {
			key, _ := d.Token()
			if keys[key.(string)] {
				return true
			}
			keys[key.(string)] = true
			if twice(d) {
				return true
			}
		}
		d.Token()
	case json.Delim('['):
		for d.More() {
			if twice(d) {
				return true
			}
		}
		d.Token()
	}
	return false
}

func FuzzParseWriteID(f *testing.F) {
	for _, s := range []string{"", "0123456789abcdef0123456789abcdef.7", "0123.7", ".", "00000000000000000000000000000000.1", "0123456789abcdef0123456789abcdef.", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := api.ParseWriteID(s)
		if err != nil {
			if w != (store.WriteID{}) || secret.CodeOf(err) != secret.CodeInvalid {
				t.Fatalf("%q: %+v %v", s, w, err)
			}
			return
		}
		if s == "" {
			if w != (store.WriteID{}) {
				t.Fatal("an id from nothing")
			}
			return
		}
		id, index, _ := strings.Cut(s, ".")
		if w.ID == ([16]byte{}) || fmt.Sprintf("%x", w.ID) != strings.ToLower(id) || fmt.Sprint(w.Index) != strings.TrimLeft(index[:len(index)-1], "0")+index[len(index)-1:] {
			t.Fatalf("%q was read as %+v", s, w)
		}
	})
}

// FuzzParseKey: a key is taken as it is or not at all, and equal keys only give
// equal ids.
func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"", "a", "order 7", "é", "a\tb", strings.Repeat("x", 129)} {
		f.Add(s, "7")
	}
	f.Fuzz(func(t *testing.T, key, index string) {
		w, err := api.ParseKey(key, []string{index})
		if err != nil {
			if w != (store.WriteID{}) || secret.CodeOf(err) != secret.CodeInvalid {
				t.Fatalf("%q: %+v %v", key, w, err)
			}
			return
		}
		if !w.Keyed || len(key) == 0 || len(key) > 128 || strings.Trim(key, "\x00\x7f") != key {
			t.Fatalf("%q was read as %+v", key, w)
		}
		if other, err := api.ParseKey("x"+key, []string{index}); err == nil && other.ID == w.ID {
			t.Fatal("two keys, one id")
		}
	})
}
