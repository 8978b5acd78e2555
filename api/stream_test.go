package api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

const (
	streamChunk = 64 << 10
	streamHead  = 57
	octets      = "application/octet-stream"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// whole reads a stream of the client's.
func whole(answer io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return io.ReadAll(answer)
}

func encrypted(t *testing.T, c *client.Client, plain []byte) []byte {
	t.Helper()
	sealed, err := whole(c.EncryptStream(context.Background(), bytes.NewReader(plain)))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// Streams of any length come back, through any peers, both protocols and both roles that may use the cipher; what is
// wrong is told as everywhere when it is seen at once, and breaks the answer off when it is seen later.
func TestStreams(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	one, other := c.Client(callers["lite"], 0), c.Client(nodetest.Role("superuser"), 1, 2)
	for _, n := range []int{0, 1, streamChunk, 5*streamChunk + 17, 4 << 20} {
		plain := random(n)
		got, err := whole(other.DecryptStream(ctx, iotest.HalfReader(bytes.NewReader(encrypted(t, one, plain)))))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes became %d, %v", n, len(got), err)
		}
	}

	plain := random(40 * streamChunk)
	sealed := encrypted(t, one, plain)
	altered := func(at int) []byte {
		b := bytes.Clone(sealed)
		b[at] ^= 1
		return b
	}
	// Seen with the first chunk.
	for about, body := range map[string][]byte{"nothing": nil, "text": []byte("not a stream at all"), "damaged": altered(streamHead + 100), "a header": sealed[:streamHead]} {
		if _, err := whole(one.DecryptStream(ctx, bytes.NewReader(body))); secret.CodeOf(err) != secret.CodeUndecrypted {
			t.Errorf("%s: %v", about, err)
		}
	}
	// Seen later: what came is a beginning, and known to be no more.
	for about, body := range map[string][]byte{"damaged": altered(len(sealed) - 1), "cut": sealed[:len(sealed)-1], "cut between chunks": sealed[:streamHead+30*(streamChunk+16)], "more": append(bytes.Clone(sealed), 0)} {
		got, err := whole(one.DecryptStream(ctx, bytes.NewReader(body)))
		if secret.CodeOf(err) != secret.CodeUnavailable || !bytes.HasPrefix(plain, got) || len(got) == len(plain) {
			t.Errorf("%s: %d bytes, %v", about, len(got), err)
		}
		for _, http2 := range []bool{false, true} {
			response, err := httpClient(t, c, callers["lite"], http2).Post(c.Address(0)+client.RouteCipherDecrypt, octets, bytes.NewReader(body))
			if err != nil {
				continue // broken off before the client looked at the head
			}
			got, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err == nil || response.ProtoMajor == 2 != http2 || !bytes.HasPrefix(plain, got) {
				t.Errorf("%s, %s: %s, %d bytes, %v", about, response.Proto, response.Status, len(got), err)
			}
		}
	}
	// Over HTTP/2, and while the body is still coming: the answer to a chunk is there before the body's end.
	for _, http2 := range []bool{false, true} {
		body, feed := io.Pipe()
		request, err := http.NewRequest(http.MethodPost, c.Address(2)+client.RouteCipherEncrypt, body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", octets)
		go feed.Write(plain[:streamChunk+1])
		response, err := httpClient(t, c, callers["lite"], http2).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(response.Body, make([]byte, streamHead+streamChunk+16)); err != nil {
			t.Fatal(err)
		}
		feed.Close()
		if rest, err := io.ReadAll(response.Body); err != nil || len(rest) != 1+16 {
			t.Errorf("%d bytes, %v", len(rest), err)
		}
		response.Body.Close()
	}
	for about, q := range map[string]struct {
		caller, method, route, kind string
		status                      int
	}{
		"a stranger":    {"web", http.MethodPost, client.RouteCipherEncrypt, octets, http.StatusForbidden},
		"a stranger's":  {"web", http.MethodPost, client.RouteCipherDecrypt, octets, http.StatusForbidden},
		"another kind":  {"lite", http.MethodPost, client.RouteCipherEncrypt, "application/json", http.StatusBadRequest},
		"a query":       {"lite", http.MethodPost, client.RouteCipherEncrypt + "?a=b", octets, http.StatusBadRequest},
		"a method":      {"lite", http.MethodPut, client.RouteCipherEncrypt, octets, http.StatusMethodNotAllowed},
		"another route": {"lite", http.MethodPost, client.RouteCipherEncrypt + "/", octets, http.StatusBadRequest},
	} {
		request, err := http.NewRequest(q.method, c.Address(0)+q.route, bytes.NewReader(plain))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", q.kind)
		response, err := httpClient(t, c, callers[q.caller], false).Do(request)
		if err != nil {
			t.Errorf("%s: %v", about, err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != q.status {
			t.Errorf("%s: %s", about, response.Status)
		}
	}
	if answer := http10(t, c.Address(0), c.Source(callers["lite"]).Client(nodetest.Anyone)); !strings.Contains(answer, " 400 ") {
		t.Errorf("HTTP/1.0: %s", answer)
	}
	// On record once each, before the answer; refusals, too.
	if n := records(t, c, `"op":"cipher.encrypt"`, `"decision":"deny"`); n != 1 {
		t.Errorf("%d refusals on record", n)
	}
}

func http10(t *testing.T, address string, config *tls.Config) string {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.0\r\nContent-Type: %s\r\nContent-Length: 1\r\n\r\nx", client.RouteCipherEncrypt, octets)
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// records counts the lines of all audit logs that have all of the words.
func records(t *testing.T, c *nodetest.Cluster, words ...string) (n int) {
	t.Helper()
	for i := range 3 {
		files, _ := filepath.Glob(filepath.Join(c.DataDir(i), "audit", "*.jsonl"))
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
		lines:
			for line := range strings.Lines(string(text)) {
				for _, w := range words {
					if !strings.Contains(line, w) {
						continue lines
					}
				}
				n++
			}
		}
	}
	return n
}

func exactly(text string) secret.Pattern { return secret.Pattern{Kind: secret.Exact, Text: text} }

// underWay is a stream of which a chunk went in and came out, and which waits for more.
type underWay struct {
	feed   *io.PipeWriter
	answer io.ReadCloser
	done   chan struct{}
	err    error // what it ended with, when done
}

func begin(t *testing.T, c *client.Client) *underWay {
	t.Helper()
	body, feed := io.Pipe()
	go feed.Write(make([]byte, streamChunk+1))
	answer, err := c.EncryptStream(context.Background(), body)
	if err == nil {
		_, err = io.ReadFull(answer, make([]byte, streamHead+streamChunk+16))
	}
	if err != nil {
		t.Fatal(err)
	}
	u := &underWay{feed: feed, answer: answer, done: make(chan struct{})}
	t.Cleanup(func() { feed.Close(); answer.Close() })
	go func() {
		_, u.err = io.Copy(io.Discard, answer)
		close(u.done)
	}()
	return u
}

// broke feeds the stream until it breaks.
func (u *underWay) broke(t *testing.T) {
	t.Helper()
	go func() {
		for {
			if _, err := u.feed.Write(make([]byte, streamChunk)); err != nil {
				return
			}
		}
	}()
	select {
	case <-u.done:
		if secret.CodeOf(u.err) != secret.CodeUnavailable {
			t.Errorf("it ended with %v", u.err)
		}
	case <-time.After(nodetest.Patience):
		t.Fatal("it goes on")
	}
}

// A revocation, and a seal, end streams that were allowed before.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	su := c.Client(nodetest.Role("superuser"))
	if _, err := su.PutPolicy(ctx, client.Policy{Name: "cipher", SPIFFEID: exactly("spiffe://" + nodetest.Domain + callers["web"]),
		Path: exactly(string(secret.SystemCipher)), Permissions: []string{"execute"}}); err != nil {
		t.Fatal(err)
	}
	var streams []*underWay
	for i := range 3 {
		streams = append(streams, begin(t, c.Client(callers["web"], i)))
	}
	kept := begin(t, c.Client(callers["lite"], 0))
	if _, err := su.DeletePolicy(ctx, "cipher"); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		s.broke(t)
	}
	if n := records(t, c, `"op":"cipher.encrypt"`, `"decision":"deny"`); n != 3 {
		t.Errorf("%d of 3 ends on record", n)
	}
	if _, err := kept.feed.Write(make([]byte, 10*streamChunk)); err != nil { // the others' end is not its own
		t.Fatal(err)
	}
	if err := su.Seal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	kept.broke(t)
}

// Streams have places of their own. Who moves nothing loses his; who moves a little in time keeps it, longer than
// the server waits for any other request.
func TestStreamsAreBounded(t *testing.T) {
	const patience, others = 3 * time.Second, 300 * time.Millisecond
	t.Cleanup(api.SetStreamDefaults(3, 2, patience, others)) // not parallel, for that is everybody's
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	quick := func(caller string) *client.Client {
		cl, err := client.New(client.Config{Addresses: []string{c.Address(0)}, TLS: c.Source(callers[caller]).Client(nodetest.Anyone), Patience: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return cl
	}
	lite, su := quick("lite"), quick("superuser")

	// Steady for several times as long as the server's timeouts.
	body, feed := io.Pipe()
	go feed.Write(make([]byte, streamChunk+1))
	answer, err := lite.EncryptStream(context.Background(), body)
	if err != nil {
		t.Fatal(err)
	}
	n := streamChunk + 1
	read := func() {
		if _, err := io.ReadFull(answer, make([]byte, streamChunk+16)); err != nil {
			t.Fatal(err)
		}
	}
	io.ReadFull(answer, make([]byte, streamHead))
	read()
	for begun := time.Now(); time.Since(begun) < 4*others; n += streamChunk {
		go feed.Write(make([]byte, streamChunk))
		read()
	}
	feed.Close()
	if rest, err := io.ReadAll(answer); err != nil || len(rest) != 1+16 {
		t.Fatalf("%d bytes at the end, %v", len(rest), err)
	}
	answer.Close()

	first, second := begin(t, lite), begin(t, lite)
	if _, err := whole(lite.EncryptStream(context.Background(), strings.NewReader("x"))); secret.CodeOf(err) != secret.CodeOverloaded {
		// Those under way may have been cut for standing still by now.
		select {
		case <-first.done:
		case <-second.done:
		default:
			t.Errorf("a third of one identity: %v", err)
		}
	}
	if _, err := whole(su.EncryptStream(context.Background(), strings.NewReader("x"))); err != nil {
		t.Errorf("another identity: %v", err)
	}
	for _, s := range []*underWay{first, second} { // which stand still now
		select {
		case <-s.done:
			if s.err == nil {
				t.Error("one that stood still ended well")
			}
		case <-time.After(nodetest.Patience):
			t.Fatal("one that stands still keeps its place")
		}
	}
	if _, err := whole(lite.EncryptStream(context.Background(), strings.NewReader("x"))); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A peer that cannot is left for one that can, as long as nothing was read of the input.
func TestStreamsGoToAnotherPeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	if err := c.Client(nodetest.Role("superuser"), 1).Seal(context.Background(), "nexus-1"); err != nil {
		t.Fatal(err)
	}
	c.Stop(1)
	plain := random(3 * streamChunk)
	cl := c.Client(callers["lite"], 0, 1, 2)
	got, err := whole(cl.DecryptStream(context.Background(), bytes.NewReader(encrypted(t, cl, plain))))
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	lost := errors.New("the disk is gone")
	if _, err := whole(cl.EncryptStream(context.Background(), io.MultiReader(bytes.NewReader(plain), iotest.ErrReader(lost)))); err == nil {
		t.Error("an input that failed gave a whole stream")
	}
}

// Draining refuses new streams here and lets those under way come to their end.
func TestStreamsOutlastDraining(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	drained := (c.Leader() + 1) % 3
	s := begin(t, c.Client(callers["lite"], drained))
	c.Node(drained).Drain(true)
	impatient, err := client.New(client.Config{Addresses: []string{c.Address(drained)}, TLS: c.Source(callers["lite"]).Client(nodetest.Anyone), Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the drained peer refuses new streams", func() error {
		var refused *secret.Error
		_, err := whole(impatient.EncryptStream(ctx, strings.NewReader("x")))
		if !errors.As(err, &refused) || refused.Reason != client.ReasonDraining {
			return fmt.Errorf("it answered: %w", err)
		}
		return nil
	})
	if _, err := s.feed.Write(make([]byte, 10*streamChunk)); err != nil {
		t.Fatal(err)
	}
	s.feed.Close()
	if <-s.done; s.err != nil {
		t.Errorf("the stream under way: %v", s.err)
	}
}

// A peer that takes a connection and says nothing is left, too, with nothing sent to it.
func TestStreamsLeaveAPeerThatHangs(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	l := tls.NewListener(nodetest.Listen(t, "127.0.0.1:0"), c.Source("/spike/nexus/nexus-9").Server(nodetest.Anyone, "http/1.1"))
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn)
		got <- string(all)
	}()
	t.Cleanup(func() { l.Close() })
	cl, err := client.New(client.Config{Addresses: []string{"https://" + l.Addr().String(), c.Address(0)}, TLS: c.Source(callers["lite"]).Client(nodetest.Anyone),
		Attempt: 500 * time.Millisecond, Patience: nodetest.Patience})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := whole(cl.EncryptStream(context.Background(), strings.NewReader("CANARY")))
	if err != nil || len(sealed) != streamHead+6+16 {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	select {
	case head := <-got:
		if !strings.HasPrefix(head, "POST "+client.RouteCipherEncrypt) || strings.Contains(head, "CANARY") {
			t.Errorf("the peer that hangs was sent %q", head)
		}
	case <-time.After(nodetest.Patience):
		t.Fatal("the connection is kept")
	}
}
