package keeper

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/seal"
)

// Config is everything a Keeper can be told. A flag wins over the environment, that over the default.
type Config struct {
	// ID is the Keeper's name, the last segment of its SPIFFE id: /spike/keeper/<ID>. Empty means: whatever the SVID
	// says. Given, it must agree with the SVID, so that a mix-up of entries shows at start.
	// Flag --id, SPIKE_KEEPER_ID.
	ID string
	// Listen is the address to serve on, host:port or :port. Flag --listen, SPIKE_KEEPER_TLS_PORT; default :8554.
	Listen string
	// TrustDomains are those whose Nexus peers are admitted, with commas between.
	// Flag --trust-domain, SPIKE_TRUST_ROOT_NEXUS, then SPIKE_TRUST_ROOT; default spike.ist.
	TrustDomains []string
	// BootstrapTrustDomains are those whose Bootstrap is admitted, to SPIKE's contribution route only.
	// Flag --bootstrap-trust-domain, SPIKE_TRUST_ROOT_BOOTSTRAP; default: TrustDomains.
	BootstrapTrustDomains []string
	// ClusterID pins the Keeper to one cluster, 32 hex digits. Unset, the first cluster that places a share
	// pins it until it restarts. Flag --cluster-id, SPIKE_KEEPER_CLUSTER_ID.
	ClusterID string
	// Socket is the SPIFFE Workload API. Flag --socket, SPIFFE_ENDPOINT_SOCKET.
	Socket string
	// SourceTimeout bounds the wait for the first SVID. Flag --source-timeout, SPIKE_SPIFFE_SOURCE_TIMEOUT; default 30s.
	SourceTimeout time.Duration
	// MaxConnections is how many connections are served at once; default 256. Flag --max-connections,
	// SPIKE_KEEPER_MAX_CONNECTIONS.
	MaxConnections int
	// LogLevel is debug, info, warn or error. Flag --log-level, SPIKE_SYSTEM_LOG_LEVEL; default info.
	LogLevel string
}

// App is the keeper program: flags and environment to Config, then Run until ctx ends.
func App(stderr io.Writer) *cli.App {
	return &cli.App{
		Name:            "keeper",
		Usage:           "hold one share of a SPIKE HA root key in memory",
		HideHelpCommand: true,
		ArgsUsage:       " ",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "id", EnvVars: []string{"SPIKE_KEEPER_ID"}, Usage: "this Keeper's `NAME`; must agree with its SPIFFE id"},
			&cli.StringFlag{Name: "listen", EnvVars: []string{"SPIKE_KEEPER_TLS_PORT"}, Value: ":8554", Usage: "`ADDRESS` to serve on"},
			&cli.StringSliceFlag{Name: "trust-domain", EnvVars: []string{"SPIKE_TRUST_ROOT_NEXUS", "SPIKE_TRUST_ROOT"}, Value: cli.NewStringSlice("spike.ist"), Usage: "trust `DOMAINS` of Nexus peers"},
			&cli.StringSliceFlag{Name: "bootstrap-trust-domain", EnvVars: []string{"SPIKE_TRUST_ROOT_BOOTSTRAP"}, Usage: "trust `DOMAINS` of Bootstrap (default: those of Nexus)"},
			&cli.StringFlag{Name: "cluster-id", EnvVars: []string{"SPIKE_KEEPER_CLUSTER_ID"}, Usage: "serve only the cluster with this `ID`"},
			&cli.StringFlag{Name: "socket", EnvVars: []string{identity.SocketEnv}, Usage: "SPIFFE Workload API `ADDRESS`"},
			&cli.DurationFlag{Name: "source-timeout", EnvVars: []string{"SPIKE_SPIFFE_SOURCE_TIMEOUT"}, Value: identity.DefaultTimeout, Usage: "how long to wait for the first SVID"},
			&cli.IntFlag{Name: "max-connections", EnvVars: []string{"SPIKE_KEEPER_MAX_CONNECTIONS"}, Value: 256, Usage: "`NUMBER` of connections served at once"},
			&cli.StringFlag{Name: "log-level", EnvVars: []string{"SPIKE_SYSTEM_LOG_LEVEL"}, Value: "info", Usage: "`LEVEL`: debug, info, warn or error"},
		},
		Writer:         stderr, // a Keeper has no data to print
		ErrWriter:      stderr,
		ExitErrHandler: func(*cli.Context, error) {}, // main decides
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("unexpected argument %q; every setting is a flag", c.Args().First())
			}
			return Run(c.Context, Config{
				ID:                    c.String("id"),
				Listen:                c.String("listen"),
				TrustDomains:          c.StringSlice("trust-domain"),
				BootstrapTrustDomains: c.StringSlice("bootstrap-trust-domain"),
				ClusterID:             c.String("cluster-id"),
				Socket:                c.String("socket"),
				SourceTimeout:         c.Duration("source-timeout"),
				MaxConnections:        c.Int("max-connections"),
				LogLevel:              c.String("log-level"),
			}, stderr)
		},
	}
}

