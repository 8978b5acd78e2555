// Package client is the Go client of SPIKE HA, and the types of its native API.
//
// A Client knows several peers and needs none of them in particular: any peer
// answers everything. It goes on to the next when one fails and tries again
// while the cluster elects a leader. Retries are safe: each change carries one
// write id over all attempts, and the cluster applies an id once.
//
// Assumes a SPIFFE identity (package identity). Guarantees that an error of
// code secret.CodeUnavailable means "certainly not done", and that
// secret.CodeUnknown is said whenever a change may or may not have been made.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spike-ha/spike-ha/secret"
)

// Config says whom a Client talks to, and as whom.
type Config struct {
	// Addresses are the peers' API addresses: https://host:port, or host:port.
	Addresses []string
	// TLS presents our SVID and admits only Nexus peers: see identity.Source.Client.
	TLS *tls.Config
	// Attempt bounds one try at one peer, 7 s when 0: a little longer than a
	// peer takes at most to say that it cannot.
	Attempt time.Duration
	// Patience bounds all tries of a call whose context has no deadline; 30 s when 0.
	Patience time.Duration
	// IndexReads makes reads ask for level "index": at least as new as anything
	// this Client was answered, without the peer asking others. The cluster's
	// setting index_reads must allow it.
	IndexReads bool
}

// Client talks to a cluster. Any number of goroutines may use it.
type Client struct {
	cfg   Config
	peers []string
	http  *http.Client
	// prefer is the peer that answered last, or the one after that when that says nothing any more.
	prefer atomic.Uint32
	// seen is the highest index in any answer: what write ids carry.
	seen    atomic.Uint64
	session session
}

// New makes a Client; it connects when it is first used.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, secret.Invalid("addresses", "no peer is named; set SPIKE_NEXUS_API_URL or --address")
	}
	if cfg.Attempt <= 0 {
		cfg.Attempt = 7 * time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 30 * time.Second
	}
	c := &Client{cfg: cfg}
	for _, a := range cfg.Addresses {
		peer, err := ParseAddress(a)
		if err != nil {
			return nil, err
		}
		c.peers = append(c.peers, peer)
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     cfg.TLS,
			DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			MaxIdleConnsPerHost: 64,
			IdleConnTimeout:     time.Minute,
			// Of streams, which end the wait themselves.
			ExpectContinueTimeout: 2 * cfg.Attempt,
		},
		// A peer never redirects; whoever does is not to be followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// ParseAddress reads a peer's address and returns it as https://host:port.
func ParseAddress(s string) (string, error) {
	if _, _, err := net.SplitHostPort(s); err == nil && !strings.Contains(s, "/") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err == nil {
		_, err = strconv.ParseUint(u.Port(), 10, 16)
	}
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return "", secret.Invalid("address", "a peer's address is written https://host:port")
	}
	return "https://" + u.Host, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Peers lists the addresses.
func (c *Client) Peers() []string { return c.peers }

// Put writes the next version of a secret. expect, when not nil, must be the
// current version.
func (c *Client) Put(ctx context.Context, path string, values map[string]string, expect *secret.Version) (ChangeAnswer, error) {
	if err := checkValues(values); err != nil {
		return ChangeAnswer{}, err
	}
	return change[ChangeAnswer](ctx, c, RouteSecretPut, PutRequest{path, values, expect})
}

// checkValues refuses what JSON would replace without a word.
func checkValues(values map[string]string) error {
	for _, value := range values {
		if !utf8.ValidString(value) {
			return secret.Invalid("values", "a value is not valid UTF-8; encode binary data, for example as base64")
		}
	}
	return nil
}

// Transact makes all changes or none. An error that is because of one operation
// carries its number.
func (c *Client) Transact(ctx context.Context, operations ...Operation) (TransactAnswer, error) {
	for _, o := range operations {
		if err := checkValues(o.Values); err != nil {
			return TransactAnswer{}, err
		}
	}
	return change[TransactAnswer](ctx, c, RouteSecretTransact, TransactRequest{operations})
}

// Get reads a version of a secret, 0 for the current one.
func (c *Client) Get(ctx context.Context, path string, version secret.Version) (map[string]string, SecretAnswer, error) {
	answer, err := read[SecretAnswer](ctx, c, RouteSecretGet, PathRequest{path, version})
	if err != nil {
		return nil, answer, err
	}
	var values map[string]string
	if err := json.Unmarshal(answer.Values, &values); err != nil {
		return nil, answer, secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
	}
	return values, answer, nil
}

