package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// authority is a throw-away CA that gives peers SPIFFE-like identities.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

const idPrefix = "spiffe://test/spike/nexus/"

// security is the identity of one peer.
type security struct {
	ca   *authority
	cert tls.Certificate
}

func (a *authority) identity(t testing.TB, id string) *security {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	uri, err := url.Parse(idPrefix + id)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must(t, err)
	return &security{a, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

func (s *security) Server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{s.cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: s.ca.pool}
}

func (s *security) Client(id string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{s.cert}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: s.ca.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			if got, err := s.Peer(cs); err != nil || got != id {
				return fmt.Errorf("it is %q, not %q", got, id)
			}
			return nil
		},
	}
}

func (s *security) Peer(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) != 1 {
		return "", errors.New("no SPIFFE id")
	}
	id, ok := strings.CutPrefix(cs.PeerCertificates[0].URIs[0].String(), idPrefix)
	if !ok {
		return "", errors.New("not a Nexus peer")
	}
	return id, nil
}

// journal is a state machine that remembers every command in order.
type journal struct {
	mu      sync.Mutex
	entries [][]byte
	index   uint64
	refuse  string        // Apply fails on this command
	hold    chan struct{} // when set, Apply waits for it

	holdRestore <-chan struct{} // when set, Restore waits for it
	restores    int
}

func (j *journal) Apply(index, term uint64, commands [][]byte) ([][]byte, error) {
	j.mu.Lock()
	hold := j.hold
	j.mu.Unlock()
	if hold != nil {
		<-hold
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range commands {
		if j.refuse != "" && string(c) == j.refuse {
			return nil, errors.New("unknown level")
		}
	}
	out := make([][]byte, len(commands))
	for i, c := range commands {
		j.entries = append(j.entries, bytes.Clone(c))
		out[i] = fmt.Appendf(nil, "%d:%s", len(j.entries), c[:min(len(c), 32)])
	}
	j.index = index
	return out, nil
}

func (j *journal) Snapshot() (Snapshot, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return journalSnapshot{j.entries[:len(j.entries):len(j.entries)], j.index}, nil
}

type journalSnapshot struct {
	entries [][]byte
	index   uint64
}

func (s journalSnapshot) Write(w io.Writer) error {
	b := binary.BigEndian.AppendUint64(nil, s.index)
	b = binary.BigEndian.AppendUint64(b, uint64(len(s.entries)))
	for _, e := range s.entries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(e)))
		b = append(b, e...)
	}
	_, err := w.Write(b)
	return err
}

func (j *journal) Restore(r io.Reader) error {
	j.mu.Lock()
	j.restores++
	hold := j.holdRestore
	j.mu.Unlock()
	if hold != nil {
		<-hold
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if len(b) < 16 {
		return errors.New("short journal")
	}
	index, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	b = b[16:]
	var entries [][]byte
	for range n {
		l := binary.BigEndian.Uint32(b)
		entries = append(entries, b[4:4+l])
		b = b[4+l:]
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.index, j.entries = index, entries
	return nil
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]string, len(j.entries))
	for i, e := range j.entries {
		out[i] = string(e)
	}
	return out
}

func (j *journal) has(s string) bool {
	for _, e := range j.all() {
		if e == s {
			return true
		}
	}
	return false
}

// network lets tests cut peers off: a blocked pair can neither dial nor keep
// what it dialled.
type network struct {
	mu      sync.Mutex
	blocked map[[2]string]bool // from, to address
	conns   map[*cutConn]struct{}
	owner   map[string]string        // address → peer
	drag    map[string]time.Duration // to peer: each long write takes so long
}

func newNetwork() *network {
	return &network{blocked: map[[2]string]bool{}, conns: map[*cutConn]struct{}{}, owner: map[string]string{}, drag: map[string]time.Duration{}}
}

// cutConn silently loses everything while its pair is blocked.
type cutConn struct {
	net.Conn
	nw       *network
	from, to string
}

func (w *network) isCut(from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.blocked[[2]string{from, to}]
}

func (c *cutConn) Write(b []byte) (int, error) {
	c.nw.mu.Lock()
	drag := c.nw.drag[c.to]
	c.nw.mu.Unlock()
	if len(b) > 2048 && drag > 0 {
		time.Sleep(drag)
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Close() error {
	c.nw.mu.Lock()
	delete(c.nw.conns, c)
	c.nw.mu.Unlock()
	return c.Conn.Close()
}

func (w *network) dialer(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, nw, address string) (net.Conn, error) {
		w.mu.Lock()
		to := w.owner[address]
		w.mu.Unlock()
		if w.isCut(from, to) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(50 * time.Millisecond):
				return nil, errors.New("cut off")
			}
		}
		c, err := new(net.Dialer).DialContext(ctx, nw, address)
		if err != nil {
			return nil, err
		}
		cc := &cutConn{c, w, from, to}
		w.mu.Lock()
		w.conns[cc] = struct{}{}
		w.mu.Unlock()
		return cc, nil
	}
}

// cut separates two peers, both ways, and breaks their connections.
func (w *network) cut(a, b string) {
	w.mu.Lock()
	w.blocked[[2]string{a, b}], w.blocked[[2]string{b, a}] = true, true
	var broken []*cutConn
	for c := range w.conns {
		if c.from == a && c.to == b || c.from == b && c.to == a {
			broken = append(broken, c)
		}
	}
	w.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

func (w *network) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.blocked)
}

