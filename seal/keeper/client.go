package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// ClientOptions says which Keeper to reach and how.
type ClientOptions struct {
	// Name is the Keeper's stable name. Its SVID must be spiffe://<one of TrustDomains>/spike/keeper/<Name>: a name
	// is a claim that the handshake proves.
	Name string
	// URL is its address, https://host:port.
	URL string
	// TrustDomains are those that Keepers may belong to.
	TrustDomains []spiffeid.TrustDomain
	// Source is the identity of this process.
	Source *identity.Source
}

// Client reaches one Keeper. It implements seal.Keeper.
type Client struct {
	name string
	base string
	http *http.Client
}

var _ seal.Keeper = (*Client)(nil)

// What is read of an answer is bounded; that of a status lists many askers.
const (
	maxAnswer       = 4 << 10
	maxStatusAnswer = 64 << 10
)

// NewClient makes a client; it connects when first used.
func NewClient(o ClientOptions) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("keeper: the address of Keeper %q is %q; write it as https://host:port", o.Name, o.URL)
	}
	if err := spiffeid.ValidatePathSegment(o.Name); err != nil {
		return nil, fmt.Errorf("keeper: %q cannot be a Keeper's name, which is a segment of its SPIFFE id: %w", o.Name, err)
	}
	if o.Source == nil || len(o.TrustDomains) == 0 {
		return nil, errors.New("keeper: a client needs an identity and a trust domain")
	}
	domains := slices.Clone(o.TrustDomains)
	authorize := func(id spiffeid.ID) error {
		if !member(domains, id) || id.Path() != "/spike/keeper/"+o.Name {
			return fmt.Errorf("it is not the Keeper %q", o.Name)
		}
		return nil
	}
	transport := &http.Transport{
		TLSClientConfig:     identity.TLS13(o.Source.Client(authorize, "http/1.1")),
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		IdleConnTimeout:     30 * time.Second, // short, so that a rotated SVID takes hold
		MaxConnsPerHost:     4,
		DisableCompression:  true,
	}
	return &Client{name: o.Name, base: "https://" + u.Host, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Name implements seal.Keeper.
func (c *Client) Name() string { return c.name }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Place implements seal.Keeper.
func (c *Client) Place(ctx context.Context, slot seal.Slot, share []byte) error {
	body := placeRequest(slot, share)
	defer locked.Wipe(body)
	return c.post(ctx, routePlace, body, nil)
}

// Fetch implements seal.Keeper. The caller wipes the share.
func (c *Client) Fetch(ctx context.Context, slot seal.Slot) ([]byte, error) {
	body, err := json.Marshal(wireSlot(slot))
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	var out struct {
		Share []byte `json:"share"`
	}
	if err := c.post(ctx, routeFetch, body, &out); err != nil {
		locked.Wipe(out.Share)
		return nil, err
	}
	if len(out.Share) != shareSize {
		locked.Wipe(out.Share)
		return nil, fmt.Errorf("keeper: %s sent something that is not a share", c.name)
	}
	return out.Share, nil
}

// Settle implements seal.Keeper. A Keeper of a release that does not know asOf is asked without it.
func (c *Client) Settle(ctx context.Context, cluster seal.ClusterRef, set [16]byte, asOf uint64) error {
	w := wireSlot(seal.Slot{Cluster: cluster, Set: set})
	w.AsOf = asOf
	err := c.post(ctx, routeSettle, mustJSON(w), nil)
	if errors.Is(err, seal.ErrOldKeeper) && asOf != 0 {
		w.AsOf = 0
		err = c.post(ctx, routeSettle, mustJSON(w), nil)
	}
	return err
}

// Holds implements seal.Keeper.
func (c *Client) Holds(ctx context.Context) ([]seal.Slot, error) {
	var out struct {
		Slots []slotWire `json:"slots"`
	}
	if err := c.post(ctx, routeHolds, []byte("{}"), &out); err != nil {
		return nil, err
	}
	held, err := heldSlots(out.Slots)
	if err != nil {
		return nil, fmt.Errorf("keeper: %s lists an impossible slot", c.name)
	}
	slots := make([]seal.Slot, len(held))
	for i, h := range held {
		slots[i] = h.Slot
	}
	return slots, nil
}

// Prove implements seal.Keeper.
func (c *Client) Prove(ctx context.Context, slot seal.Slot, nonce [32]byte) (proof [32]byte, err error) {
	w := wireSlot(slot)
	w.Nonce = nonce[:]
	err = c.ask(ctx, routeProve, mustJSON(w), func(answer []byte) error {
		proof, err = parseProof(answer)
		return err
	})
	return proof, err
}

// Status asks the Keeper about itself. It fails with seal.ErrOldKeeper when its release does not tell.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.ask(ctx, routeStatus, []byte("{}"), func(answer []byte) error {
		s, err = parseStatus(answer)
		return err
	})
	return s, err
}

// post sends one request and decodes the answer into out, unless that is nil.
func (c *Client) post(ctx context.Context, route string, body []byte, out any) error {
	return c.ask(ctx, route, body, func(answer []byte) error {
		var err error
		if out != nil {
			erase.Do(func() { err = json.Unmarshal(answer, out) })
		}
		if err != nil {
			return errBadAnswer
		}
		return nil
	})
}

// ask sends one request and has take look at the answer, which is wiped after that.
func (c *Client) ask(ctx context.Context, route string, body []byte, take func(answer []byte) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+route, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("keeper: %s: %w", c.name, err)
	}
	defer resp.Body.Close()
	if _, err := identity.PeerID(*resp.TLS); err != nil { // a pooled connection may have outlived the Keeper's SVID
		c.http.CloseIdleConnections()
		return fmt.Errorf("keeper: %s: %w", c.name, err)
	}
	most := maxAnswer
	if route == routeStatus {
		most = maxStatusAnswer
	}
	answer, err := readAll(resp.Body, most)
	defer locked.Wipe(answer)
	if err != nil {
		return fmt.Errorf("keeper: %s: reading the answer: %w", c.name, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Err string `json:"err"`
		}
		_ = json.Unmarshal(answer, &e) // whatever it is, it is an error
		// Ours are well-formed: it does not know the route, or a field.
		if e.Err == codeBadRequest && (route == routeProve || route == routeStatus || route == routeSettle) {
			return seal.ErrOldKeeper
		}
		return fromCode(resp.StatusCode, e.Err)
	}
	if err := take(answer); err != nil {
		return fmt.Errorf("%w (%s)", err, c.name)
	}
	return nil
}
