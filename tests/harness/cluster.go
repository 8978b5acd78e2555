// Package harness runs a cluster of the real programs, nexus and keeper, each a
// process of its own, for tests that break things on purpose: processes are
// killed, frozen and started again, and every link between two peers can be
// cut, each direction for itself.
//
// It knows nothing of what a test checks. It needs no privileges, but for
// namespaces, and Linux for the links: see Links.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/internal/failpoint"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness/faultfs"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// TrustDomain is that of every identity.
const TrustDomain = "spike.ist"

// Superuser is the SPIFFE path of who may do everything.
const Superuser = "/spike/pilot/role/superuser"

// Options say what to run.
type Options struct {
	Dir      string // of this cluster alone; short, for the sake of sockets
	Binaries string // directory of nexus and keeper
	// Versions, by name of a process, are directories of other builds of it.
	Versions map[string]string
	Voters   int // form the cluster: nexus-1 …
	Learners int // join it: the names go on
	Keepers  int // keeper-1 …; 1 when 0
	// Links puts a proxy in front of each peer port. Namespaces, which takes root, the
	// commands ip, tc and nft, and Linux, gives each process a network of its own instead.
	Links, Namespaces bool
	// Disks puts a file system that fails on purpose under the data directory of each peer, which takes root.
	Disks bool
	// Store runs an S3 server, to which every peer archives.
	Store bool
	// Supervise starts peers again that end of their own accord.
	Supervise bool
	// TTL is the life of SVIDs; devca.DefaultTTL when 0.
	TTL time.Duration
	// Args are given to every nexus besides, and ArgsOf to the one of a name.
	Args   []string
	ArgsOf map[string][]string
	// Env is given to every process besides.
	Env []string
	// Failpoints has every process look for the step to die at in a file, which Arm
	// writes. The programs are built with the tag failpoints then.
	Failpoints bool
}

// Cluster is a running cluster. Its methods may be called from any goroutine.
type Cluster struct {
	Authority *devca.Authority
	Links     *Links          // nil without Options.Links and Options.Namespaces
	Store     *s3server.Proxy // what stands in front of the S3 server; nil without Options.Store

	o       Options
	spawner *process.Spawner
	network *network // nil without Options.Namespaces
	peers   []*process.Child
	keepers []*process.Child
	disks   []*faultfs.FS
	store   *s3server.Server
	log     *os.File
	metrics []string
	closing chan struct{} // closed at the end

	mu        sync.Mutex // guards what follows
	addresses []string   // where each peer finds the others
	moves     int        // how often all of them have changed
}

// Start starts everything, gives the cluster its key and waits until all peers
// serve. ctx bounds that. The caller closes the cluster, also after an error.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Keepers == 0 {
		o.Keepers = 1
	}
	c := &Cluster{o: o, spawner: process.NewSpawner(), closing: make(chan struct{})}
	return c, c.start(ctx)
}