// testCluster is a set of peers on loopback.
type testCluster struct {
	t      testing.TB
	ca     *authority
	net    *network
	dir    string
	peers  []Peer
	tune   func(id string, c *Config)
	nodes  map[string]*Node
	latest sync.Map // nodes, also for goroutines of their own
	sms    map[string]*journal
	lns    map[string]net.Listener
	joins  map[string]string // addresses of peers that join
}

// reluctant has all peers but n1 wait long before they stand for election: n1 leads, also
// on a busy machine, for as long as it lives.
func reluctant(id string, c *Config) {
	if id != "n1" {
		c.Timing = Timing{Heartbeat: 3 * time.Second, Election: 3 * time.Second, Lease: 1500 * time.Millisecond}
	}
}

// patient enough for a busy machine with the race detector: no test may depend on that nothing stands still for so long.
var fast = Timing{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond, Lease: 500 * time.Millisecond}

func newTestCluster(t testing.TB, ids ...string) *testCluster {
	t.Helper()
	c := &testCluster{t: t, ca: newAuthority(t), net: newNetwork(), dir: t.TempDir(),
		nodes: map[string]*Node{}, sms: map[string]*journal{}, lns: map[string]net.Listener{}, joins: map[string]string{}}
	for _, id := range ids {
		ln := listen(t, "127.0.0.1:0")
		c.lns[id] = ln
		c.net.owner[ln.Addr().String()] = id
		c.peers = append(c.peers, Peer{id, ln.Addr().String()})
	}
	t.Cleanup(c.stopAll)
	return c
}

func listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var err error
	for range 100 { // the port of a peer that has just stopped
		var ln net.Listener
		if ln, err = net.Listen("tcp", address); err == nil {
			return ln
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

func (c *testCluster) config(id string) Config {
	ln := c.lns[id]
	delete(c.lns, id)
	if ln == nil {
		ln = listen(c.t, c.address(id))
	}
	sm := &journal{}
	c.sms[id] = sm
	cfg := Config{
		ID: id, Dir: filepath.Join(c.dir, id), Listener: ln, Peers: c.peers,
		Security: c.ca.identity(c.t, id), StateMachine: sm, Timing: fast, Dial: c.net.dialer(id),
		Logger: testLogger(id),
	}
	if c.joins[id] != "" {
		cfg.Peers, cfg.Join = nil, c.peers
	}
	if c.tune != nil {
		c.tune(id, &cfg)
	}
	return cfg
}

func (c *testCluster) address(id string) string {
	for _, p := range c.peers {
		if p.ID == id {
			return p.Address
		}
	}
	return c.joins[id]
}

func testLogger(id string) *slog.Logger {
	if os.Getenv("CLUSTER_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("at", id)
}

func (c *testCluster) tryStart(id string) error {
	n, err := Start(context.Background(), c.config(id))
	if err == nil {
		c.nodes[id] = n
		c.latest.Store(id, n)
	}
	return err
}

func (c *testCluster) start(ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		if err := c.tryStart(id); err != nil {
			c.t.Fatalf("start %s: %v", id, err)
		}
	}
}

func (c *testCluster) startAll() {
	c.t.Helper()
	for _, p := range c.peers {
		c.start(p.ID)
	}
}

func (c *testCluster) stop(id string) {
	c.t.Helper()
	n := c.nodes[id]
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		c.t.Errorf("stop %s: %v", id, err)
	}
	delete(c.nodes, id)
}

func (c *testCluster) stopAll() {
	for id := range c.nodes {
		c.stop(id)
	}
	for _, ln := range c.lns {
		_ = ln.Close()
	}
}

func (c *testCluster) leader() *Node {
	c.t.Helper()
	var l *Node
	eventually(c.t, "a leader that all follow", func() bool {
		l = nil
		for _, n := range c.nodes {
			if s := n.Status(); s.State == Leads {
				l = n
			}
		}
		if l == nil {
			return false
		}
		for _, n := range c.nodes {
			if n.leader() != l.cfg.ID {
				return false
			}
		}
		return true
	})
	return l
}

func (c *testCluster) follower() *Node {
	c.t.Helper()
	l := c.leader()
	for _, p := range c.peers {
		if n := c.nodes[p.ID]; n != nil && n != l {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *testCluster) propose(n *Node, s string) Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		r, err := n.Propose(ctx, []byte(s))
		if err == nil {
			return r
		}
		// On a busy machine a leader may lose a lease as short as the tests'. Then
		// what became of the proposal is read, as a client would.
		if !errors.Is(err, ErrUnknownOutcome) {
			c.t.Fatalf("propose %.40q at %s: %v", s, n.cfg.ID, err)
		}
		index, err := n.WaitRead(ctx)
		if err != nil {
			c.t.Fatalf("propose %.40q at %s: its outcome is unknown, and %v", s, n.cfg.ID, err)
		}
		if n.cfg.StateMachine.(*journal).has(s) {
			return Result{Index: index}
		}
	}
}

// same waits until all nodes have applied the same, and returns it.
func (c *testCluster) same() []string {
	c.t.Helper()
	var first []string
	eventually(c.t, "equal state on all peers", func() bool {
		first = nil
		for id := range c.nodes {
			all := c.sms[id].all()
			if first == nil {
				first = all
			} else if strings.Join(first, "\n") != strings.Join(all, "\n") {
				return false
			}
		}
		return true
	})
	return first
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyAt(t, 5*time.Millisecond, what, ok)
}

func eventuallyAt(t testing.TB, every time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(every)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
