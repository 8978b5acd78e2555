package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata; read the difference before committing it")

// calm is a heartbeat under which nobody is elected anew because a machine is busy: each request of a transcript is sent once.
const calm = 3 * time.Second

// The transcripts in testdata are the SPIKE protocol and the native API as we
// serve them, request by request (their format is described in
// testdata/README.md). They are played
// with a bare HTTP client, so that nothing of ours can make up for a mistake.
func TestWire(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.MaxVersions, cfg.Heartbeat = 3, calm }})
	leader := c.Leader()
	for _, run := range []struct {
		name   string
		peers  []int
		http2  bool
		update bool
	}{
		{"leader", []int{leader}, false, true},
		{"follower", []int{(leader + 1) % 3}, false, false},
		// Each request at another peer than the one before it: what one peer has
		// acknowledged, the next one knows.
		{"every peer in turn over HTTP2", []int{0, 1, 2}, true, false},
	} {
		t.Run(run.name, func(t *testing.T) {
			empty(t, c)
			p := newPlayer(t, c, run.peers, run.http2)
			p.play("testdata/wire.txt", *update && run.update)
			empty(t, c)
			p.play("testdata/native.txt", *update && run.update)
		})
	}
}

// Everything while there are no keys, and the way back with recovery shares.
func TestWireSealed(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.Heartbeat = calm }})
	c.Leader()
	p := newPlayer(t, c, []int{0, 1, 2}, false)
	p.play("testdata/uninitialised.txt", *update)
	health(p, http.StatusNotImplemented)
	c.Bootstrap()
	c.Ready()
	p.play("testdata/recover.txt", *update)
	health(p, http.StatusOK)
	for i := range 3 {
		c.StopKeeper(i)
	}
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		c.Start(i)
	}
	for i := range 3 {
		c.StartKeeper(i) // empty: only the shares help
	}
	c.Leader()
	// A restore is collected by the leader, through whichever peer it comes.
	nodetest.Eventually(t, "a leader that every peer knows", func() error {
		for i := range 3 {
			if s := c.Node(i).Status(context.Background()); s.Leader == "" {
				return fmt.Errorf("peer %d knows none", i+1)
			}
		}
		return nil
	})
	health(p, http.StatusServiceUnavailable)
	p.play("testdata/restore.txt", *update)
	c.Ready()
	p.play("testdata/restored.txt", *update)
	t.Run("no quorum", func(t *testing.T) { noQuorum(t, c) })
}

// noQuorum: a peer left alone says so within a bounded time, and never answers
// from what it knows.
func noQuorum(t *testing.T, c *nodetest.Cluster) {
	c.Stop(1)
	c.Stop(2)
	for line, want := range map[string]string{
		`superuser POST /v1/store/secrets?action=get {"path":"kept"}`:         `503 {"data":null,"err":"state_not_ready"}`,
		`superuser POST /v1/store/secrets {"path":"kept","values":{}}`:        `503 {"err":"state_not_ready"}`,
		`other POST /v1/store/secrets?action=get {"path":"kept"}`:             `503 {"data":null,"err":"state_not_ready"}`,
		`recover POST /v1/operator/recover {}`:                                `503 {"shards":null,"err":"state_not_ready"}`,
		`restore POST /v1/operator/restore {"id":1,"shard":[1]}`:              `503 {"collected":0,"remaining":0,"restored":false,"err":"state_not_ready"}`,
		`lite POST /v1/cipher/encrypt ct=application/octet-stream text`:       `503 {"err":"state_not_ready"}`,
		`bootstrap POST /v1/bootstrap/verify {"nonce":"AA","ciphertext":"A"}`: `400 {"hash":"","err":"api_bad_request"}`,
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			p, begun := newPlayer(t, c, []int{0}, false), time.Now()
			if answer, _ := p.send(line); answer != want {
				t.Errorf("%s, want %s", answer, want)
			}
			if took := time.Since(begun); took > 9*time.Second { // SPIKE's SDK waits 10 s
				t.Errorf("it took %s", took)
			}
		})
	}
}

