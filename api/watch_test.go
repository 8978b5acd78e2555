package api_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

// Watches have places of their own: those of one identity end before all are
// taken, and none of them is taken from other requests.
func TestWatchesAreBounded(t *testing.T) {
	t.Parallel()
	a := newAlone(t, func(s *api.Server) {
		s.SetLimits(1, 1, 0, 0)
		s.SetWatchLimits(3, 2)
	})
	greedy, _ := issued(t, a.authority, "/workload/greedy", time.Hour)
	modest, _ := issued(t, a.authority, "/workload/modest", time.Hour)
	ask := func(config *tls.Config, method, route string) (*http.Response, string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		request, err := http.NewRequest(method, "https://"+a.address+route, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		response, err := c.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response, string(body)
	}
	hold := func(config *tls.Config, want int) io.Writer {
		conn, err := tls.Dial("tcp", a.address, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", client.RouteSecretWatch)
		nodetest.Eventually(t, "the watch is under way", func() error {
			if n := a.server.Watches(); n != want {
				return fmt.Errorf("%d watches", n)
			}
			return nil
		})
		return conn
	}
	refused := func(config *tls.Config) {
		t.Helper()
		r, body := ask(config, http.MethodPost, client.RouteSecretWatch)
		if r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"overloaded"`) {
			t.Errorf("%s %s", r.Status, body)
		}
	}
	first := hold(greedy, 1)
	hold(greedy, 2)
	refused(greedy)
	if r, body := ask(modest, http.MethodPost, client.RouteSecretWatch); r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"sealed"`) {
		t.Errorf("another identity: %s %s", r.Status, body)
	}
	hold(modest, 3)
	refused(modest)
	if r, _ := ask(greedy, http.MethodGet, client.RouteHealth); r.StatusCode != http.StatusOK {
		t.Errorf("another request: %s", r.Status)
	}
	io.WriteString(first, "{}")
	nodetest.Eventually(t, "a place is free", func() error {
		if r, body := ask(greedy, http.MethodPost, client.RouteSecretWatch); r.StatusCode != http.StatusServiceUnavailable {
			return errors.New(body)
		}
		return nil
	})
}
