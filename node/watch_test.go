package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"sync/atomic"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// Invariant 7 for watches: after the acknowledgement of a revocation no peer tells
// anything any more, neither to a watch that was waiting nor to one that comes.
func TestInvariant7RevocationEndsWatches(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	const app = "/workload/web"
	policy := client.Policy{Name: "web", SPIFFEID: exact("spiffe://" + nodetest.Domain + app), Path: prefix("web"), Permissions: []string{"read", "list"}}
	var su, watchers [3]*client.Client
	for i := range watchers {
		su[i], watchers[i] = c.Client(nodetest.Role("superuser"), i), c.Client(app, i)
	}
	for round := range 10 {
		if _, err := su[round%3].PutPolicy(ctx, policy); err != nil {
			t.Fatal(err)
		}
		from := put(t, su[0], "web/db", "before").Index
		type result struct {
			peer   int
			events []client.Event
			err    error
		}
		results := make(chan result)
		options := []client.WatchOptions{{Path: "web/db"}, {Prefix: "web/"}}
		for i, cl := range watchers {
			for _, o := range options {
				w, err := cl.Watch(ctx, o)
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					events, err := w.Next(ctx)
					results <- result{i, events, err}
				}()
			}
		}
		if _, err := su[(round+1)%3].DeletePolicy(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		for i, cl := range watchers { // what was before the revocation, asked for after it
			w, err := cl.Watch(ctx, client.WatchOptions{Path: "web/db", After: from - 1})
			if err == nil {
				_, err = w.Next(ctx)
			}
			if secret.CodeOf(err) != secret.CodeDenied {
				t.Fatalf("round %d: revoked, but peer %d says %v", round, i+1, err)
			}
		}
		put(t, su[(round+2)%3], "web/db", "after")
		for range len(watchers) * len(options) {
			if r := <-results; secret.CodeOf(r.err) != secret.CodeDenied || len(r.events) > 0 {
				t.Fatalf("round %d: revoked, but peer %d tells %v, %v", round, r.peer+1, r.events, r.err)
			}
		}
	}
}

// Every peer tells the same, and a client that knows all hears of each change
// once and in order while the peers stop and start under it.
func TestWatchOverRestarts(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	w, err := c.Client(nodetest.Role("superuser")).Watch(ctx, client.WatchOptions{Prefix: "feed/"})
	if err != nil {
		t.Fatal(err)
	}
	from := w.Index()
	var written atomic.Int32
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n := written.Load()
			if _, err := su.Put(ctx, fmt.Sprintf("feed/%d", n), map[string]string{"k": "canary"}, nil); err != nil {
				t.Error(err)
				return
			}
			written.Add(1)
		}
	}()
	heard := 0
	hear := func(until int) {
		t.Helper()
		for heard < until {
			events, err := w.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				if want := fmt.Sprintf("feed/%d", heard); e.Path != want || e.Kind != "put" || !reflect.DeepEqual(e.Versions, []secret.Version{1}) {
					t.Fatalf("heard of %+v, want %s", e, want)
				}
				heard++
			}
		}
	}
	for i := range 3 {
		hear(heard + 10)
		c.Stop(i)
		hear(heard + 10)
		c.Start(i)
		c.Ready()
	}
	hear(heard + 10)
	close(stop)
	<-done
	hear(int(written.Load()))
	// All that still reach back so far tell the same.
	var told [][]client.Event
	at := w.Index() - 20
	for i := range 3 {
		w, err := c.Client(nodetest.Role("superuser"), i).Watch(ctx, client.WatchOptions{Prefix: "feed/", After: at})
		var events []client.Event
		if err == nil {
			events, err = w.Next(ctx)
		}
		if err == nil {
			told = append(told, events)
		} else if secret.CodeOf(err) != secret.CodeForgotten {
			t.Fatal(err)
		}
	}
	for _, events := range told {
		if !reflect.DeepEqual(events, told[0]) {
			t.Fatalf("peers tell\n%v\n%v", told[0], events)
		}
	}
	if len(told) < 2 {
		t.Errorf("%d peers reach back to %d", len(told), at)
	}
	// All were started anew since: nobody reaches back to the beginning.
	if _, err := su.Watch(ctx, client.WatchOptions{Prefix: "feed/", After: from}); secret.CodeOf(err) != secret.CodeForgotten {
		t.Error(err)
	}
}

// Draining and stopping end a wait at once, with a reason to go elsewhere.
func TestWatchEndsWithThePeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	for what, end := range map[string]func(i int){
		"drained": func(i int) { c.Node(i).Drain(true) },
		"stopped": func(i int) { c.Stop(i) },
	} {
		i := (c.Leader() + 1) % 3
		if what == "stopped" {
			i = (c.Leader() + 2) % 3
		}
		web := c.Client(nodetest.Role("superuser"), i)
		if _, err := web.Watch(ctx, client.WatchOptions{}); err != nil { // it serves
			t.Fatal(err)
		}
		requests := make(chan error, 1)
		go func() {
			body, _ := json.Marshal(client.WatchRequest{Path: "quiet", WaitSeconds: 20})
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Source(nodetest.Role("operator")).Client(nodetest.Anyone)}}
			defer hc.CloseIdleConnections()
			response, err := hc.Post(c.Address(i)+client.RouteSecretWatch, "application/json", bytes.NewReader(body))
			if err == nil {
				defer response.Body.Close()
				var failure client.Failure
				raw, _ := io.ReadAll(response.Body)
				json.Unmarshal(raw, &failure)
				if response.StatusCode != http.StatusServiceUnavailable || failure.Reason != "draining" {
					err = fmt.Errorf("%s %s", response.Status, raw)
				}
			}
			requests <- err
		}()
		nodetest.Eventually(t, "the watch waits", func() error {
			if n := c.Node(i).Watches(); n == 0 {
				return fmt.Errorf("%d watches", n)
			}
			return nil
		})
		end(i)
		if err := <-requests; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