// health asks every peer; any trusted identity may, and learns nothing of the data.
func health(p *player, status int) {
	p.t.Helper()
	for i := range 3 {
		nodetest.Eventually(p.t, fmt.Sprintf("health %d of peer %d", status, i+1), func() error {
			status := status
			response, err := p.client("other").Get(p.c.Address(i) + client.RouteHealth)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			var h client.Health
			if err := json.NewDecoder(response.Body).Decode(&h); err != nil {
				return err
			}
			want := client.Health{Peer: fmt.Sprint("nexus-", i+1), Formed: true, Current: true, Initialised: status != http.StatusNotImplemented,
				Sealed: status != http.StatusOK, Leader: h.Leader, LeaderKnown: true, Version: node.Version}
			if status == http.StatusOK && !h.Leader {
				status = 473
			}
			if response.StatusCode != status || h != want || (response.Header.Get("Retry-After") == "1") != (status == http.StatusServiceUnavailable) {
				return fmt.Errorf("%s %+v", response.Status, h)
			}
			return nil
		})
	}
}

// A cluster whose setting forbids it gives out no shares on the wire.
func TestWireRecoveryOff(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Configure: func(_ int, cfg *node.Config) { cfg.WireRecovery = false }})
	p := newPlayer(t, c, []int{0}, false)
	if answer, _ := p.send("recover POST /v1/operator/recover {}"); answer != `401 {"shards":null,"err":"access_unauthorized"}` {
		t.Error(answer)
	}
}