// Run is a whole Keeper: it takes its identity, listens, and serves until ctx ends. Its log goes to stderr and
// says "keeper ready" with the address once it serves.
func Run(ctx context.Context, c Config, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return fmt.Errorf("log level %q: choose debug, info, warn or error", c.LogLevel)
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	o, err := c.serverOptions()
	if err != nil {
		return err
	}
	o.Logger = log
	if err := seal.ProtectProcess(); err != nil {
		log.Warn("shares in memory are less protected than they could be", "error", err)
	}
	source, err := identity.Open(ctx, identity.Options{Socket: c.Socket, Timeout: c.SourceTimeout, Logger: log})
	if err != nil {
		return err
	}
	defer source.Close()
	if err := c.checkIdentity(source.ID()); err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; choose another --listen", c.Listen, err)
	}
	log.Info("keeper ready", "address", l.Addr().String(), "spiffe_id", source.ID().String())
	if err := NewServer(o).Serve(ctx, l, source); err != nil {
		return err
	}
	log.Info("keeper stopped; its shares are wiped")
	return nil
}

func (c Config) serverOptions() (o ServerOptions, err error) {
	if o.Trust.Nexus, err = domains(c.TrustDomains); err != nil {
		return o, err
	}
	if o.Trust.Bootstrap, err = domains(c.BootstrapTrustDomains); err != nil {
		return o, err
	}
	if len(o.Trust.Nexus) == 0 {
		return o, fmt.Errorf("no trust domain is configured: give --trust-domain")
	}
	if len(o.Trust.Bootstrap) == 0 {
		o.Trust.Bootstrap = o.Trust.Nexus
	}
	if c.ClusterID != "" {
		id, err := hex.DecodeString(strings.ReplaceAll(c.ClusterID, "-", ""))
		if err != nil || len(id) != 16 {
			return o, fmt.Errorf("cluster id %q: it has 32 hex digits, as `spikectl status` shows it", c.ClusterID)
		}
		o.ClusterID = [16]byte(id)
	}
	o.MaxConnections = c.MaxConnections
	return o, nil
}

// checkIdentity insists that this process has a Keeper's SVID, and the right one.
func (c Config) checkIdentity(id spiffeid.ID) error {
	const base = "/spike/keeper"
	name, ok := strings.CutPrefix(id.Path(), base+"/")
	if !ok && id.Path() != base || strings.Contains(name, "/") {
		return fmt.Errorf("the SVID of this process is %s, which is no Keeper's: register it as %s/<name>", id, base)
	}
	if c.ID != "" && name != c.ID {
		return fmt.Errorf("this Keeper is configured as %q and its SVID is %s: correct --id or the SPIRE entry", c.ID, id)
	}
	return nil
}

func domains(names []string) ([]spiffeid.TrustDomain, error) {
	var out []spiffeid.TrustDomain
	for _, list := range names {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return nil, fmt.Errorf("trust domain %q: %w", name, err)
			}
			out = append(out, td)
		}
	}
	return out, nil
}
