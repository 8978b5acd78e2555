// Package nodetest runs a whole cluster in one test process: a development
// authority, Keepers and Nexus peers, over real TLS on loopback and with real
// files. Everything is taken down with the test.
package nodetest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/seal/keeper"
	"github.com/spike-ha/spike-ha/secret"
)

// Domain is the trust domain of test clusters.
const Domain = "example.org"

// Patience bounds every wait; it is long because test machines are busy.
const Patience = 2 * time.Minute

// Options shape a cluster; zero values mean three peers and three Keepers.
type Options struct {
	Peers, Keepers int
	// Configure changes the configuration of a peer before it starts.
	Configure func(i int, c *node.Config)
	// SVIDLife is how long identities last; an hour when 0.
	SVIDLife time.Duration
}

// Cluster is a running cluster. Its methods fail the test rather than return errors.
type Cluster struct {
	T         testing.TB
	Authority *devca.Authority
	Dir       string

	options Options
	log     *slog.Logger
	peers   []*peer
	keepers []*held
	mu      sync.Mutex
	sources []*identity.Source
}

type peer struct {
	cfg      node.Config
	api, rpc string // addresses, kept over restarts
	node     *node.Node
}

type held struct {
	name, address string
	stop          context.CancelFunc
	done          chan struct{}
}

// New starts a cluster; it is formed but has no root key until Bootstrap.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Peers == 0 {
		o.Peers = 3
	}
	if o.Keepers == 0 {
		o.Keepers = 3
	}
	// Paths of sockets are limited to some hundred bytes, and those of t.TempDir
	// are long.
	dir, err := os.MkdirTemp("", "spike")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &Cluster{T: t, Dir: dir, options: o, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c.Authority, err = devca.Serve(ctx, devca.Options{Dir: filepath.Join(dir, "id"), TrustDomain: Domain, TTL: o.SVIDLife, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Authority.Close)
	for i := range o.Keepers {
		k := &held{name: fmt.Sprintf("keeper-%d", i+1)}
		c.keepers = append(c.keepers, k)
		c.StartKeeper(i)
	}
	var all []string
	var listeners [][2]net.Listener
	for i := range o.Peers {
		pair := [2]net.Listener{Listen(t, "127.0.0.1:0"), Listen(t, "127.0.0.1:0")}
		listeners = append(listeners, pair)
		all = append(all, fmt.Sprintf("nexus-%d=%s", i+1, pair[1].Addr()))
	}
	for i := range o.Peers {
		c.place(listeners[i], func(cfg *node.Config) { cfg.Peers = strings.Join(all, ",") })
	}
	for i := range c.peers {
		c.Start(i)
	}
	t.Cleanup(func() {
		for i := range c.peers {
			c.Stop(i)
		}
		for i := range c.keepers {
			c.StopKeeper(i)
		}
		for _, s := range c.sources {
			s.Close()
		}
	})
	return c
}

// place makes a place for the next peer, which is not started yet.
func (c *Cluster) place(listeners [2]net.Listener, list func(*node.Config)) {
	i := len(c.peers)
	cfg := node.Default()
	cfg.ID = fmt.Sprintf("nexus-%d", i+1)
	cfg.DataDir = filepath.Join(c.Dir, cfg.ID)
	cfg.TrustRoot = Domain
	cfg.Heartbeat = time.Second // a busy machine with the race detector does not lose its leaders by that
	cfg.EndpointSocket = c.Socket("/spike/nexus/" + cfg.ID)
	cfg.APIListener, cfg.PeerListener = listeners[0], listeners[1]
	var keepers []string
	for _, k := range c.keepers {
		keepers = append(keepers, k.name+"=https://"+k.address)
	}
	cfg.Keepers = strings.Join(keepers, ",")
	list(&cfg)
	if c.options.Configure != nil {
		c.options.Configure(i, &cfg)
	}
	c.peers = append(c.peers, &peer{cfg: cfg, api: listeners[0].Addr().String(), rpc: listeners[1].Addr().String()})
}

// Join starts one more peer, that wants to join the cluster, and returns its
// number, its id and the address of its peer link. It waits to be added.
func (c *Cluster) Join() (i int, id, address string) {
	c.T.Helper()
	i = len(c.peers)
	var present []string
	for _, p := range c.peers {
		present = append(present, p.cfg.ID+"="+p.rpc)
	}
	c.place([2]net.Listener{Listen(c.T, "127.0.0.1:0"), Listen(c.T, "127.0.0.1:0")}, func(cfg *node.Config) { cfg.Join = strings.Join(present, ",") })
	c.Start(i)
	return i, c.peers[i].cfg.ID, c.peers[i].rpc
}

// Booted starts a cluster, gives it its root key and waits until all serve.
func Booted(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := New(t, o)
	c.Bootstrap()
	c.Ready()
	return c
}

// Listen opens a listener; a port that was just given up is waited for.
func Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	Eventually(t, "port "+address, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l
}

// Eventually waits until check returns nil.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, Patience, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll, not a synchronisation: the deadline above decides
	}
}

// Start starts peer i, again after Stop.
func (c *Cluster) Start(i int) {
	c.T.Helper()
	if err := c.TryStart(i); err != nil {
		c.T.Fatal(err)
	}
}

