package node_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

// Nobody but a Nexus peer gets a word in at the peer port: not an application, an
// operator or a Keeper of the same authority, nor a peer of another one or of
// another trust domain.
func TestPeerPortIsForPeers(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	address := c.Node(0).Status(t.Context()).Peers[0].Address
	elsewhere := func(domain string) *identity.Source {
		a, err := devca.Serve(t.Context(), devca.Options{Dir: filepath.Join(t.TempDir(), "id"), TrustDomain: domain, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		socket, err := a.Add("/spike/nexus/nexus-1")
		if err != nil {
			t.Fatal(err)
		}
		s, err := identity.Open(t.Context(), identity.Options{Socket: socket, Timeout: nodetest.Patience})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	// talks tells whether the port has anything to say to source, beyond its alert.
	talks := func(source *identity.Source, protocol string) bool {
		config := source.Client(nodetest.Anyone)
		config.VerifyPeerCertificate, config.InsecureSkipVerify = nil, true // what it sees is not the question
		config.MinVersion, config.NextProtos = tls.VersionTLS13, []string{protocol}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		n, err := conn.Read(make([]byte, 1))
		return n > 0 && err == nil
	}
	before := c.Node(0).Status(t.Context()).Peers[0]
	for what, source := range map[string]*identity.Source{
		"an application":              c.Source("/workload/web"),
		"a superuser":                 c.Source(nodetest.Role("superuser")),
		"the bootstrap":               c.Source("/spike/bootstrap"),
		"a Keeper":                    c.Source("/spike/keeper/keeper-1"),
		"a Nexus without an id":       c.Source("/spike/nexus"),
		"a peer of another domain":    elsewhere("other.example"),
		"a peer of another authority": elsewhere(nodetest.Domain),
	} {
		for _, protocol := range []string{"h2", "spike-raft/1"} {
			if talks(source, protocol) {
				t.Errorf("%s was let in, %s", what, protocol)
			}
		}
	}
	if !talks(c.Source("/spike/nexus/nexus-2"), "h2") {
		t.Error("a peer was not let in")
	}
	if after := c.Node(0).Status(t.Context()).Peers[0]; after.DataHash != before.DataHash || after.AuditCount != before.AuditCount {
		t.Errorf("something changed: %+v, before %+v", after, before)
	}
}
