package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
)

// A peer that takes requests and says nothing, as a frozen one does: a call that has little time gets its answer from
// another, and the next one does not begin with the silent one again.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var asked atomic.Int32
	silent := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked.Add(1)
		<-release
	}))
	defer silent.Close()
	defer close(release)
	lively := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":["a"]}`)) }))
	defer lively.Close()
	config := silent.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.RootCAs = nil
	config.InsecureSkipVerify = true // two authorities of a test
	cl, err := client.New(client.Config{Addresses: []string{silent.URL, lively.URL}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		limit, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		answer, err := cl.List(limit, "")
		cancel()
		if err != nil || len(answer.Keys) != 1 {
			t.Fatalf("%v, %v", answer, err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the silent peer was asked %d times", n)
	}
	alone, err := client.New(client.Config{Addresses: []string{silent.URL, lively.URL}, TLS: config, Attempt: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond) // for one attempt
	defer cancel()
	if _, err := alone.List(brief, ""); err == nil {
		t.Error("the silent peer answered")
	}
	if _, err := alone.List(t.Context(), ""); err != nil || asked.Load() != 2 {
		t.Errorf("after a call that ran out of time with the silent peer: %v, asked %d times", err, asked.Load())
	}
}