func (c *Cluster) start(ctx context.Context) (err error) {
	for _, sub := range []string{"sockets", "logs", "data"} {
		if err := os.MkdirAll(c.path(sub), 0o700); err != nil {
			return err
		}
	}
	if c.log, err = os.Create(c.path("logs", "authority.log")); err != nil {
		return err
	}
	if c.Authority, err = devca.Serve(context.WithoutCancel(ctx), devca.Options{Dir: c.path("sockets"), TrustDomain: TrustDomain,
		TTL: c.o.TTL, Logger: slog.New(slog.NewTextHandler(c.log, nil))}); err != nil {
		return err
	}
	if err := c.plan(ctx); err != nil {
		return err
	}
	if c.o.Disks {
		if err := c.mount(); err != nil {
			return err
		}
	}
	for _, p := range append(c.keepers, c.peers...) {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return c.bringUp(ctx)
}

// plan makes the processes, and starts what they need besides.
func (c *Cluster) plan(ctx context.Context) error {
	total := c.o.Voters + c.o.Learners
	if c.o.Links || c.o.Namespaces {
		c.Links = newLinks(total)
	}
	if c.o.Namespaces {
		network, err := newNetwork(c.Links, total+c.o.Keepers)
		if err != nil {
			return err
		}
		c.network, c.Links.wires = network, network
	}
	listen := make([]string, total)
	for i := range total {
		var err error
		if listen[i], err = c.linkAddress(i, 0); err != nil {
			return err
		}
	}
	c.addresses = slices.Clone(listen)
	if c.o.Links && !c.o.Namespaces {
		proxy, err := newProxy(c.Links, slices.Clone(listen), c.pids)
		if err != nil {
			return err
		}
		c.Links.wires = proxy
		for i := range total {
			c.addresses[i] = proxy.address(i)
		}
	}
	archive, err := c.openStore(ctx)
	if err != nil {
		return err
	}
	var keepers []string
	for i := range c.o.Keepers {
		name := KeeperName(i)
		address, err := c.address(total+i, 8554)
		if err != nil {
			return err
		}
		keepers = append(keepers, name+"=https://"+address)
		child, err := c.child("keeper", name, total+i, "https://"+address, "--id", name, "--listen", address, "--trust-domain", TrustDomain, "--socket")
		if err != nil {
			return err
		}
		c.keepers = append(c.keepers, child)
	}
	for i := range total {
		name := PeerName(i)
		api, err := c.address(i, 8553)
		if err != nil {
			return err
		}
		metrics, err := c.address(i, 9553)
		if err != nil {
			return err
		}
		c.metrics = append(c.metrics, metrics)
		child, err := c.child("nexus", name, i, "https://"+api)
		if err != nil {
			return err
		}
		fixed := []string{"--id", name, "--data-dir", c.DataDir(i), "--listen", api, "--metrics-listen", metrics, "--keepers", strings.Join(keepers, ","),
			"--trust-root", TrustDomain, "--endpoint-socket", child.Args[0]}
		child.Args = slices.Concat(fixed, archive, c.o.Args, c.o.ArgsOf[name], c.places(i, listen[i], c.addresses))
		if c.o.Supervise {
			child.Died = c.supervise
		}
		c.peers = append(c.peers, child)
	}
	return nil
}

// address is where node i, of all peers and Keepers, listens: at a port of its own
// network, or at one that is free.
func (c *Cluster) address(node, port int) (string, error) {
	if c.network == nil {
		return freeAddress()
	}
	return fmt.Sprintf("%s:%d", c.network.address(node), port), nil
}

// linkAddress is address for the other peers; a peer that moves has another.
func (c *Cluster) linkAddress(node, place int) (string, error) {
	if c.network == nil {
		return freeAddress()
	}
	return c.network.link(node, place) + ":8555", nil
}

// places are the arguments of peer i that say where it listens for the others, and
// where they are.
func (c *Cluster) places(i int, listen string, addresses []string) []string {
	var voters []string
	for v := range c.o.Voters {
		voters = append(voters, PeerName(v)+"="+addresses[v])
	}
	others := "--peers"
	if i >= c.o.Voters {
		others = "--join"
	}
	return []string{"--peer-listen", listen, others, strings.Join(voters, ",")}
}

// Readdress gives every peer, none of which runs, another address where the others
// find it, and every peer the list of all of them.
func (c *Cluster) Readdress() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moves++
	listen := make([]string, len(c.peers))
	for i := range c.peers {
		if c.network != nil {
			if err := c.network.setLink(i, c.moves); err != nil {
				return err
			}
		}
		var err error
		if listen[i], err = c.linkAddress(i, c.moves); err != nil {
			return err
		}
		c.addresses[i] = listen[i]
		if p, ok := c.wires().(*proxy); ok {
			if c.addresses[i], err = p.readdress(i, listen[i]); err != nil {
				return err
			}
		}
	}
	for i, peer := range c.peers {
		fixed := slices.Index(peer.Args, "--peer-listen")
		peer.Args = slices.Concat(peer.Args[:fixed], c.places(i, listen[i], c.addresses), []string{"--advertise", c.addresses[i]})
	}
	return nil
}

// wires are what joins the peers; nil when nothing stands between them.
func (c *Cluster) wires() wires {
	if c.Links == nil {
		return nil
	}
	return c.Links.wires
}

// child makes one; its socket is the last of its arguments.
func (c *Cluster) child(program, name string, node int, address string, args ...string) (*process.Child, error) {
	socket, err := c.Authority.Add("/spike/" + program + "/" + name)
	if err != nil {
		return nil, err
	}
	child := &process.Child{Name: name, Address: address, Binary: filepath.Join(c.binaries(name), program), Args: append(args, socket),
		LogFile: c.path("logs", name+".log"), Spawner: c.spawner}
	if c.network != nil {
		child.Spawner = c.network.nodes[node]
	}
	child.Env = slices.Clone(c.o.Env)
	if c.o.Failpoints {
		child.Env = append(child.Env, "SPIKE_FAILPOINT=@"+c.path("data", name+".failpoint"))
	}
	return child, nil
}