// TryStart starts peer i and returns why it could not.
func (c *Cluster) TryStart(i int) (err error) {
	c.T.Helper()
	p := c.peers[i]
	if p.cfg.APIListener == nil {
		p.cfg.APIListener, p.cfg.PeerListener = Listen(c.T, p.api), Listen(c.T, p.rpc)
	}
	p.node, err = node.Start(context.Background(), p.cfg, c.log.With("peer", p.cfg.ID))
	if err != nil {
		p.cfg.APIListener.Close()
		p.cfg.PeerListener.Close()
	}
	p.cfg.APIListener, p.cfg.PeerListener = nil, nil
	return err
}

// Stop stops peer i gracefully.
func (c *Cluster) Stop(i int) {
	c.T.Helper()
	p := c.peers[i]
	if p.node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := p.node.Stop(ctx); err != nil {
		c.T.Errorf("stopping %s: %v", p.cfg.ID, err)
	}
	p.node = nil
}

// Node returns peer i, nil while it is stopped.
func (c *Cluster) Node(i int) *node.Node { return c.peers[i].node }

// DataDir is the data directory of peer i.
func (c *Cluster) DataDir(i int) string { return c.peers[i].cfg.DataDir }

// Configure changes the configuration of peer i for its next start.
func (c *Cluster) Configure(i int, change func(*node.Config)) { change(&c.peers[i].cfg) }

// Address is the API address of peer i.
func (c *Cluster) Address(i int) string { return "https://" + c.peers[i].api }

// PeerAddress is the address of the peer link of peer i.
func (c *Cluster) PeerAddress(i int) string { return c.peers[i].rpc }

// Addresses are those of all peers.
func (c *Cluster) Addresses() (list []string) {
	for i := range c.peers {
		list = append(list, c.Address(i))
	}
	return list
}

// Leader waits for a leader and returns its number.
func (c *Cluster) Leader() (leader int) {
	c.T.Helper()
	Eventually(c.T, "a leader", func() error {
		for i, p := range c.peers {
			if p.node != nil && p.node.Health().Leader {
				leader = i
				return nil
			}
		}
		return fmt.Errorf("there is none")
	})
	return leader
}

// StartKeeper starts Keeper i, empty.
func (c *Cluster) StartKeeper(i int) {
	c.T.Helper()
	k := c.keepers[i]
	if k.stop != nil {
		return
	}
	if k.address == "" {
		k.address = "127.0.0.1:0"
	}
	l := Listen(c.T, k.address)
	k.address = l.Addr().String()
	source := c.Source("/spike/keeper/" + k.name)
	domain := []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString(Domain)}
	server := keeper.NewServer(keeper.ServerOptions{Trust: keeper.Trust{Nexus: domain, Bootstrap: domain}, Logger: c.log.With("keeper", k.name)})
	var ctx context.Context
	ctx, k.stop = context.WithCancel(context.Background())
	k.done = make(chan struct{})
	go func() {
		defer close(k.done)
		if err := server.Serve(ctx, l, source); err != nil {
			c.T.Error(err)
		}
	}()
}

// StopKeeper stops Keeper i; its share is gone.
func (c *Cluster) StopKeeper(i int) {
	k := c.keepers[i]
	if k.stop == nil {
		return
	}
	k.stop()
	<-k.done
	k.stop = nil
}

// HangKeeper stops Keeper i and puts something in its place that takes
// connections and says nothing, until the test ends.
func (c *Cluster) HangKeeper(i int) {
	c.T.Helper()
	c.StopKeeper(i)
	l := Listen(c.T, c.keepers[i].address)
	var wg sync.WaitGroup
	wg.Go(func() {
		var taken []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			taken = append(taken, conn)
		}
		for _, conn := range taken {
			conn.Close()
		}
	})
	c.T.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// Socket returns the Workload API socket of an identity, made when it is new.
func (c *Cluster) Socket(path string) string {
	c.T.Helper()
	socket, err := c.Authority.Add(path)
	if err != nil {
		c.T.Fatal(err)
	}
	return socket
}

// Source opens an identity.
func (c *Cluster) Source(path string) *identity.Source {
	c.T.Helper()
	s, err := identity.Open(context.Background(), identity.Options{Socket: c.Socket(path), Timeout: Patience})
	if err != nil {
		c.T.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = append(c.sources, s)
	return s
}

// Role is the SPIFFE path of an operator's role.
func Role(role string) string { return "/spike/pilot/role/" + role }

// Client makes a client with the identity at path, of the peers named; of all
// when none is.
func (c *Cluster) Client(path string, peers ...int) *client.Client {
	c.T.Helper()
	addresses := c.Addresses()
	if len(peers) > 0 {
		addresses = nil
		for _, i := range peers {
			addresses = append(addresses, c.Address(i))
		}
	}
	cl, err := client.New(client.Config{Addresses: addresses, TLS: c.Source(path).Client(Anyone), Patience: Patience})
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(cl.Close)
	return cl
}

// Anyone accepts every identity of the test's authority.
func Anyone(spiffeid.ID) error { return nil }

// Bootstrap gives the cluster its root key.
func (c *Cluster) Bootstrap() {
	c.T.Helper()
	// A conflict is one with an attempt of our own whose answer was lost: nobody else does it.
	if err := c.Client("/spike/bootstrap").Init(context.Background(), client.InitRequest{}); err != nil && secret.CodeOf(err) != secret.CodeConflict {
		c.T.Fatal(err)
	}
}

// Ready waits until every running peer serves.
func (c *Cluster) Ready() {
	c.T.Helper()
	for i, p := range c.peers {
		if p.node != nil {
			Eventually(c.T, fmt.Sprintf("peer %d serves", i+1), func() error {
				if h := p.node.Health(); h.Sealed {
					return fmt.Errorf("%+v", h)
				}
				return nil
			})
		}
	}
	c.Leader()
}
