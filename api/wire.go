package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/policy"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// failed is the end of every answer of the SPIKE protocol. A typed answer that
// failed carries its zero values and err.
type failed struct {
	Err    string `json:"err,omitempty"`
	Reason string `json:"reason,omitempty"` // ours: why, where one err has several causes
}

func (f *failed) fail(word, reason string) { f.Err, f.Reason = word, reason }

type (
	wirePath struct {
		Path    string `json:"path"`
		Version int    `json:"version"`
	}
	wirePut struct {
		Path   string            `json:"path"`
		Values map[string]string `json:"values"`
	}
	wireVersions struct {
		Path     string `json:"path"`
		Versions []int  `json:"versions"`
	}
	wireData struct {
		Data json.RawMessage `json:"data"`
		failed
	}
	wireKeys struct {
		Keys []string `json:"keys"`
		failed
	}
	wireMetadata struct {
		Versions map[string]wireVersion `json:"versions,omitempty"`
		Metadata wireMetadataInfo       `json:"metadata"`
		failed
	}
	wireVersion struct {
		Created time.Time  `json:"createdTime"`
		Version int        `json:"version"`
		Deleted *time.Time `json:"deletedTime"`
	}
	wireMetadataInfo struct {
		Current     int       `json:"currentVersion"`
		Oldest      int       `json:"oldestVersion"`
		Created     time.Time `json:"createdTime"`
		Updated     time.Time `json:"updatedTime"`
		MaxVersions int       `json:"maxVersions"`
	}
	wirePolicyPut struct {
		Name        string   `json:"name"`
		SPIFFEID    string   `json:"spiffeidPattern"`
		Path        string   `json:"pathPattern"`
		Permissions []string `json:"permissions"`
	}
	wireID struct {
		ID string `json:"id"` // holds the policy's name
	}
	wirePolicy struct {
		ID          string    `json:"id"`
		Name        string    `json:"name"`
		SPIFFEID    string    `json:"spiffiedPattern"` // sic
		Path        string    `json:"pathPattern"`
		Permissions []string  `json:"permissions"`
		Created     time.Time `json:"createdAt"`
		Updated     time.Time `json:"updatedAt"`
		failed
	}
	wireFilter struct {
		SPIFFEID string `json:"spiffeidPattern"`
		Path     string `json:"pathPattern"`
	}
	wirePolicies struct {
		Policies []wirePolicyItem `json:"policies"`
		failed
	}
	wirePolicyItem struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	}
	wireShards struct {
		Shards map[int][32]byte `json:"shards"`
		failed
	}
	wireShard struct {
		ID    int       `json:"id"`
		Shard *[32]byte `json:"shard"`
	}
	wireProgress struct {
		Collected int  `json:"collected"`
		Remaining int  `json:"remaining"`
		Restored  bool `json:"restored"`
		failed
	}
	wireHash struct {
		Hash string `json:"hash"`
		failed
	}
)