// Arm has a process kill itself when it reaches a step next, and live when it is
// started again; "" has it live on. It needs Options.Failpoints.
func (c *Cluster) Arm(p *process.Child, step failpoint.Name) error {
	file := c.path("data", p.Name+".failpoint")
	if step == "" {
		return os.RemoveAll(file)
	}
	if err := os.WriteFile(file+".new", []byte(step), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file) // whole at once
}

// ArmFreeze has a process freeze at a step, until it is thawed.
func (c *Cluster) ArmFreeze(p *process.Child, step failpoint.Name) error {
	return c.Arm(p, failpoint.Freeze+step)
}

// Reached says whether a process died or froze at the step that it was armed for last.
func (c *Cluster) Reached(p *process.Child) bool {
	_, err := os.Stat(c.path("data", p.Name+".failpoint"))
	return errors.Is(err, os.ErrNotExist)
}

func (c *Cluster) binaries(name string) string {
	if dir := c.o.Versions[name]; dir != "" {
		return dir
	}
	return c.o.Binaries
}

// bringUp forms the cluster, gives it its key and adds the learners.
func (c *Cluster) bringUp(ctx context.Context) error {
	boot, done, err := c.Client(ctx, "/spike/bootstrap")
	if err != nil {
		return err
	}
	defer done()
	if err := Poll(ctx, func() error {
		err := boot.Init(ctx, client.InitRequest{})
		if secret.CodeOf(err) == secret.CodeConflict {
			return nil
		}
		return err
	}); err != nil {
		return fmt.Errorf("giving the cluster its key: %w", err)
	}
	operator, done, err := c.Client(ctx, Superuser)
	if err != nil {
		return err
	}
	defer done()
	for i := c.o.Voters; i < len(c.peers); i++ {
		if err := operator.AddMember(ctx, PeerName(i), c.PeerAddress(i)); err != nil {
			return fmt.Errorf("adding %s: %w", PeerName(i), err)
		}
	}
	return Poll(ctx, func() error { return c.Whole(ctx, operator) })
}

// Whole is nil when all members serve the same state at one index.
func (c *Cluster) Whole(ctx context.Context, operator *client.Client) error {
	status, err := operator.Status(ctx)
	if err != nil {
		return err
	}
	if len(status.Peers) != len(c.peers) {
		return fmt.Errorf("%d members", len(status.Peers))
	}
	for _, p := range status.Peers {
		first := status.Peers[0]
		switch {
		case !p.Reachable || p.Sealed || p.Damaged > 0:
			return fmt.Errorf("%s is %s, sealed %v, with %d damaged records: %s", p.ID, p.State, p.Sealed, p.Damaged, p.Reason)
		case p.AppliedIndex != first.AppliedIndex:
			return fmt.Errorf("%s is at index %d, %s at %d", p.ID, p.AppliedIndex, first.ID, first.AppliedIndex)
		case p.StateHash != first.StateHash:
			return fmt.Errorf("%w: %s and %s at index %d", ErrDiverged, p.ID, first.ID, p.AppliedIndex)
		}
	}
	return nil
}

// ErrDiverged says that two peers have different states at one index.
var ErrDiverged = errors.New("the states of two peers differ")

// PeerName and KeeperName name the processes, numbered from 0.
func PeerName(i int) string { return fmt.Sprintf("nexus-%d", i+1) }

// KeeperName is PeerName of Keepers.
func KeeperName(i int) string { return fmt.Sprintf("keeper-%d", i+1) }

// Peer is the process of a peer.
func (c *Cluster) Peer(i int) *process.Child { return c.peers[i] }

// DataDir is the data directory of peer i.
func (c *Cluster) DataDir(i int) string {
	if c.o.Disks {
		return c.path("disks", PeerName(i), "data")
	}
	return c.path("data", PeerName(i))
}

// Peers is how many there are, learners included.
func (c *Cluster) Peers() int { return len(c.peers) }

// Keeper is the process of a Keeper.
func (c *Cluster) Keeper(i int) *process.Child { return c.keepers[i] }

// Keepers is how many Keepers there are.
func (c *Cluster) Keepers() int { return len(c.keepers) }

// PeerAddress is where the others reach a peer.
func (c *Cluster) PeerAddress(i int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addresses[i]
}

