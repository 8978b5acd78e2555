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

// Whoever removes a member and loses the answer finds, trying again, that there
// is none: that is success. Whoever removes what never was is told so.
func TestRemovalIsRepeated(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(http.ResponseWriter){
		"none":      nil,
		"cut off":   func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"unknown":   func(w http.ResponseWriter) { fail(w, http.StatusGatewayTimeout, secret.CodeUnknown) },
		"not ready": func(w http.ResponseWriter) { fail(w, http.StatusServiceUnavailable, secret.CodeUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != client.RouteMemberRemove {
					t.Errorf("asked for %s", r.URL.Path)
				}
				if asked.Add(1) == 1 && first != nil {
					first(w)
					return
				}
				fail(w, http.StatusNotFound, secret.CodeNotFound)
			}))
			defer server.Close()
			cl, err := client.New(client.Config{Addresses: []string{server.URL}, TLS: server.Client().Transport.(*http.Transport).TLSClientConfig})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			want := secret.CodeNotFound
			if name == "cut off" || name == "unknown" {
				want = ""
			}
			if err := cl.RemoveMember(context.Background(), "n1"); secret.CodeOf(err) != want {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

func fail(w http.ResponseWriter, status int, code secret.Code) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(client.Failure{Code: code, Message: "as it is"})
}
