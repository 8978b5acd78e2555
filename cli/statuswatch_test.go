package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

// Looks follow one another, over a cluster that goes away, until the command is
// interrupted, which is success.
func TestWatchStatus(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Keepers: 3})
	common := []string{"--address", c.Address(0), "--socket", c.Socket(nodetest.Role("superuser")), "--trust-root", nodetest.Domain, "--timeout", "1s"}
	run := func(args ...string) (lines, said *bufio.Reader, drain, end func()) {
		ctx, interrupt := context.WithCancel(context.Background())
		r, w := io.Pipe()
		re, we := io.Pipe()
		done := make(chan int, 1)
		go func() {
			done <- Main(ctx, append(common[:len(common):len(common)], args...), strings.NewReader(""), w, we)
			w.Close()
			we.Close()
		}()
		lines, said = bufio.NewReader(r), bufio.NewReader(re)
		drain = sync.OnceFunc(func() { go io.Copy(io.Discard, lines) })
		return lines, said, drain, func() {
			drain()
			go io.Copy(io.Discard, said)
			interrupt()
			if status := <-done; status != ExitOK {
				t.Errorf("%v: interrupted: exit status %d", args, status)
			}
		}
	}

	lines, _, _, end := run("status", "--watch", "--interval", "10ms")
	for looks := 0; looks < 2; { // one below the other, each with its time
		line, err := lines.ReadString('\n')
		if err != nil || strings.Contains(line, "\x1b") {
			t.Fatalf("%q, %v", line, err)
		}
		if strings.HasPrefix(line, "Cluster ") {
			looks++
		}
	}
	end()

	lines, said, drain, end := run("--format", "json", "status", "--watch", "--interval", "10ms")
	for range 2 {
		line, err := lines.ReadBytes('\n')
		var s client.Status
		if err != nil || json.Unmarshal(line, &s) != nil || s.Leader != "nexus-1" || len(s.Peers) != 1 {
			t.Fatalf("%q, %v", line, err)
		}
	}
	drain()
	c.Stop(0)
	for {
		line, err := said.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "no peer answers: ") {
			break
		}
	}
	end()

	for _, args := range [][]string{{"status", "--watch", "--interval", "0s"}, {"status", "--interval", "1s"}, {"status", "--watch", "more"}} {
		if status := Main(context.Background(), append(common[:len(common):len(common)], args...), strings.NewReader(""), io.Discard, io.Discard); status != ExitLocal {
			t.Errorf("%v: exit status %d", args, status)
		}
	}
}

// On a terminal each look replaces the one before, to the end of each line and
// of the page.
func TestPage(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := page(&out, true, "a\nb\n"); err != nil || out.String() != "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J" {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := page(&out, false, "a\n"); err != nil || out.String() != "a\n\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
