package client_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

// peersThat makes a client of servers that answer watches.
func peersThat(t *testing.T, answer ...func(http.ResponseWriter, client.WatchRequest)) *client.Client {
	t.Helper()
	var addresses []string
	var config client.Config
	for _, a := range answer {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var q client.WatchRequest
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != client.RouteSecretWatch || r.URL.RawQuery != "" {
				t.Errorf("asked %s: %v", r.URL, err)
			}
			a(w, q)
		}))
		t.Cleanup(server.Close)
		addresses = append(addresses, server.URL)
		config.TLS = server.Client().Transport.(*http.Transport).TLSClientConfig
	}
	config.Addresses = addresses
	cl, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func batch(w http.ResponseWriter, index uint64, paths ...string) {
	answer := client.WatchAnswer{Index: index, Incarnation: 7}
	for _, p := range paths {
		answer.Events = append(answer.Events, client.Event{Index: index, Kind: "put", Path: p})
	}
	json.NewEncoder(w).Encode(answer)
}

// A watch goes on at another peer when one is gone or does not reach back so
// far; an answer that is lost is asked for again, from the same index.
func TestWatchResumes(t *testing.T) {
	t.Parallel()
	var cut atomic.Bool
	cl := peersThat(t,
		func(w http.ResponseWriter, q client.WatchRequest) {
			if q.After == 0 {
				batch(w, 10)
				return
			}
			fail(w, http.StatusGone, secret.CodeForgotten)
		},
		func(w http.ResponseWriter, q client.WatchRequest) {
			switch {
			case q.After != 10 && q.After != 11 || q.Incarnation != 7 || q.WaitSeconds == 0:
				t.Errorf("asked for %+v", q)
			case !cut.Swap(true):
				panic(http.ErrAbortHandler)
			case q.After == 10:
				batch(w, 11)
			default:
				batch(w, 12, "a", "b")
			}
		},
		func(w http.ResponseWriter, _ client.WatchRequest) {
			fail(w, http.StatusServiceUnavailable, secret.CodeSealed)
		})
	w, err := cl.Watch(context.Background(), client.WatchOptions{Prefix: "x/"})
	if err != nil || w.Index() != 10 {
		t.Fatal(w, err)
	}
	events, err := w.Next(context.Background())
	if err != nil || len(events) != 2 || events[1].Path != "b" || w.Index() != 12 {
		t.Fatal(events, err, w.Index())
	}
}

// What no peer reaches back to is forgotten; a denial is said at once; an ended
// context ends the wait.
func TestWatchGivesUp(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	forgotten := func(w http.ResponseWriter, _ client.WatchRequest) {
		asked.Add(1)
		fail(w, http.StatusGone, secret.CodeForgotten)
	}
	next := func(ctx context.Context, cl *client.Client) error {
		_, err := cl.Watch(ctx, client.WatchOptions{Path: "x", After: 3}) // as Next would
		return err
	}
	if err := next(context.Background(), peersThat(t, forgotten, forgotten, forgotten)); secret.CodeOf(err) != secret.CodeForgotten || asked.Load() != 3 {
		t.Errorf("%v after %d", err, asked.Load())
	}
	denied := func(w http.ResponseWriter, _ client.WatchRequest) { fail(w, http.StatusForbidden, secret.CodeDenied) }
	if err := next(context.Background(), peersThat(t, forgotten, denied)); secret.CodeOf(err) != secret.CodeDenied {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := next(ctx, peersThat(t, func(w http.ResponseWriter, _ client.WatchRequest) {
		cancel()
		fail(w, http.StatusServiceUnavailable, secret.CodeUnavailable)
	})); err != context.Canceled {
		t.Error(err)
	}
}
