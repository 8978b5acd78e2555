package client_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
)

// A peer that was removed, or is cut off, shows the members of before. Who knows several peers is shown what one with a
// leader sees, and asks that one from then on.
func TestStatusOfOneWithALeader(t *testing.T) {
	t.Parallel()
	peer := func(status string) *httptest.Server {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(status)) }))
		t.Cleanup(s.Close)
		return s
	}
	alone, led := peer(`{"askedPeer":"nexus-1"}`), peer(`{"askedPeer":"nexus-2","leader":"nexus-3"}`)
	config := alone.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.RootCAs.AddCert(led.Certificate())
	cl, err := client.New(client.Config{Addresses: []string{alone.URL, led.URL}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if s, err := cl.Status(t.Context()); err != nil || s.AskedPeer != "nexus-2" {
		t.Errorf("a peer with a leader: %+v, %v", s, err)
	}
	led.Close()
	if s, err := cl.Status(t.Context()); err != nil || s.AskedPeer != "nexus-1" {
		t.Errorf("no peer with a leader: %+v, %v", s, err)
	}
}