// wireRoutes serves the SPIKE protocol: every call is POST, the operation is
// path and query parameter "action", matched exactly; all else is 400, or 503
// while there are no keys.
func (s *Server) wireRoutes() http.HandlerFunc {
	st := s.cfg.Store
	routes := map[string]http.HandlerFunc{
		client.WireSecrets: wire(s, func(ctx context.Context, r store.Request, q wirePut) (failed, error) {
			_, err := st.PutSecret(ctx, r, q.Path, q.Values, nil)
			return failed{}, err
		}),
		client.WireSecrets + "?get": wire(s, func(ctx context.Context, r store.Request, q wirePath) (wireData, error) {
			v, err := st.GetSecret(ctx, r, q.Path, wireNumber(q.Version))
			return wireData{Data: v.JSON}, err
		}),
		client.WireSecrets + "?delete": wire(s, func(ctx context.Context, r store.Request, q wireVersions) (failed, error) {
			_, err := st.DeleteVersions(ctx, r, q.Path, wireNumbers(q.Versions))
			return failed{}, err
		}),
		client.WireSecrets + "?undelete": wire(s, func(ctx context.Context, r store.Request, q wireVersions) (failed, error) {
			_, err := st.UndeleteVersions(ctx, r, q.Path, wireNumbers(q.Versions))
			return failed{}, err
		}),
		client.WireSecrets + "?list": wire(s, func(ctx context.Context, r store.Request, _ struct{}) (wireKeys, error) {
			keys, err := st.ListAll(ctx, r)
			return wireKeys{Keys: keys}, err
		}),
		client.WireMetadata + "?get": wire(s, func(ctx context.Context, r store.Request, q wirePath) (wireMetadata, error) {
			m, err := st.GetMetadata(ctx, r, q.Path, wireNumber(q.Version), false)
			return toWireMetadata(m), err
		}),
		client.WirePolicy: wire(s, func(ctx context.Context, r store.Request, q wirePolicyPut) (failed, error) {
			return failed{}, s.wirePutPolicy(ctx, r, q)
		}),
		client.WirePolicy + "?get": wire(s, func(ctx context.Context, r store.Request, q wireID) (wirePolicy, error) {
			p, err := st.GetPolicy(ctx, r, q.ID)
			if err != nil {
				return wirePolicy{}, err
			}
			return wirePolicy{Name: p.Name, SPIFFEID: policy.ToWire(p.SPIFFEID), Path: policy.ToWire(p.Path),
				Permissions: p.Permissions.Names(), Created: p.CreatedAt, Updated: p.UpdatedAt}, nil
		}),
		client.WirePolicy + "?delete": wire(s, func(ctx context.Context, r store.Request, q wireID) (failed, error) {
			_, err := st.DeletePolicy(ctx, r, q.ID)
			return failed{}, err
		}),
		client.WirePolicy + "?list": wire(s, func(ctx context.Context, r store.Request, q wireFilter) (wirePolicies, error) {
			list, err := st.ListPolicies(ctx, r)
			if err != nil {
				return wirePolicies{}, err
			}
			return wirePolicies{Policies: filter(list, q)}, nil
		}),
		client.WireEncrypt: s.cipher(s.encryptJSON(), s.encryptStream),
		client.WireDecrypt: s.cipher(s.decryptJSON(), s.decryptStream),
		client.WireVerify: wire(s, func(ctx context.Context, r store.Request, q wireVerify) (wireHash, error) {
			plain, err := st.Verify(ctx, r, q.Nonce, q.Ciphertext)
			if err != nil {
				return wireHash{}, err
			}
			defer clear(plain)
			sum := sha256.Sum256(plain)
			return wireHash{Hash: hex.EncodeToString(sum[:])}, nil
		}),
		client.WireRecover: wire(s, func(ctx context.Context, r store.Request, _ struct{}) (wireShards, error) {
			shares, err := st.Recover(ctx, r)
			if err != nil {
				return wireShards{}, err
			}
			answer := wireShards{Shards: map[int][32]byte{}}
			for _, share := range shares {
				answer.Shards[share.Index] = share.Bytes
			}
			return answer, nil
		}),
		client.WireRestore: wire(s, func(ctx context.Context, r store.Request, q wireShard) (wireProgress, error) {
			share := store.RecoveryShare{Index: q.ID}
			if q.Shard != nil {
				share.Bytes = *q.Shard
				defer clear(q.Shard[:])
			}
			p, err := st.Restore(ctx, r, share)
			return wireProgress{Collected: p.Collected, Remaining: p.Remaining, Restored: p.Restored}, err
		}),
	}
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		sealable := path != client.WireRecover && path != client.WireRestore
		if sealable && s.cfg.Store.Sealed() {
			request, err := s.open(w, r)
			if err == nil {
				err = s.cfg.Store.RefuseSealed(request)
			}
			s.sendWire(w, request, &failed{}, err)
			return
		}
		if r.URL.Query().Has("action") {
			if action := r.URL.Query().Get("action"); action != "" {
				path += "?" + action
			}
		}
		handler, ok := routes[path]
		if !ok || r.Method != http.MethodPost {
			request, err := s.open(w, r)
			if err == nil {
				err = secret.Invalid("", "there is no such operation")
			}
			s.sendWire(w, request, &failed{}, err)
			return
		}
		handler(w, r)
	}
}

