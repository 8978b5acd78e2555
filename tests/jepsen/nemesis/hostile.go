package nemesis

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// growth is how much more memory a peer may take under attack, in bytes: 64 requests of one identity at once, each with
// a body of 1 MiB and what becomes of it, and its connections.
const growth = 256 << 20

// pause is how long an attacker waits before it connects again: this is no contest for the processors, which the attackers, the
// peers and what joins them share here.
const pause = 500 * time.Millisecond

// attack is one way to be hostile, on a connection of its own.
type attack struct {
	name     string
	copies   int  // at each peer at once
	strange  bool // also by who has no identity
	unshaken bool // by who shows none: it needs no handshake
	alpn     string
	// do returns nil once the peer has refused it or time is up. errServed says that the peer did as it was told.
	do func(ctx context.Context, c net.Conn) error
}

var errServed = errors.New("the peer did as it was told")

const put = "POST " + client.RouteSecretPut + " HTTP/1.1\r\nHost: nexus\r\nContent-Type: application/json\r\n"

// attacks end only with the connection, or when the peer has had enough.
var attacks = []attack{
	{name: "1 GiB declared", copies: 1, strange: true, do: ask(put+"Content-Length: 1073741824\r\n\r\n", `{"path":"hostile","values":{"v":"`, "x")},
	{name: "JSON without end", copies: 1, strange: true, do: ask(put+"Transfer-Encoding: chunked\r\n\r\n", "10\r\n{\"path\":\"hostile\r\n", "1000\r\n"+strings.Repeat("x", 4096)+"\r\n")},
	{name: "JSON that is deep", copies: 1, strange: true, do: ask(put+"Content-Length: 1048576\r\n\r\n", "", "[")},
	{name: "streams that are reset", copies: 1, strange: true, alpn: "h2", do: reset},
	{name: "slow headers", copies: 20, do: slowly(put + "X: ")},
	{name: "idle connections", copies: 50, do: slowly("")},
	{name: "slow handshakes", copies: 20, unshaken: true, do: slowly("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")},
	{name: "connections without a handshake", copies: 50, unshaken: true, do: slowly("")},
}

// ask sends a request with a body that goes on with more until it is answered.
func ask(head, body, more string) func(context.Context, net.Conn) error {
	return func(_ context.Context, c net.Conn) error {
		go func() { // the answer may come before all is sent; ends with the connection
			_, err := io.WriteString(c, head+body)
			for sent := len(body); err == nil && sent < 1<<30; sent += len(more) * (1 + 4096/len(more)) {
				_, err = io.WriteString(c, strings.Repeat(more, 1+4096/len(more)))
			}
		}()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			return fmt.Errorf("%w: %s", errServed, resp.Status)
		}
		return nil
	}
}

// slowly sends a little at once, and then a byte a second.
func slowly(begin string) func(context.Context, net.Conn) error {
	return func(ctx context.Context, c net.Conn) error {
		if _, err := io.WriteString(c, begin); err != nil {
			return err
		}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if begin == "" {
				continue
			}
			if _, err := io.WriteString(c, "x"); err != nil {
				return nil // it was cut off
			}
		}
	}
}

// reset opens streams and resets them at once, as fast as it can: the peer has to end the connection.
func reset(_ context.Context, c net.Conn) error {
	out := bufio.NewWriter(c)
	if _, err := out.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(out, c)
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "nexus"}, {":path", client.RouteSecretList}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil { // no state from one request to the next
			return err
		}
	}
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	go io.Copy(io.Discard, c) // ends with the connection
	for id := uint32(1); id < 4000; id += 2 {
		err := errors.Join(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndHeaders: true}),
			framer.WriteRSTStream(id, http2.ErrCodeCancel), out.Flush())
		if err != nil {
			return nil // it was cut off
		}
	}
	return nil
}

// onslaught is what became of attacks.
type onslaught struct {
	mu    sync.Mutex // guards the rest
	done  map[string]int
	last  map[string]error
	wrong error
	peak  map[int]int // bytes in memory, by peer
}