// empty removes every secret and policy.
func empty(t *testing.T, c *nodetest.Cluster) {
	t.Helper()
	su, ctx := c.Client(nodetest.Role("superuser")), context.Background()
	list, err := su.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list.Keys {
		if _, err := su.Purge(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	policies, err := su.ListPolicies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, policy := range policies {
		if _, err := su.DeletePolicy(ctx, policy.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// callers are the names that transcripts use.
var callers = map[string]string{
	"superuser": nodetest.Role("superuser"), "admin": nodetest.Role("admin"), "operator": nodetest.Role("operator"),
	"recover": nodetest.Role("recover"), "restore": nodetest.Role("restore"), "bootstrap": "/spike/bootstrap",
	"lite": "/spike/workload/role/lite", "web": "/workload/web", "other": "/workload/other",
	"nexus": "/spike/nexus/nexus-9", "keeper": "/spike/keeper/keeper-9",
}

// player plays transcripts against some peers of a cluster, in turn.
type player struct {
	t       *testing.T
	c       *nodetest.Cluster
	peers   []int
	http2   bool
	sent    int
	clients map[string]*http.Client
	kept    map[string]string // values kept from answers, by name
	header  http.Header       // of the last answer
}

func newPlayer(t *testing.T, c *nodetest.Cluster, peers []int, http2 bool) *player {
	p := &player{t: t, c: c, peers: peers, http2: http2, clients: map[string]*http.Client{}, kept: map[string]string{}}
	for i := range 6 { // write ids: ${id1}, and in capitals ${ID1}
		id := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
		p.kept[fmt.Sprint("id", i+1)], p.kept[fmt.Sprint("ID", i+1)] = id, strings.ToUpper(id)
	}
	return p
}

// httpClient makes a client that does nothing but mTLS.
func httpClient(t testing.TB, c *nodetest.Cluster, path string, http2 bool) *http.Client {
	var alpn []string
	if http2 {
		alpn = []string{"h2"}
	}
	transport := &http.Transport{TLSClientConfig: c.Source(path).Client(nodetest.Anyone, alpn...), ForceAttemptHTTP2: http2, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: nodetest.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (p *player) client(caller string) *http.Client {
	if p.clients[caller] == nil {
		path, ok := callers[caller]
		if !ok {
			p.t.Fatalf("no caller %q", caller)
		}
		p.clients[caller] = httpClient(p.t, p.c, path, p.http2)
	}
	return p.clients[caller]
}

// play sends what follows ">" and holds the answers against what follows "<".
func (p *player) play(file string, rewrite bool) {
	p.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	answer, raw, rows := "", []byte(nil), 0
	for n, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			rows++
			out = append(out, line)
			answer, raw = p.send(line[2:])
			if rewrite {
				out = append(out, "< "+answer)
			}
			continue
		case strings.HasPrefix(line, "< "):
			if rewrite {
				continue
			}
			if line[2:] != answer {
				p.t.Errorf("%s:%d: answered\n  %s\nwant\n  %s", file, n+1, answer, line[2:])
			}
		case strings.HasPrefix(line, "= "):
			p.keep(line[2:], raw)
		}
		out = append(out, line)
	}
	p.t.Logf("%s: %d requests", file, rows)
	if rewrite {
		if err := os.WriteFile(file, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// send sends one request, written "caller METHOD target [ct=type] [body]".
func (p *player) send(line string) (answer string, raw []byte) {
	p.t.Helper()
	words := strings.SplitN(line, " ", 4)
	if len(words) < 3 {
		p.t.Fatalf("not a request: %s", line)
	}
	body, contentType := "", "application/json"
	if len(words) == 4 {
		body = words[3]
	}
	header := http.Header{}
	for strings.HasPrefix(body, "ct=") || strings.HasPrefix(body, "h:") {
		var word string
		word, body, _ = strings.Cut(body, " ")
		name, value, _ := strings.Cut(strings.TrimPrefix(word, "h:"), "=")
		value = p.expand(strings.ReplaceAll(value, "+", " "))
		if name == "ct" {
			contentType = value
			continue
		}
		header.Add(name, value)
	}
	var sent io.Reader = strings.NewReader(p.expand(body))
	if rest, ok := strings.CutPrefix(body, "chunked "); ok { // without Content-Length
		sent = io.MultiReader(strings.NewReader(p.expand(rest)))
	}
	peer := p.peers[p.sent%len(p.peers)]
	p.sent++
	request, err := http.NewRequest(words[1], p.c.Address(peer)+words[2], sent)
	if err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
	request.Header = header
	request.Header.Set("Content-Type", contentType)
	response, err := p.client(words[0]).Do(request)
	if err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
	defer response.Body.Close()
	if raw, err = io.ReadAll(response.Body); err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
	if want := map[bool]int{true: 2, false: 1}[p.http2]; response.ProtoMajor != want {
		p.t.Fatalf("%s: answered in HTTP/%d", line, response.ProtoMajor)
	}
	p.header = response.Header
	p.headers(line, response)
	answer = strconv.Itoa(response.StatusCode)
	if ct := response.Header.Get("Content-Type"); ct != "application/json" {
		answer += " " + ct
	}
	return answer + " " + p.show(raw), raw
}

// headers checks what is the same for all answers.
func (p *player) headers(line string, r *http.Response) {
	p.t.Helper()
	want := map[string]string{}
	if r.Header.Get("Content-Type") == "application/json" {
		want = map[string]string{"Cache-Control": "no-store, no-cache, must-revalidate, private", "Pragma": "no-cache", "Expires": "0"}
	}
	if r.StatusCode == http.StatusServiceUnavailable {
		want["Retry-After"] = "1"
	}
	for name, value := range want {
		if r.Header.Get(name) != value {
			p.t.Errorf("%s: header %s is %q", line, name, r.Header.Get(name))
		}
	}
	if len(r.Header.Get("Spike-Request-Id")) != 24 || r.Header.Get("Spike-Index") == "" {
		p.t.Errorf("%s: headers %v", line, r.Header)
	}
}

var (
	placeholder = regexp.MustCompile(`\$\{([^}]*)\}`)
	timestamp   = regexp.MustCompile(`"(20\d\d-[^"]*Z)"`)
	index       = regexp.MustCompile(`"index":[0-9]+`)
	requestID   = regexp.MustCompile(`"requestId":"[0-9a-f]{24}"`)
)

// expand replaces ${name} by what was kept, ${x*100} by 100 times x and
// ${base64*100} by the base64 of 100 bytes.
func (p *player) expand(s string) string {
	return placeholder.ReplaceAllStringFunc(s, func(found string) string {
		name := found[2 : len(found)-1]
		if text, count, ok := strings.Cut(name, "*"); ok {
			n, err := strconv.Atoi(count)
			if err != nil {
				p.t.Fatalf("%s: %v", found, err)
			}
			if text == "base64" {
				return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'a'}, n))
			}
			unquoted, err := strconv.Unquote(`"` + text + `"`)
			if err != nil {
				p.t.Fatalf("%s: %v", found, err)
			}
			return strings.Repeat(unquoted, n)
		}
		value, ok := p.kept[name]
		if !ok {
			p.t.Fatalf("%s was not kept", found)
		}
		return value
	})
}

// keep keeps fields of the last answer under names: "name=field …"; the field
// "*" is the whole answer.
func (p *player) keep(line string, raw []byte) {
	for _, item := range strings.Fields(line) {
		name, field, _ := strings.Cut(item, "=")
		if header, ok := strings.CutPrefix(field, "header:"); ok {
			p.kept[name] = p.header.Get(header)
			continue
		}
		if field == "*" {
			p.kept[name] = string(raw)
			continue
		}
		var at any
		if err := json.Unmarshal(raw, &at); err != nil {
			p.t.Fatalf("%s: %v", item, err)
		}
		for _, key := range strings.Split(field, ".") {
			object, _ := at.(map[string]any)
			at = object[key]
		}
		if text, ok := at.(string); ok {
			p.kept[name] = text
			continue
		}
		encoded, err := json.Marshal(at)
		if err != nil || at == nil {
			p.t.Fatalf("%s: no such field: %v", item, err)
		}
		p.kept[name] = string(encoded)
	}
}

// runs writes a byte that is there more than 40 times in a row as ${x*41}.
func runs(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		n := 1
		for i+n < len(s) && s[i+n] == s[i] {
			n++
		}
		if n > 40 {
			fmt.Fprintf(&b, "${%c*%d}", s[i], n)
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// show writes an answer so that it is the same each time and fits a line.
func (p *player) show(raw []byte) string {
	if len(raw) == 0 {
		return "(empty)"
	}
	if !utf8.Valid(raw) || bytes.IndexByte(raw, 0) >= 0 {
		return fmt.Sprintf("(%d bytes)", len(raw))
	}
	s := timestamp.ReplaceAllString(string(raw), `"TIME"`)
	s = runs(requestID.ReplaceAllString(index.ReplaceAllString(s, `"index":N`), `"requestId":"ID"`))
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) == nil {
		names := make([]string, 0, len(fields))
		for name := range fields {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names { // what is random or long
			value := runs(string(fields[name]))
			switch {
			case value == "null":
			case name == "shards":
				s = strings.Replace(s, value, regexp.MustCompile(`\[[0-9,]*\]`).ReplaceAllStringFunc(value, func(list string) string {
					return fmt.Sprintf("[%d numbers]", strings.Count(list, ",")+1)
				}), 1)
			case name == "nonce", name == "ciphertext", len(value) > 2000:
				var text string
				if json.Unmarshal(fields[name], &text) == nil {
					if decoded, err := base64.StdEncoding.DecodeString(text); err == nil {
						s = strings.Replace(s, value, fmt.Sprintf("(base64 of %d bytes)", len(decoded)), 1)
					}
				}
			}
		}
	}
	if strings.HasSuffix(s, "\n") {
		return strings.TrimSuffix(s, "\n") + `\n`
	}
	return s
}
