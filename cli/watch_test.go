package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

// What happens is printed as it happens, in each format, until the command is
// interrupted; what cannot be gone on from is said, with an exit status of its own.
func TestWatch(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Keepers: 3})
	su := c.Client(nodetest.Role("superuser"))
	common := []string{"--address", strings.Join(c.Addresses(), ","), "--socket", c.Socket(nodetest.Role("superuser")), "--trust-root", nodetest.Domain}
	put := func(path string) client.ChangeAnswer {
		t.Helper()
		answer, err := su.Put(context.Background(), path, map[string]string{"k": "canary"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	run := func(ctx context.Context, out io.Writer, args ...string) (int, string) {
		var errOut strings.Builder
		status := Main(ctx, append(common[:len(common):len(common)], args...), strings.NewReader(""), out, &errOut)
		return status, errOut.String()
	}
	for format, want := range map[string]func(client.ChangeAnswer) []string{
		"table": func(a client.ChangeAnswer) []string {
			return []string{fmt.Sprintf("%d  ", a.Index), "  put        w/a  version 1"}
		},
		"json": func(a client.ChangeAnswer) []string {
			return []string{fmt.Sprintf(`{"index":%d,"time":"`, a.Index), `"kind":"put","path":"w/a","versions":[1]}`}
		},
		"yaml": func(client.ChangeAnswer) []string { return []string{"---"} },
	} {
		from := put("other")
		answer := put("w/a")
		ctx, interrupt := context.WithCancel(context.Background())
		r, w := io.Pipe()
		done := make(chan int, 1)
		go func() {
			status, said := run(ctx, w, "secret", "watch", "w/", "--after", fmt.Sprint(from.Index), "--format", format)
			if !strings.HasPrefix(said, fmt.Sprintf("watching from index %d on\n", from.Index)) {
				t.Errorf("it said %q", said)
			}
			w.Close()
			done <- status
		}()
		lines := bufio.NewReader(r)
		line, err := lines.ReadString('\n')
		for _, part := range want(answer) {
			if err != nil || !strings.Contains(line, part) || strings.Contains(line, "canary") {
				t.Errorf("%s: %q, %v, want %q", format, line, err, part)
			}
		}
		if format == "json" { // a line each, and those to come too
			last := put("w/b")
			line, err = lines.ReadString('\n')
			var e client.Event
			if err != nil || json.Unmarshal([]byte(line), &e) != nil || e.Path != "w/b" || e.Index != last.Index {
				t.Errorf("%q, %v", line, err)
			}
		}
		go io.Copy(io.Discard, lines)
		interrupt()
		if status := <-done; status != ExitOK {
			t.Errorf("interrupted: exit status %d", status)
		}
		if _, err := su.Purge(context.Background(), "w/a"); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		status int
		said   string
		args   []string
	}{
		{ExitForgot, "start over", []string{"w/", "--after", "1"}},
		{ExitForgot, "start over", []string{"w/", "--after", "0"}},
		{ExitRemote, "take one from its own answers", []string{"w/", "--after", "1000000"}},
		{ExitLocal, "too many arguments", []string{"a", "b"}},
	} {
		if status, said := run(context.Background(), io.Discard, append([]string{"secret", "watch"}, x.args...)...); status != x.status || !strings.Contains(said, x.said) || strings.Contains(said, "watching") {
			t.Errorf("%q: exit status %d, %q", x.args, status, said)
		}
	}
}