// List lists paths that begin with prefix.
func (c *Client) List(ctx context.Context, prefix string) (ListAnswer, error) {
	return read[ListAnswer](ctx, c, RouteSecretList, ListRequest{prefix})
}

// Metadata describes a secret and all its versions.
func (c *Client) Metadata(ctx context.Context, path string) (MetadataAnswer, error) {
	return read[MetadataAnswer](ctx, c, RouteSecretMetadata, PathRequest{Path: path})
}

// Delete soft-deletes versions; none means the current one.
func (c *Client) Delete(ctx context.Context, path string, versions ...secret.Version) (ChangeAnswer, error) {
	return change[ChangeAnswer](ctx, c, RouteSecretDelete, VersionsRequest{path, versions})
}

// Undelete makes deleted versions readable again.
func (c *Client) Undelete(ctx context.Context, path string, versions ...secret.Version) (ChangeAnswer, error) {
	return change[ChangeAnswer](ctx, c, RouteSecretUndelete, VersionsRequest{path, versions})
}

// Destroy removes the contents of versions for good.
func (c *Client) Destroy(ctx context.Context, path string, versions ...secret.Version) (ChangeAnswer, error) {
	return change[ChangeAnswer](ctx, c, RouteSecretDestroy, VersionsRequest{path, versions})
}

// Purge removes a secret with everything that is known of it.
func (c *Client) Purge(ctx context.Context, path string) (ChangeAnswer, error) {
	return change[ChangeAnswer](ctx, c, RouteSecretPurge, PathRequest{Path: path})
}

// PutPolicy creates or replaces a policy.
func (c *Client) PutPolicy(ctx context.Context, p Policy) (ChangeAnswer, error) {
	p.Created, p.Updated = nil, nil
	return change[ChangeAnswer](ctx, c, RoutePolicyPut, p)
}

// GetPolicy reads a policy.
func (c *Client) GetPolicy(ctx context.Context, name string) (Policy, error) {
	return read[Policy](ctx, c, RoutePolicyGet, NameRequest{name})
}

// DeletePolicy removes a policy.
func (c *Client) DeletePolicy(ctx context.Context, name string) (ChangeAnswer, error) {
	return change[ChangeAnswer](ctx, c, RoutePolicyDelete, NameRequest{name})
}

// ListPolicies reads all policies.
func (c *Client) ListPolicies(ctx context.Context) ([]Policy, error) {
	answer, err := read[PoliciesAnswer](ctx, c, RoutePolicyList, struct{}{})
	return answer.Policies, err
}

// alter asks for a change of the members; see calls.
func (c *Client) alter(ctx context.Context, route string, request any) (maybe bool, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return false, err
	}
	return c.calls(ctx, http.MethodPost, route, body, &struct{}{}, "", true)
}

// Status describes the cluster as the peer that answers sees it: one that knows a leader, if there is such a peer. What
// a peer without a leader shows may be long over; one that was removed still sees the members of before.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	if err := c.call(ctx, http.MethodGet, RouteStatus, nil, &status, ""); err != nil || status.Leader != "" {
		return status, err
	}
	ctx, cancel := c.patient(ctx)
	defer cancel()
	answers := make(chan int, len(c.peers)) // places of peers that know a leader, or -1
	all := make([]Status, len(c.peers))
	for i := range c.peers {
		go func() {
			var err error
			if all[i], err = c.StatusOf(ctx, i); err != nil || all[i].Leader == "" {
				i = -1
			}
			answers <- i
		}()
	}
	for range c.peers {
		if i := <-answers; i >= 0 {
			c.prefer.Store(uint32(i))
			return all[i], nil
		}
	}
	return status, nil
}

// StatusOf is Status from one peer, by its place in Peers.
func (c *Client) StatusOf(ctx context.Context, peer int) (status Status, err error) {
	code, body, err := c.attempt(ctx, c.peers[peer], http.MethodGet, RouteStatus, nil, "")
	switch {
	case err != nil:
		return status, err
	case code != http.StatusOK:
		return status, failure(code, body)
	case json.Unmarshal(body, &status) != nil:
		return status, secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
	}
	return status, nil
}

// Health asks one peer, by its place in Peers, how it is.
func (c *Client) Health(ctx context.Context, peer int) (Health, error) {
	var health Health
	_, body, err := c.attempt(ctx, c.peers[peer], http.MethodGet, RouteHealth, nil, "")
	if err == nil && json.Unmarshal(body, &health) != nil {
		err = secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
	}
	return health, err
}