// failing is an answer that can carry a failure.
type failing[A any] interface {
	*A
	fail(word, reason string)
}

// wire makes a handler of an operation of the SPIKE protocol: read, parse,
// authorise, validate, act.
func wire[Q, A any, P failing[A]](s *Server, operation func(context.Context, store.Request, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var answer A
		request, err := s.open(w, r)
		if err == nil {
			var body []byte
			if body, err = readBody(w, r, s.cfg.BodyLimit); err == nil {
				defer clear(body)
				var query Q
				if err = decode(body, &query, false); err == nil {
					answer, err = operation(r.Context(), request, query)
				}
			}
		}
		if err != nil {
			answer = *new(A)
		}
		s.sendWire(w, request, P(&answer), err)
	}
}

func (s *Server) sendWire(w http.ResponseWriter, r store.Request, answer interface{ fail(word, reason string) }, err error) {
	s.stamp(w, r)
	if err == nil {
		send(w, http.StatusOK, answer)
		return
	}
	e, o := lookup(err)
	s.logInternal(r.ID, e)
	answer.fail(o.word, e.Reason)
	retryAfter(w, o.wire)
	send(w, o.wire, answer)
}

func (s *Server) wirePutPolicy(ctx context.Context, r store.Request, q wirePolicyPut) error {
	// What the wire cannot say is found before the door is asked, but told only
	// to those who may write policies: the door denies the others first.
	p, invalid := parseWirePolicy(q)
	if invalid != nil {
		return s.cfg.Store.RefusePolicy(ctx, r, q.Name, invalid)
	}
	_, err := s.cfg.Store.PutPolicy(ctx, r, p)
	return err
}

func parseWirePolicy(q wirePolicyPut) (secret.Policy, error) {
	if _, err := secret.ParseName("policy name", q.Name); err != nil {
		return secret.Policy{}, err
	}
	spiffeID, err := policy.FromWire("spiffeidPattern", q.SPIFFEID, true)
	if err != nil {
		return secret.Policy{}, err
	}
	path, err := policy.FromWire("pathPattern", q.Path, false)
	if err != nil {
		return secret.Policy{}, err
	}
	permissions, err := secret.ParsePermissions(q.Permissions)
	if err != nil {
		return secret.Policy{}, err
	}
	return secret.Policy{Name: q.Name, SPIFFEID: spiffeID, Path: path, Permissions: permissions}, nil
}

// filter selects by exact equality; the SPIFFE pattern wins when both are given.
func filter(list []secret.Policy, q wireFilter) []wirePolicyItem {
	items := []wirePolicyItem{}
	for _, p := range list {
		switch {
		case q.SPIFFEID != "" && policy.ToWire(p.SPIFFEID) != q.SPIFFEID:
		case q.SPIFFEID == "" && q.Path != "" && policy.ToWire(p.Path) != q.Path:
		default:
			items = append(items, wirePolicyItem{Name: p.Name})
		}
	}
	return items
}

func toWireMetadata(m store.Metadata) wireMetadata {
	answer := wireMetadata{Metadata: wireMetadataInfo{int(m.Current), int(m.Oldest), m.Created, m.Updated, m.MaxVersions}}
	for _, v := range m.Versions {
		if answer.Versions == nil {
			answer.Versions = map[string]wireVersion{}
		}
		shown := wireVersion{Created: v.Created, Version: int(v.Version)}
		if !v.Deleted.IsZero() {
			deleted := v.Deleted
			shown.Deleted = &deleted
		}
		answer.Versions[strconv.Itoa(int(v.Version))] = shown
	}
	return answer
}

// wireNumber reads a version of the wire. A negative one, which SPIKE's clients
// never send, becomes a version that cannot exist.
func wireNumber(n int) secret.Version {
	if n < 0 {
		return secret.Version(1) << 62
	}
	return secret.Version(n)
}

func wireNumbers(list []int) []secret.Version {
	versions := make([]secret.Version, len(list))
	for i, n := range list {
		versions[i] = wireNumber(n)
	}
	return versions
}
