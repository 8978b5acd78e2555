package nemesis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// life is that of SVIDs; they are replaced at half of it.
const life = 6 * time.Second

// identities run out, and their authority is replaced, for peers, Keepers and clients alike. Nobody new is let in then, and no client
// whose own SVID has ended; a connection that exists goes on for one whose SVID has not, and between peers until its age ends it.
func identities() []Nemesis {
	short := func(o *harness.Options) { o.TTL = life }
	return []Nemesis{
		{Name: "svid-short", About: "SVIDs that live for seconds, then another authority, then the old one trusted no more", Hold: life + 2*time.Second, Prepare: short, Do: rotateAuthority},
		{Name: "identity-down", About: "SVIDs that live for seconds, and their provider down for longer", Hold: 5 * time.Second, Prepare: short,
			Do: func(ctx context.Context, t *Target) (Harm, error) {
				svid, err := t.Authority.Issue(harness.Superuser, time.Hour)
				if err != nil {
					return Harm{}, err
				}
				t.Authority.Pause()
				harm := Harm{What: "no SVID for longer than one lives", Silenced: t.peers(), Undo: func(context.Context) error { return t.Authority.Resume() }, Check: func(ctx context.Context) error {
					return t.refused(ctx, svid, t.Authority.Bundle(), "who has an SVID is let in by a peer whose own one has ended")
				}}
				select {
				case <-ctx.Done():
					return harm, ctx.Err()
				case <-time.After(life): // the last that was handed out has ended
					return harm, nil
				}
			}},
	}
}

// rotateAuthority has another authority sign, and takes the old one out of the trust bundle while the harm lasts. A peer that has not
// replaced its SVID meanwhile was not harmed.
func rotateAuthority(ctx context.Context, t *Target) (Harm, error) {
	before := time.Now()
	old, err := t.Authority.Issue(harness.Superuser, time.Hour)
	if err != nil {
		return Harm{}, err
	}
	oldBundle := t.Authority.Bundle()
	for _, api := range t.APIs() {
		if err := listOnce(ctx, api, old, oldBundle); err != nil {
			return Harm{}, fmt.Errorf("an SVID that is to be refused later is not admitted before: %w", err)
		}
	}
	if err := t.Authority.RotateAuthority(); err != nil {
		return Harm{}, err
	}
	return Harm{What: "another authority signs", Running: t.peers(), Check: func(ctx context.Context) error {
		if err := t.Authority.RetireAuthorities(); err != nil {
			return err
		}
		next, err := t.Authority.Issue(harness.Superuser, time.Hour)
		if err != nil {
			return err
		}
		for i, api := range t.APIs() {
			if err := listOnce(ctx, api, next, t.Authority.Bundle()); err != nil {
				return fmt.Errorf("%s does not admit an SVID of the new authority: %w", harness.PeerName(i), err)
			}
		}
		return errors.Join(t.refused(ctx, old, t.Authority.Bundle(), "an SVID of an authority that was retired is admitted"),
			t.refused(ctx, next, oldBundle, "a peer shows an SVID of an authority that was retired"))
	}, Undo: func(ctx context.Context) error {
		return harness.Poll(ctx, func() error {
			s, err := t.Operator.Status(ctx)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if !p.SVIDExpiry.After(before.Add(life + time.Second)) {
					return fmt.Errorf("the SVID of %s ends at %s: it has not been replaced", p.ID, p.SVIDExpiry)
				}
			}
			return nil
		})
	}}, nil
}

// refused says what when a peer answers on a new connection, now that news had time to spread.
func (t *Target) refused(ctx context.Context, svid *x509svid.SVID, bundle *x509bundle.Bundle, what string) error {
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return harness.Poll(limit, func() error {
		for i, api := range t.APIs() {
			if listOnce(ctx, api, svid, bundle) == nil {
				return fmt.Errorf("%s: %s", harness.PeerName(i), what)
			}
		}
		return nil
	})
}

// listOnce asks for a list on a new connection, with an SVID.
func listOnce(ctx context.Context, api string, svid *x509svid.SVID, bundle *x509bundle.Bundle) error {
	transport := shows(svid, bundle)
	defer transport.CloseIdleConnections()
	return list(ctx, transport, api)
}

// shows makes connections with an SVID, and keeps them.
func shows(svid *x509svid.SVID, bundle *x509bundle.Bundle) *http.Transport {
	return &http.Transport{TLSClientConfig: identity.New(svid, bundle).Client(func(spiffeid.ID) error { return nil })}
}

func list(ctx context.Context, transport *http.Transport, api string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, api+client.RouteSecretList, strings.NewReader(`{"prefix":""}`))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return err
}
