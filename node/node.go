// Package node joins the packages into one Nexus peer.
//
// It decides nothing that they decide: it carries errors and calls from one to
// the other, runs the loops that belong to none of them (founding, unsealing,
// refilling Keepers, anchoring the audit log, handing leadership to a peer that
// can serve), and knows the order in which things start and stop.
//
// Assumes a SPIFFE Workload API and a data directory of its own. Guarantees
// that the API listens from the start, answering "not ready" until it is, and
// that a peer without keys still votes and replicates.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api"
	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/store"
)

// Version is the release, set when the binary is linked.
var Version = "dev"

// Node is a running peer.
type Node struct {
	cfg     Config
	log     *slog.Logger
	domains secret.TrustDomains
	now     func() time.Time

	source  *identity.Source
	audit   *audit.Log
	machine *fsm.Machine
	cluster *cluster.Node
	seal    *seal.Seal
	keepers []seal.Keeper
	store   *store.Store
	api     *api.Server
	metrics *http.Server

	apiAddress, metricsAddress string

	wake       chan struct{}             // pokes the unseal loop
	up         chan struct{}             // closed when Start has come to its end
	done       chan struct{}             // closed when the peer cannot go on, or has stopped
	drained    atomic.Pointer[time.Time] // since when this peer is being drained; nil: it is not
	current    atomic.Bool               // a majority told this peer, since it started, how things stand
	sealMu     sync.Mutex                // held while an operator seals or unseals this peer
	peerSealed atomic.Bool               // an operator sealed this peer by itself
	collector  *seal.Collector
	cold       *coldStart
	restores   sync.Mutex // held while a restore into the cluster is planned or carried out here

	tolerance               look[int]                        // of failures; the leader's
	shipper                 atomic.Pointer[snapshot.Shipper] // nil: this peer does not ship
	saves                   errand[snapshot.Item]            // of the peer that ships
	drills                  errand[*fsmpb.Drill]             // of any peer
	pruned                  atomic.Pointer[client.Pruned]    // what retention came to last; the leader's
	auditArchive            atomic.Pointer[client.AuditArchive]
	keeperLook              look[[]keeperSeen] // of the peer that looks after them
	looks                   keeperLooks        // of any peer
	anchors, anchorFailures atomic.Uint64      // of the audit chain

	keyring sync.Mutex // orders what the seal is told of keyrings: each view taken under it is newer than the one before

	auditMu    sync.Mutex // guards reconciled; held while the chain is looked through
	reconciled bool       // the audit chain was held against its anchor

	mu         sync.Mutex // guards what follows
	auditFault string     // what is wrong with the audit log, for the status
	sealReason string     // why this peer is sealed, for the status

	ctx    context.Context // ends when the node stops
	cancel context.CancelFunc
	loops  sync.WaitGroup
}

// Start brings a peer up. ctx bounds the start only. When it returns the API
// listens; whether it serves is in Health.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, now: time.Now, wake: make(chan struct{}, 1), up: make(chan struct{}), done: make(chan struct{}), looks: keeperLooks{contact: make(map[string]time.Time)}, collector: seal.NewCollector()}
	if cfg.Now != nil {
		n.now = cfg.Now
	}
	n.domains, _ = cfg.Domains()
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.Stop(context.Background())
		}
	}()

	n.source, err = identity.Open(ctx, identity.Options{Socket: cfg.EndpointSocket, Timeout: cfg.SVIDTimeout, Logger: log})
	if err != nil {
		return nil, err
	}
	security := peers{n.source, n.domains.Nexus}
	if name, err := security.name(n.source.ID()); err != nil || name != cfg.ID {
		return nil, fmt.Errorf("this process is %s, but peer %q must be /spike/nexus/%s of trust domain %v: check its registration and --id",
			n.source.ID(), cfg.ID, cfg.ID, n.domains.Nexus)
	}
	if n.audit, err = audit.Open(audit.Config{Dir: cfg.auditDir(), Peer: cfg.ID, FileBytes: cfg.AuditFileBytes}); err != nil {
		return nil, err
	}
	if err := n.makeKeepers(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(cfg.DataDir, "spool")); err != nil { // what a crash has left there
		return nil, err
	}
	if err := n.findSeal(); err != nil {
		return nil, err
	}
	n.machine = fsm.New(fsm.Options{})
	n.seal = seal.New(seal.Config{Logger: log.With("part", "seal"), KeeperTimeout: keeperTimeout})
	n.cold = &coldStart{n: n}
	if err := n.startCluster(ctx, security); err != nil {
		return nil, err
	}
	n.store = store.New(store.Config{Machine: n.machine, Log: proposals{n.cluster}, Keys: keys{n.seal}, Recorder: n.audit,
		Operator: operator{n}, Incarnation: n.incarnation, Logger: log.With("part", "store"), ClearPaths: cfg.AuditClearPaths})
	if err := n.serve(); err != nil {
		return nil, err
	}
	n.cluster.Handle(rpcStatus, n.answerStatus)
	n.cluster.Handle(rpcRestore, n.answerRestore)
	n.cluster.Handle(rpcWake, n.answerWake)
	n.cluster.Handle(rpcDrain, answerOnOff(n.answerDrain))
	n.cluster.Handle(rpcSave, n.answerSave)
	n.cluster.Handle(rpcSeal, answerOnOff(n.answerSeal))
	n.machine.Observe(sealWatch{n})
	n.machine.Observe(stageWatch{n})
	for _, loop := range []func(){n.leading, n.unsealing, n.refilling, n.anchoring, n.handing, n.leveling, n.rotating, n.tidying, n.draining, n.watching, n.shipping, n.auditShipping, n.caring} {
		n.loops.Go(loop)
	}
	go n.ending() // until the cluster is shut down
	close(n.up)
	log.Info("the peer listens", "id", cfg.ID, "api", n.apiAddress, "peer", cfg.PeerListen, "version", Version)
	return n, nil
}

