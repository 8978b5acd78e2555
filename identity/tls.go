package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	// ErrNoPeer says that a connection carries no verified SPIFFE identity.
	ErrNoPeer = errors.New("identity: the connection carries no SPIFFE identity")
	// ErrExpired says that the other side's SVID ended after the connection was made.
	ErrExpired = errors.New("identity: the peer's SVID is outside its validity period; it must connect anew")
)

// Server is the configuration of a listener that demands a client SVID and admits those that authorize
// accepts (returns nil for). It takes TLS 1.2 and later, since existing SPIKE applications may speak it; see
// TLS13. alpn lists the protocols offered, most wanted first; none means no ALPN.
// authorize runs in every handshake, after the chain was verified, from many goroutines.
func (s *Source) Server(authorize func(spiffeid.ID) error, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             alpn,
		ClientAuth:             tls.RequireAnyClientCert, // the chain is checked in VerifyConnection, against the live bundle
		GetCertificate:         tlsconfig.GetCertificate(s.svids),
		VerifyConnection:       s.verifier(authorize),
		SessionTicketsDisabled: true,
	}
}

// Client is the configuration of a dialler that presents our SVID and talks only to servers that authorize
// accepts. Host names mean nothing here: the SPIFFE id is the whole identity of the server.
func (s *Source) Client(authorize func(spiffeid.ID) error, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             alpn,
		GetClientCertificate:   tlsconfig.GetClientCertificate(s.svids),
		InsecureSkipVerify:     true, // replaces only the host name check and the static roots: see verifier
		VerifyConnection:       s.verifier(authorize),
		SessionTicketsDisabled: true,
	}
}

// TLS13 makes c refuse everything older than TLS 1.3, for links where both ends are ours. It returns c.
func TLS13(c *tls.Config) *tls.Config {
	c.MinVersion = tls.VersionTLS13
	return c
}

// verifier checks the other side's chain. VerifyConnection, unlike VerifyPeerCertificate, runs on resumed
// sessions as well, so that even a ticket from elsewhere could not skip it.
func (s *Source) verifier(authorize func(spiffeid.ID) error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		id, _, err := x509svid.Verify(cs.PeerCertificates, s.bundles)
		if err != nil {
			return fmt.Errorf("identity: peer refused: %w", err)
		}
		if authorize == nil {
			return fmt.Errorf("identity: peer %s refused: nobody is authorised here", id)
		}
		if err := authorize(id); err != nil {
			return fmt.Errorf("identity: peer %s refused: %w", id, err)
		}
		return nil
	}
}

// PeerID is the identity of the other side of a connection made with Server or Client, whose handshake has
// verified the chain. It fails with ErrExpired once that SVID has ended, so a caller that asks for each request
// stops serving a connection that outlived the identity it was made with.
func PeerID(cs tls.ConnectionState) (spiffeid.ID, error) { return PeerIDAt(cs, time.Now()) }

// PeerIDAt is PeerID at a given time.
func PeerIDAt(cs tls.ConnectionState, now time.Time) (spiffeid.ID, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return spiffeid.ID{}, ErrNoPeer
	}
	leaf := cs.PeerCertificates[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrNoPeer, err)
	}
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return spiffeid.ID{}, fmt.Errorf("%w: %s", ErrExpired, id)
	}
	return id, nil
}
