package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
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

// A peer that took a restore and was lost may be about to commit it: that another one refuses says nothing of that.
func TestRestoreThatWasLost(t *testing.T) {
	t.Parallel()
	lost := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("{\"step\":\"staging\"}\n"))
	}))
	defer lost.Close()
	refuses := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"code":"conflict","reason":"restore_running","message":"nothing was changed"}`))
	}))
	defer refuses.Close()
	config := lost.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.RootCAs = nil
	config.InsecureSkipVerify = true // two authorities of a test
	for _, test := range []struct {
		peers   []string
		confirm string
		want    secret.Code
	}{
		{[]string{lost.URL, refuses.URL}, "1-2-aa", secret.CodeUnknown},
		{[]string{lost.URL, refuses.URL}, "", secret.CodeConflict}, // a plan
		{[]string{refuses.URL, lost.URL}, "1-2-aa", secret.CodeConflict},
	} {
		cl, err := client.New(client.Config{Addresses: test.peers, TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cl.RestoreArchive(t.Context(), client.RestoreArchiveRequest{Confirm: test.confirm}, nil); secret.CodeOf(err) != test.want {
			t.Errorf("%v: %v", test, err)
		}
	}
}