// attacked has one attack made again and again on one peer.
func (o *onslaught) attacked(ctx context.Context, a attack, who string, config *tls.Config, address string) {
	try := func() error {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if !a.unshaken {
			config := config.Clone()
			if a.alpn != "" {
				config.NextProtos = []string{a.alpn}
			}
			shaken := tls.Client(c, config)
			if err := shaken.HandshakeContext(ctx); err != nil {
				return err
			}
			c = shaken
		}
		return a.do(ctx, c)
	}
	name := who + ": " + a.name
	for ctx.Err() == nil {
		err := try()
		var alert *net.OpError // what the peer says of a handshake without an SVID
		o.mu.Lock()
		switch {
		case errors.Is(err, errServed):
			o.wrong = fmt.Errorf("%s, at %s: %w", name, address, err)
		case err == nil, who == nobody && errors.As(err, &alert) && alert.Op == "remote error":
			o.done[name]++
		default:
			o.last[name] = err
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

const nobody, somebody = "without an identity", "with an identity that may do nothing"

// hostile attacks every peer in every way at once.
func hostile(ctx context.Context, t *Target) (Harm, error) {
	source, err := t.Source(ctx, "/workload/hostile")
	if err != nil {
		return Harm{}, err
	}
	configs := map[string]*tls.Config{somebody: source.Client(func(spiffeid.ID) error { return nil }), nobody: {InsecureSkipVerify: true}}
	before := map[int]int{}
	for i := range t.Peers() {
		if before[i], err = t.memory(i); err != nil {
			return Harm{}, errors.Join(err, source.Close())
		}
	}
	o := &onslaught{done: map[string]int{}, last: map[string]error{}, peak: map[int]int{}}
	run, end := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	var want []string
	for _, a := range attacks {
		for who, config := range configs {
			if who == nobody && !a.strange && !a.unshaken || who == somebody && a.unshaken {
				continue
			}
			want = append(want, who+": "+a.name)
			for _, api := range t.APIs() {
				for range a.copies {
					wait.Go(func() { o.attacked(run, a, who, config, strings.TrimPrefix(api, "https://")) })
				}
			}
		}
	}
	wait.Go(func() {
		for tick := time.NewTicker(200 * time.Millisecond); run.Err() == nil; {
			for i := range t.Peers() {
				if now, err := t.memory(i); err == nil {
					o.mu.Lock()
					o.peak[i] = max(o.peak[i], now)
					o.mu.Unlock()
				}
			}
			select {
			case <-run.Done():
				tick.Stop()
			case <-tick.C:
			}
		}
	})
	return Harm{What: fmt.Sprintf("%d kinds of attack on every peer", len(want)), Running: t.peers(), Check: func(context.Context) error {
		o.mu.Lock()
		defer o.mu.Unlock()
		failed := o.wrong
		for i, peak := range o.peak {
			if peak > before[i]+growth {
				failed = errors.Join(failed, fmt.Errorf("%s took %d MiB, and %d MiB before", harness.PeerName(i), peak>>20, before[i]>>20))
			}
		}
		return failed
	}, Undo: func(context.Context) error {
		end()
		wait.Wait()
		return source.Close()
	}, Bit: func(context.Context) error {
		var failed error
		for _, name := range want {
			if o.done[name] < t.Peers() {
				failed = errors.Join(failed, fmt.Errorf("%s: only %d times: %v", name, o.done[name], o.last[name]))
			}
		}
		if len(o.peak) != t.Peers() {
			failed = errors.Join(failed, fmt.Errorf("the memory of %v alone was seen", slices.Collect(maps.Keys(o.peak))))
		}
		return failed
	}}, nil
}

// memory is how many bytes of memory a peer has: Linux only.
func (t *Target) memory(peer int) (bytes int, err error) {
	pid, _, runs := t.Peer(peer).Running()
	if !runs {
		return 0, fmt.Errorf("%s does not run", harness.PeerName(peer))
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	_, err = fmt.Sscan(rest, &bytes)
	return bytes << 10, err
}

func hostilities() []Nemesis {
	return []Nemesis{{Name: "hostile", About: "huge, endless and deep bodies, streams reset at once, slow and idle connections, at every peer", Hold: 12 * time.Second, Do: hostile}}
}
