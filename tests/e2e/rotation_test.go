package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// SVIDs are replaced again and again, then the authority that signs them, then
// the old authority is trusted no more: no request fails, no leader is lost, and
// an SVID of the old authority is admitted by nobody.
func TestRotationOfIdentities(t *testing.T) {
	t.Parallel()
	const life = 6 * time.Second
	c := broken(t, harness.Options{Voters: 3, Keepers: 3, TTL: life})
	operator := c.client(harness.Superuser)
	old, err := c.Authority.Issue(harness.Superuser, time.Hour)
	c.must(err)
	oldBundle := c.Authority.Bundle()
	if err := readOnce(web(identity.New(old, oldBundle)), c.APIs(0)[0]); err != nil {
		t.Fatal(err)
	}
	term := settled(c, operator)

	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range c.Peers() {
		source, err := c.Source(ctx, harness.Superuser)
		c.must(err)
		t.Cleanup(func() { source.Close() })
		wg.Go(func() {
			// A plain client with connections that it keeps: it repeats nothing.
			for cl := web(source); ; {
				select {
				case <-done:
					return
				default:
				}
				if err := readOnce(cl, c.APIs(i)[0]); err != nil {
					t.Errorf("through %s: %v", harness.PeerName(i), err)
					return
				}
			}
		})
	}
	renewed := func(what string) {
		t.Helper()
		since := time.Now()
		c.eventually(what, func() error {
			s, err := status(operator)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if !p.SVIDExpiry.After(since.Add(life)) {
					return fmt.Errorf("the SVID of %s ends at %s", p.ID, p.SVIDExpiry)
				}
			}
			if time.Since(since) < life {
				return errors.New("some connection may be of before")
			}
			return nil
		})
	}
	renewed("each peer has a new SVID")
	c.must(c.Authority.RotateAuthority())
	renewed("each peer has an SVID of the new authority")
	c.must(c.Authority.RetireAuthorities())
	renewed("each peer has the new bundle alone")
	close(done)
	wg.Wait()

	if now := settled(c, operator); now != term {
		t.Errorf("the term was %d and is %d: a leader was lost", term, now)
	}
	if err := readOnce(web(identity.New(old, c.Authority.Bundle())), c.APIs(0)[0]); err == nil {
		t.Error("an SVID of the old authority was admitted")
	}
	next, err := c.Authority.Issue(harness.Superuser, time.Hour)
	c.must(err)
	if err := readOnce(web(identity.New(next, oldBundle)), c.APIs(0)[0]); err == nil {
		t.Error("a peer shows an SVID of the old authority")
	}
	if err := readOnce(web(identity.New(next, c.Authority.Bundle())), c.APIs(0)[0]); err != nil {
		t.Errorf("with an SVID of the new authority: %v", err)
	}
}

// web is a client that keeps its connections.
func web(as *identity.Source) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: as.Client(func(spiffeid.ID) error { return nil })}}
}

// readOnce reads through one peer, with one request.
func readOnce(cl *http.Client, api string) error {
	status, body, err := post(cl, api+client.RouteSecretList, `{"prefix":""}`)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d: %s", status, body)
	}
	return err
}

// settled waits for a leader and returns its term.
func settled(c *brokenCluster, operator *client.Client) uint64 {
	c.t.Helper()
	c.leader(operator)
	s, err := status(operator)
	c.must(err)
	return s.Term
}