func (n *Node) makeKeepers() error {
	addresses, err := n.cfg.keepers()
	if err != nil {
		return err
	}
	var domains []spiffeid.TrustDomain
	for _, name := range n.domains.Keeper {
		domains = append(domains, spiffeid.RequireTrustDomainFromString(name))
	}
	for _, a := range addresses {
		k, err := keeper.NewClient(keeper.ClientOptions{Name: a.name, URL: a.url, TrustDomains: domains, Source: n.source})
		if err != nil {
			return err
		}
		n.keepers = append(n.keepers, k)
	}
	return nil
}

func (n *Node) startCluster(ctx context.Context, security cluster.Security) error {
	list, err := n.cfg.peers()
	if err != nil {
		return err
	}
	join, err := peerList(n.cfg.Join)
	if err != nil {
		return err
	}
	listener := n.cfg.PeerListener
	if listener == nil {
		if listener, err = net.Listen("tcp", listenAddress(n.cfg.PeerListen)); err != nil {
			return fmt.Errorf("the peer link cannot listen: %w", err)
		}
	}
	n.cluster, err = cluster.Start(ctx, cluster.Config{
		ID: n.cfg.ID, Dir: raftDir(n.cfg.DataDir), Listener: listener, Peers: list, Join: join, Advertise: n.cfg.Advertise,
		ColdStart: n.cfg.RestoreLatest, Origin: n.cold,
		DeadAfter: n.cfg.DeadPeerAfter, MinVoters: n.cfg.MinVoters, Bury: n.bury,
		Levels:   func() (knows, uses uint32) { return fsm.Level, n.machine.View().Level() },
		Security: security, StateMachine: machine{n.machine}, Logger: n.log.With("part", "cluster"),
		Timing:        cluster.Timing{Heartbeat: n.cfg.Heartbeat, Election: n.cfg.Heartbeat, Lease: n.cfg.Heartbeat / 2},
		SnapshotBytes: n.cfg.SnapshotBytes,
	})
	return err
}

func (n *Node) serve() error {
	domains := map[string]bool{}
	for _, d := range n.domains.All() {
		domains[d] = true
	}
	listener := n.cfg.APIListener
	if listener == nil {
		var err error
		if listener, err = net.Listen("tcp", listenAddress(n.cfg.Listen)); err != nil {
			return fmt.Errorf("the API cannot listen: %w", err)
		}
	}
	n.apiAddress = listener.Addr().String()
	n.api = api.New(api.Config{Store: n.store, Domains: n.domains, Logger: n.log.With("part", "api"), Health: n.Health, Draining: n.Draining, Status: n.Status, Removed: n.cluster.Removed})
	config := n.source.Server(func(id spiffeid.ID) error {
		if !domains[id.TrustDomain().Name()] {
			return errors.New("its trust domain is not configured here")
		}
		return nil
	}, "h2", "http/1.1")
	n.loops.Go(func() {
		if err := n.api.Serve(listener, config); err != nil {
			n.log.Error("the API stopped", "error", err)
		}
	})
	return n.serveMetrics()
}

// Addresses returns where the API and the metrics listen.
func (n *Node) Addresses() (api, metrics string) { return n.apiAddress, n.metricsAddress }

// Done is closed when the peer cannot go on; Err says why.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the peer cannot go on.
func (n *Node) Err() error {
	if err := n.cluster.Err(); err != nil {
		return err
	}
	select {
	case <-n.audit.Lost():
		return n.audit.Err()
	default:
		return nil
	}
}

// ending closes done. A peer whose audit log takes nothing any more could do
// nothing but vote, and lead without an answer.
func (n *Node) ending() {
	select {
	case <-n.cluster.Done():
	case <-n.audit.Lost():
	}
	close(n.done)
}

// Stop ends the peer in an order that keeps each promise: first the API, so
// that no new request begins and those under way are answered; then the loops,
// which use everything; then the cluster, which hands leadership on; then the
// audit log, which the last requests needed; the keys last of all, because what
// came before may still have decrypted.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	if n.api != nil {
		add(n.api.Shutdown(ctx))
	}
	n.cancel()
	if n.metrics != nil {
		add(n.metrics.Close())
	}
	n.loops.Wait()
	if n.cluster != nil {
		add(n.cluster.Shutdown(ctx))
	}
	if n.audit != nil {
		add(n.audit.Close())
	}
	if n.store != nil {
		n.store.Close()
	}
	if n.seal != nil {
		n.seal.Lock()
	}
	n.collector.Close()
	for _, k := range n.keepers {
		k.(*keeper.Client).Close()
	}
	if n.source != nil {
		add(n.source.Close())
	}
	return errors.Join(errs...)
}