// Metrics is the address of a peer's metrics and probes.
func (c *Cluster) Metrics(i int) string { return c.metrics[i] }

// pids are the numbers of the peers by those of their processes.
func (c *Cluster) pids() map[int]int {
	all := map[int]int{}
	for i, p := range c.peers {
		if pid, _, ok := p.Running(); ok {
			all[pid] = i
		}
	}
	return all
}

// Source opens the identity at a SPIFFE path.
func (c *Cluster) Source(ctx context.Context, path string) (*identity.Source, error) {
	socket, err := c.Authority.Add(path)
	if err != nil {
		return nil, err
	}
	return identity.Open(ctx, identity.Options{Socket: socket, Timeout: 30 * time.Second, Logger: slog.New(slog.DiscardHandler)})
}

// Client makes a client with an identity, of the peers named, or of all; the
// caller runs done at the end.
func (c *Cluster) Client(ctx context.Context, path string, peers ...int) (_ *client.Client, done func(), err error) {
	return c.ClientWith(ctx, path, nil, peers...)
}

// ClientWith is Client with changes to how it is configured.
func (c *Cluster) ClientWith(ctx context.Context, path string, with []func(*client.Config), peers ...int) (_ *client.Client, done func(), err error) {
	source, err := c.Source(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	config := client.Config{Addresses: c.APIs(peers...), Attempt: 5 * time.Second, Patience: 90 * time.Second,
		TLS: source.Client(func(spiffeid.ID) error { return nil })}
	for _, change := range with {
		change(&config)
	}
	cl, err := client.New(config)
	if err != nil {
		source.Close()
		return nil, nil, err
	}
	return cl, func() { cl.Close(); source.Close() }, nil
}

// APIs are the addresses of the peers named, or of all.
func (c *Cluster) APIs(peers ...int) (list []string) {
	for i, p := range c.peers {
		if len(peers) == 0 {
			list = append(list, p.Address)
		}
		for _, want := range peers {
			if want == i {
				list = append(list, p.Address)
			}
		}
	}
	return list
}

// Logs writes the end of each process's log to w.
func (c *Cluster) Logs(w io.Writer, bytesOfEach int) {
	names, _ := filepath.Glob(c.path("logs", "*.log"))
	for _, name := range names {
		raw, _ := os.ReadFile(name)
		fmt.Fprintf(w, "--- %s\n%s\n", filepath.Base(name), raw[max(0, len(raw)-bytesOfEach):])
	}
}

// Close kills what runs; the directory stays.
func (c *Cluster) Close() {
	close(c.closing)
	for _, d := range c.disks {
		d.Suffer(faultfs.Fault{}) // a process that waits for its disk cannot be killed
	}
	for _, p := range append(c.peers, c.keepers...) {
		p.Thaw()
		p.Kill()
	}
	if err := c.unmount(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if w := c.wires(); w != nil {
		w.close()
	}
	c.closeStore()
	if c.Authority != nil {
		c.Authority.Close()
	}
	if c.log != nil {
		c.log.Close()
	}
	c.spawner.Close()
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.o.Dir}, parts...)...)
}

// ports are those that this process hands out: none twice in 500, and none of another process's that does the same. Who
// listens on the first one of a range has the rest. They lie below the range from which systems take the ports of
// outgoing connections: such a one could be taken while its process is down.
var ports struct {
	sync.Mutex
	claim       net.Listener // nil until the first is asked for; for as long as this process lives
	first, next int
}

const portRange, portRanges = 500, 16

// claimPorts takes a range; the lock is held.
func claimPorts() (err error) {
	for i := range portRanges {
		first := 12000 + (os.Getpid()+i)%portRanges*portRange
		if ports.claim, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first)); err == nil {
			ports.first = first
			return nil
		}
	}
	return fmt.Errorf("%d processes hand out ports already: %w", portRanges, err)
}

// freeAddress is an address that nothing listens on, and that nobody else is given.
func freeAddress() (string, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.claim == nil {
		if err := claimPorts(); err != nil {
			return "", err
		}
	}
	var err error
	for range portRange {
		var l net.Listener
		ports.next = ports.next%(portRange-1) + 1
		address := fmt.Sprintf("127.0.0.1:%d", ports.first+ports.next)
		if l, err = net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", fmt.Errorf("no port from %d to %d is free: %w", ports.first, ports.first+portRange-1, err)
}

// Poll tries again until check returns nil or ctx ends; then it returns what
// check said last.
func Poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}