// Wire calls a route of the SPIKE protocol; the answer is decoded into answer.
func (c *Client) Wire(ctx context.Context, route, action string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if action != "" {
		route += "?action=" + url.QueryEscape(action)
	}
	return c.call(ctx, http.MethodPost, route, body, answer, "")
}

func read[A any](ctx context.Context, c *Client, route string, request any) (answer A, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return answer, err
	}
	return answer, c.call(ctx, http.MethodPost, route, body, &answer, "")
}

func change[A any](ctx context.Context, c *Client, route string, request any) (answer A, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return answer, err
	}
	ctx, cancel := c.patient(ctx)
	defer cancel()
	if c.seen.Load() == 0 { // a retry needs an index from before the first attempt
		if err := c.learn(ctx); err != nil {
			return answer, err
		}
	}
	var id [16]byte
	rand.Read(id[:])
	return answer, c.call(ctx, http.MethodPost, route, body, &answer, hex.EncodeToString(id[:])+"."+strconv.FormatUint(c.seen.Load(), 10))
}

func (c *Client) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.cfg.Patience)
}

// learn asks the peers until one has told a published index.
func (c *Client) learn(ctx context.Context) error {
	for try := 0; ; try++ {
		peer := c.peers[try%len(c.peers)]
		_, _, err := c.attempt(ctx, peer, http.MethodGet, RouteHealth, nil, "")
		if c.seen.Load() > 0 {
			return nil
		}
		if err == nil {
			err = secret.Errorf(secret.CodeSealed, "no peer that was asked is unsealed")
		}
		if !pause(ctx, try, len(c.peers)) {
			return unavailable(err)
		}
	}
}

// call tries the peers in turn until one gives an answer that is final.
func (c *Client) call(ctx context.Context, method, route string, body []byte, answer any, writeID string) error {
	_, err := c.calls(ctx, method, route, body, answer, writeID, writeID != "")
	return err
}

// calls is call. changes says that the request changes something; then maybe says
// that an attempt may have done so whose outcome is not known.
func (c *Client) calls(ctx context.Context, method, route string, body []byte, answer any, writeID string, changes bool) (maybe bool, _ error) {
	ctx, cancel := c.patient(ctx)
	defer cancel()
	var told, met error // what a peer said last, how an attempt ended last: better than that our own time was up
	first := int(c.prefer.Load())
	for try := 0; ; try++ {
		at := (first + try) % len(c.peers)
		status, got, err := c.attempt(ctx, c.peers[at], method, route, body, writeID)
		if err == nil && status == http.StatusOK {
			if at != first {
				c.prefer.Store(uint32(at))
			}
			if err := json.Unmarshal(got, answer); err != nil {
				return maybe, secret.Errorf(secret.CodeInternal, "the peer's answer is not understood")
			}
			return maybe, nil
		}
		if err == nil {
			err = failure(status, got)
			told = err
		} else {
			maybe = maybe || changes && !errors.Is(err, errNotSent)
			if ctx.Err() == nil {
				met = err
			}
		}
		switch secret.CodeOf(err) {
		case secret.CodeForeignToken: // the cluster was restored: what we held is of another time
			c.session.lose()
		case secret.CodeUnknown:
			maybe = maybe || changes
		case secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded:
		case secret.CodeConflict, secret.CodeNotFound: // which a peer says only when no earlier attempt was made
			return maybe, err
		default:
			if maybe && writeID != "" { // that this attempt was refused says nothing of the one before it
				return true, outcomeUnknown(err)
			}
			return maybe, err
		}
		if !errors.Is(ctx.Err(), context.Canceled) { // the next call, if there is no time for another try, does not begin with a peer that does not serve
			c.prefer.CompareAndSwap(uint32(at), uint32((at+1)%len(c.peers)))
		}
		if !pause(ctx, try, len(c.peers)) {
			err = cmp.Or(told, met, err)
			if maybe {
				return true, outcomeUnknown(err)
			}
			return false, unavailable(err)
		}
	}
}

func outcomeUnknown(cause error) error {
	return &secret.Error{Code: secret.CodeUnknown, Message: "the outcome is unknown: the change may or may not have been made; read before writing again", Cause: cause}
}

// briefest is the least time that a peer has for an answer, if the caller has it:
// a status of a cluster with a dead peer takes a second.
const briefest = 2 * time.Second

// lastTry is the least time that another try is worth: one that ends without an
// answer would leave in doubt what the ones before it had settled.
const lastTry = 500 * time.Millisecond

