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

// A change of which an attempt was lost may have been made, even if the caller is refused when it is tried again: its SVID
// has ended meanwhile, or a policy has changed.
func TestARefusalSaysNothingOfAnEarlierAttempt(t *testing.T) {
	t.Parallel()
	for again, want := range map[secret.Code]secret.Code{secret.CodeDenied: secret.CodeUnknown, secret.CodeInvalid: secret.CodeUnknown, secret.CodeConflict: secret.CodeConflict} {
		for _, lost := range []bool{false, true} {
			var asked atomic.Int32
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set(client.HeaderIndex, "7")
				if r.URL.Path != client.RouteSecretPut {
					_, _ = w.Write([]byte(`{}`))
					return
				}
				if asked.Add(1) == 1 && lost {
					panic(http.ErrAbortHandler)
				}
				fail(w, http.StatusForbidden, again)
			}))
			defer server.Close()
			cl, err := client.New(client.Config{Addresses: []string{server.URL}, TLS: server.Client().Transport.(*http.Transport).TLSClientConfig})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			expect := want
			if !lost {
				expect = again
			}
			if _, err := cl.Put(t.Context(), "a/b", map[string]string{"v": "x"}, nil); secret.CodeOf(err) != expect {
				t.Errorf("%s, an attempt lost before it %t: %v, want %s", again, lost, err, expect)
			}
		}
	}
}

// A peer that answers, and says that it cannot serve, as one that hears nobody does: a call that has no time for another
// try fails with it, and the next one does not begin there again.
func TestCallsLeaveAPeerThatDoesNotServe(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	deaf := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"err":"state_not_ready"}`))
	}))
	defer deaf.Close()
	lively := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"leader":"nexus-2"}`)) }))
	defer lively.Close()
	config := deaf.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.RootCAs.AddCert(lively.Certificate())
	cl, err := client.New(client.Config{Addresses: []string{deaf.URL, lively.URL}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	short, cancel := context.WithTimeout(t.Context(), 450*time.Millisecond) // less than another try is worth
	defer cancel()
	if _, err := cl.Status(short); err == nil {
		t.Fatal("the peer that does not serve answered")
	}
	before := asked.Load()
	if _, err := cl.Status(t.Context()); err != nil {
		t.Errorf("after a call that failed with it: %v", err)
	}
	if n := asked.Load(); n != before {
		t.Errorf("the next call asked it %d times more", n-before)
	}
}