// pause waits between tries: not before every peer was asked once, then longer
// and longer up to 400 ms. It is false when there is no time for another.
func pause(ctx context.Context, try, peers int) bool {
	wait := time.Duration(0)
	if try+1 >= peers {
		wait = time.Duration(25<<min(try+1-peers, 4)) * time.Millisecond
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait+lastTry {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return ctx.Err() == nil
	}
}

// allowance is how long a peer may work on a request that is waited for until
// deadline: less, so that its answer arrives.
func allowance(deadline time.Time) time.Duration {
	left := time.Until(deadline)
	return max(left-min(left/4, time.Second), time.Millisecond)
}

func unavailable(err error) error {
	var e *secret.Error
	if errors.As(err, &e) {
		return err
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "no peer of the cluster answered", Cause: err}
}

// errNotSent marks attempts that ended before anything was sent.
var errNotSent = errors.New("no connection")

const maxAnswer = 64 << 20

func (c *Client) attempt(ctx context.Context, peer, method, route string, body []byte, writeID string) (status int, answer []byte, err error) {
	limit := c.cfg.Attempt
	if deadline, ok := ctx.Deadline(); ok && len(c.peers) > 1 { // a peer that says nothing leaves time for another
		limit = min(limit, max(briefest, time.Until(deadline)/2))
	}
	switch route {
	case RouteKeyRekey:
		limit = max(limit, rekeyAttempt)
	case RouteSnapshotSave, RouteSnapshotDrill:
		limit = max(limit, errandAttempt)
	}
	return c.attemptWithin(ctx, limit, peer, method, route, body, writeID)
}

func (c *Client) attemptWithin(ctx context.Context, limit time.Duration, peer, method, route string, body []byte, writeID string) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var sent atomic.Bool // perhaps: without a connection certainly not
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	request, err := http.NewRequestWithContext(ctx, method, peer+route, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
		if deadline, ok := ctx.Deadline(); ok && route != RouteSecretWatch { // a watch says itself how long
			request.Header.Set(HeaderTimeout, strconv.FormatInt(allowance(deadline).Milliseconds(), 10))
		}
	}
	if writeID != "" {
		request.Header.Set(HeaderWriteID, writeID)
		// Ours to decide: Go would repeat on its own only what it calls idempotent.
		request.GetBody = nil
	}
	token, since := c.session.token()
	if token != "" && c.cfg.IndexReads && method == http.MethodPost && writeID == "" {
		request.Header.Set(HeaderConsistency, AtIndex)
		request.Header.Set(HeaderToken, token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		if !sent.Load() {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return 0, nil, describe(peer, err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, nil, describe(peer, err)
	}
	if index, err := strconv.ParseUint(response.Header.Get(HeaderIndex), 10, 64); err == nil {
		for seen := c.seen.Load(); index > seen && !c.seen.CompareAndSwap(seen, index); seen = c.seen.Load() {
		}
	}
	if c.cfg.IndexReads && method == http.MethodPost && response.StatusCode != http.StatusServiceUnavailable {
		c.session.answered(response.Header.Get(HeaderToken), since)
	}
	return response.StatusCode, answer, nil
}

// describe says what is known of a failed attempt.
func describe(peer string, err error) error {
	var name *net.DNSError
	if errors.As(err, &name) { // it may come: names of peers do, where they are started by an orchestrator
		return &secret.Error{Code: secret.CodeUnavailable, Message: "the name of the peer " + peer + " does not resolve", Reason: ReasonNoSuchHost, Cause: err}
	}
	return &secret.Error{Code: secret.CodeUnavailable, Message: "the peer " + peer + " does not answer", Cause: err}
}

// wireCodes reads the words of the SPIKE protocol.
var wireCodes = map[string]secret.Code{
	"api_bad_request": secret.CodeInvalid, "access_unauthorized": secret.CodeDenied, "api_not_found": secret.CodeNotFound,
	"state_not_ready": secret.CodeUnavailable, "api_internal_error": secret.CodeInternal,
}

func failure(status int, body []byte) error {
	var native Failure
	if json.Unmarshal(body, &native) == nil && native.Code != "" {
		return &secret.Error{Code: native.Code, Message: native.Message, Reason: native.Reason, Current: native.Current, Operation: native.Operation}
	}
	var wire struct{ Err, Reason string }
	if json.Unmarshal(body, &wire) == nil {
		if code, ok := wireCodes[wire.Err]; ok {
			return &secret.Error{Code: code, Message: "the peer answered " + wire.Err, Reason: wire.Reason}
		}
	}
	return secret.Errorf(secret.CodeInternal, "the peer answered with status %d", status)
}
