package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
)

// Config is everything a Nexus peer is told. A flag beats an environment
// variable, that beats the file, that the default; the table Settings names
// each. The yaml names are those of the file, which is decoded strictly.
type Config struct {
	// ID is this peer's stable name, the last segment of its SPIFFE id
	// /spike/nexus/<id>. It stays when the address changes.
	ID string `yaml:"id"`
	// DataDir holds the Raft log, snapshots and, unless AuditDir says otherwise,
	// the audit log. Everything in it but names of peers is ciphertext.
	DataDir string `yaml:"data_dir"`
	// AuditDir holds the audit log: DataDir/audit when empty.
	AuditDir string `yaml:"audit_dir"`
	// AuditClearPaths writes paths into audit records as they are. They are
	// names of secrets: the default is a keyed hash.
	AuditClearPaths bool `yaml:"audit_clear_paths"`
	// AuditFileBytes is the size at which an audit file is closed.
	AuditFileBytes int64 `yaml:"audit_file_bytes"`
	// Listen is the address of the API.
	Listen string `yaml:"listen"`
	// PeerListen is the address of the link between peers.
	PeerListen string `yaml:"peer_listen"`
	// Advertise is the host:port under which the others reach this peer's link: its
	// entry in Peers when empty. When the cluster has another, it is changed there.
	Advertise string `yaml:"advertise"`
	// MetricsListen is the address of metrics and probes, plain HTTP without
	// data; none when empty.
	MetricsListen string `yaml:"metrics_listen"`
	// Peers are the peers of the first bootstrap, this one included, the same on
	// each: id=host:port of the peer link, comma-separated.
	Peers string `yaml:"peers"`
	// Join are some peers of a cluster that this one joins instead of forming one,
	// written like Peers. An operator adds it with 'spikectl cluster join'.
	Join string `yaml:"join"`
	// Keepers are name=https://host:port, comma-separated. Bare URLs, as SPIKE
	// writes them, are called keeper-1, keeper-2, … in their order.
	Keepers string `yaml:"keepers"`
	// KeeperInterval is the time between refills of the Keepers.
	KeeperInterval time.Duration `yaml:"keeper_interval"`
	// MaxVersions is how many versions a new secret keeps; it becomes a setting
	// of the cluster when that is founded.
	MaxVersions int `yaml:"max_versions"`
	// WireRecovery lets 'operator recover' answer plaintext shares on the SPIKE
	// wire; it becomes a setting of the cluster when that is founded.
	WireRecovery bool `yaml:"wire_recovery"`
	// StateLimit bounds the replicated state in bytes; it becomes a setting of
	// the cluster when that is founded.
	StateLimit int64 `yaml:"state_limit"`
	// Trust domains of each kind of identity, comma-separated.
	TrustRoot          string `yaml:"trust_root"` // of all kinds that have none of their own
	TrustRootNexus     string `yaml:"trust_root_nexus"`
	TrustRootKeeper    string `yaml:"trust_root_keeper"`
	TrustRootPilot     string `yaml:"trust_root_pilot"`
	TrustRootBootstrap string `yaml:"trust_root_bootstrap"`
	TrustRootLite      string `yaml:"trust_root_lite"`
	// EndpointSocket is the SPIFFE Workload API.
	EndpointSocket string `yaml:"endpoint_socket"`
	// SVIDTimeout bounds the wait for the first SVID.
	SVIDTimeout time.Duration `yaml:"svid_timeout"`
	// BackendStore exists to refuse SPIKE's "lite" and "memory".
	BackendStore string `yaml:"backend_store"`
	// DeadPeerAfter is how long a peer may be silent before it is removed while this
	// one leads; 0: never. No voter goes when fewer than MinVoters would stay. Give
	// it alike to all.
	DeadPeerAfter time.Duration `yaml:"dead_peer_after"`
	MinVoters     int           `yaml:"min_voters"`
	// Archive is where snapshots and the committed log go: file:///DIRECTORY or
	// s3://BUCKET/PREFIX?options; empty: nowhere. All peers name the same.
	Archive string `yaml:"archive"`
	// ArchiveSnapshotEvery is the age at which a snapshot in the archive has a
	// successor, when anything has changed.
	ArchiveSnapshotEvery time.Duration `yaml:"archive_snapshot_every"`
	// RestoreLatest has Peers, when all of them are empty, begin with the newest state
	// of the archive rather than form an empty cluster. Give it to all of them; on a
	// peer with data it does nothing.
	RestoreLatest bool `yaml:"restore_latest"`
	// KeyMaxAge is the age at which the leader rotates a key by itself; 0: never.
	// Give it alike to all.
	KeyMaxAge time.Duration `yaml:"key_max_age"`
	// DrainGrace is how long a peer that is drained still serves while its readiness
	// already fails: longer than load balancers take to notice.
	DrainGrace time.Duration `yaml:"drain_grace"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
	// Heartbeat is the time after which a peer that hears no leader asks for an
	// election; the others follow from it.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// SnapshotBytes is how many bytes of log cause a snapshot.
	SnapshotBytes int64 `yaml:"snapshot_bytes"`

	// Listeners, when not nil, are used instead of the addresses: for programs
	// that run several peers in one process.
	APIListener, PeerListener net.Listener `yaml:"-"`
	// Now, when not nil, is the clock: for tests, which do not wait.
	Now func() time.Time `yaml:"-"`
}

// Default returns the defaults.
func Default() Config {
	return Config{
		ID: "nexus-1", DataDir: "spike-data", AuditFileBytes: 64 << 20,
		Listen: ":8553", PeerListen: ":8555",
		KeeperInterval: 5 * time.Minute, MaxVersions: 10, WireRecovery: true, StateLimit: 1 << 30,
		TrustRoot: "spike.ist", SVIDTimeout: 30 * time.Second, LogLevel: "info", DrainGrace: 5 * time.Second, MinVoters: 3,
		ArchiveSnapshotEvery: time.Hour, Heartbeat: 500 * time.Millisecond, SnapshotBytes: 16 << 20,
	}
}

// Setting is one configurable thing: its flag, its environment variables (the
// first is preferred, the others are names that SPIKE uses) and how it is read.
type Setting struct {
	Flag  string
	Env   []string
	Usage string
	field func(*Config) any
}

// Settings is the table of all, in the order of the manual.
var Settings = []Setting{
	{"id", []string{"SPIKE_NEXUS_ID"}, "name of this peer, the last segment of its SPIFFE id /spike/nexus/<id>", func(c *Config) any { return &c.ID }},
	{"data-dir", []string{"SPIKE_DATA_DIR", "SPIKE_NEXUS_DATA_DIR"}, "directory of the Raft log and snapshots", func(c *Config) any { return &c.DataDir }},
	{"listen", []string{"SPIKE_NEXUS_TLS_PORT"}, "address of the API", func(c *Config) any { return &c.Listen }},
	{"peer-listen", []string{"SPIKE_NEXUS_PEER_LISTEN"}, "address of the link between peers", func(c *Config) any { return &c.PeerListen }},
	{"advertise", []string{"SPIKE_NEXUS_ADVERTISE"}, "host:port under which the other peers reach this one (default: its entry in --peers)", func(c *Config) any { return &c.Advertise }},
	{"peers", []string{"SPIKE_NEXUS_PEERS"}, "all peers of the first bootstrap: id=host:port,…", func(c *Config) any { return &c.Peers }},
	{"join", []string{"SPIKE_NEXUS_JOIN"}, "some peers of a formed cluster, to join it instead of forming one: id=host:port,…", func(c *Config) any { return &c.Join }},
	{"keepers", []string{"SPIKE_KEEPERS", "SPIKE_NEXUS_KEEPER_PEERS"}, "Keepers: name=https://host:port,…", func(c *Config) any { return &c.Keepers }},
	{"keeper-interval", []string{"SPIKE_NEXUS_KEEPER_UPDATE_INTERVAL"}, "time between refills of the Keepers", func(c *Config) any { return &c.KeeperInterval }},
	{"metrics-listen", []string{"SPIKE_NEXUS_METRICS_LISTEN"}, "address of metrics and probes (plain HTTP, no data); off when empty", func(c *Config) any { return &c.MetricsListen }},
	{"audit-dir", []string{"SPIKE_NEXUS_AUDIT_DIR"}, "directory of the audit log (default: audit in the data directory)", func(c *Config) any { return &c.AuditDir }},
	{"audit-clear-paths", []string{"SPIKE_NEXUS_AUDIT_CLEAR_PATHS"}, "write paths into audit records unhashed", func(c *Config) any { return &c.AuditClearPaths }},
	{"audit-file-bytes", []string{"SPIKE_NEXUS_AUDIT_FILE_BYTES"}, "size at which an audit file is closed", func(c *Config) any { return &c.AuditFileBytes }},
	{"max-versions", []string{"SPIKE_NEXUS_MAX_SECRET_VERSIONS"}, "versions that a new secret keeps (read when the cluster is founded)", func(c *Config) any { return &c.MaxVersions }},
	{"wire-recovery", []string{"SPIKE_NEXUS_WIRE_RECOVERY"}, "allow plaintext recovery shares on the SPIKE wire (read when the cluster is founded)", func(c *Config) any { return &c.WireRecovery }},
	{"state-limit", []string{"SPIKE_NEXUS_STATE_LIMIT"}, "bound of the replicated state in bytes (read when the cluster is founded)", func(c *Config) any { return &c.StateLimit }},
	{"trust-root", []string{"SPIKE_TRUST_ROOT"}, "trust domains of all identities that have none of their own", func(c *Config) any { return &c.TrustRoot }},
	{"trust-root-nexus", []string{"SPIKE_TRUST_ROOT_NEXUS"}, "trust domains of Nexus peers", func(c *Config) any { return &c.TrustRootNexus }},
	{"trust-root-keeper", []string{"SPIKE_TRUST_ROOT_KEEPER"}, "trust domains of Keepers", func(c *Config) any { return &c.TrustRootKeeper }},
	{"trust-root-pilot", []string{"SPIKE_TRUST_ROOT_PILOT"}, "trust domains of operators", func(c *Config) any { return &c.TrustRootPilot }},
	{"trust-root-bootstrap", []string{"SPIKE_TRUST_ROOT_BOOTSTRAP"}, "trust domains of the bootstrap job", func(c *Config) any { return &c.TrustRootBootstrap }},
	{"trust-root-lite", []string{"SPIKE_TRUST_ROOT_LITE_WORKLOAD"}, "trust domains of cipher-only workloads", func(c *Config) any { return &c.TrustRootLite }},
	{"endpoint-socket", []string{"SPIFFE_ENDPOINT_SOCKET"}, "SPIFFE Workload API", func(c *Config) any { return &c.EndpointSocket }},
	{"svid-timeout", []string{"SPIKE_SPIFFE_SOURCE_TIMEOUT"}, "bound on the wait for the first SVID", func(c *Config) any { return &c.SVIDTimeout }},
	{"backend-store", []string{"SPIKE_BACKEND_STORE_TYPE", "SPIKE_NEXUS_BACKEND_STORE"}, "SPIKE's setting; only the replicated store exists here", func(c *Config) any { return &c.BackendStore }},
	{"dead-peer-after", []string{"SPIKE_NEXUS_DEAD_PEER_AFTER"}, "time of silence after which the leader removes a peer; 0 means never", func(c *Config) any { return &c.DeadPeerAfter }},
	{"min-voters", []string{"SPIKE_NEXUS_MIN_VOTERS"}, "voters that must stay when a dead one is removed", func(c *Config) any { return &c.MinVoters }},
	{"key-max-age", []string{"SPIKE_NEXUS_KEY_MAX_AGE"}, "age at which the leader rotates a key by itself, at least 1h; 0 means never", func(c *Config) any { return &c.KeyMaxAge }},
	{"archive", []string{"SPIKE_NEXUS_ARCHIVE"}, "where snapshots and the committed log go: file:///DIRECTORY or s3://BUCKET/PREFIX?endpoint=…; nowhere when empty", func(c *Config) any { return &c.Archive }},
	{"archive-snapshot-every", []string{"SPIKE_NEXUS_ARCHIVE_SNAPSHOT_EVERY"}, "age at which a snapshot in the archive has a successor", func(c *Config) any { return &c.ArchiveSnapshotEvery }},
	{"restore-latest", []string{"SPIKE_NEXUS_RESTORE_LATEST"}, "when all --peers are empty, begin with the newest state of the archive; does nothing where there is data", func(c *Config) any { return &c.RestoreLatest }},
	{"drain-grace", []string{"SPIKE_NEXUS_DRAIN_GRACE"}, "time for which a drained peer still serves while its readiness already fails", func(c *Config) any { return &c.DrainGrace }},
	{"log-level", []string{"SPIKE_SYSTEM_LOG_LEVEL"}, "debug, info, warn or error", func(c *Config) any { return &c.LogLevel }},
	{"heartbeat", []string{"SPIKE_NEXUS_HEARTBEAT"}, "silence of the leader after which a peer asks for an election", func(c *Config) any { return &c.Heartbeat }},
	{"snapshot-bytes", []string{"SPIKE_NEXUS_SNAPSHOT_BYTES"}, "bytes of log that cause a snapshot", func(c *Config) any { return &c.SnapshotBytes }},
}

// Flags returns the settings as command-line flags, and "config" for the file.
func Flags() []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{Name: "config", EnvVars: []string{"SPIKE_NEXUS_CONFIG"}, Usage: "YAML `FILE` with settings"}}
	defaults := Default()
	for _, s := range Settings {
		value := format(s.field(&defaults))
		if s.boolean() {
			flags = append(flags, &cli.BoolFlag{Name: s.Flag, EnvVars: s.Env, Usage: s.Usage, Value: value == "true"})
			continue
		}
		flags = append(flags, &cli.StringFlag{Name: s.Flag, EnvVars: s.Env, Usage: s.Usage, Value: value})
	}
	return flags
}

func (s Setting) boolean() bool {
	_, ok := s.field(&Config{}).(*bool)
	return ok
}

// FromCLI reads the configuration: defaults, then the file, then environment
// and flags.
func FromCLI(c *cli.Context) (Config, error) {
	config := Default()
	if file := c.String("config"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return config, fmt.Errorf("configuration file: %w", err)
		}
		if err := Decode(b, &config); err != nil {
			return config, fmt.Errorf("configuration file %s: %w", file, err)
		}
	}
	for _, s := range Settings {
		if !c.IsSet(s.Flag) {
			continue
		}
		value := c.String(s.Flag)
		if s.boolean() {
			value = strconv.FormatBool(c.Bool(s.Flag))
		}
		if err := parse(s.field(&config), value); err != nil {
			return config, fmt.Errorf("--%s (or %s): %w", s.Flag, strings.Join(s.Env, ", "), err)
		}
	}
	return config, config.Validate()
}

// Decode reads a configuration file's contents into c; unknown names are errors.
func Decode(b []byte, c *Config) error {
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func parse(field any, value string) (err error) {
	switch f := field.(type) {
	case *string:
		*f = value
	case *bool:
		*f, err = strconv.ParseBool(value)
	case *int:
		*f, err = strconv.Atoi(value)
	case *int64:
		*f, err = strconv.ParseInt(value, 10, 64)
	case *time.Duration:
		*f, err = time.ParseDuration(value)
	}
	if err != nil {
		return fmt.Errorf("%q is not a valid value", value)
	}
	return nil
}

func format(field any) string {
	switch f := field.(type) {
	case *string:
		return *f
	case *time.Duration:
		return f.String()
	case *bool:
		return strconv.FormatBool(*f)
	case *int:
		return strconv.Itoa(*f)
	case *int64:
		return strconv.FormatInt(*f, 10)
	}
	return ""
}

// Validate checks what can be checked without starting.
func (c *Config) Validate() error {
	switch c.BackendStore {
	case "", "raft", "sqlite": // sqlite is SPIKE's word for "keep it": the replicated log does
	case "lite", "memory":
		return fmt.Errorf("backend store %q is not offered: a cluster always keeps its state, in the replicated log; for encryption only use the role /spike/workload/role/lite", c.BackendStore)
	default:
		return fmt.Errorf("backend store %q is unknown; leave it unset", c.BackendStore)
	}
	if err := spiffeid.ValidatePathSegment(c.ID); err != nil {
		return fmt.Errorf("id %q is not a segment of a SPIFFE id: %w", c.ID, err)
	}
	if c.DataDir == "" {
		return errors.New("no data directory: set --data-dir")
	}
	if c.MaxVersions < 1 || c.MaxVersions > 1000 {
		return errors.New("max-versions is not between 1 and 1000")
	}
	if c.Heartbeat < 50*time.Millisecond {
		return errors.New("heartbeat is shorter than 50 ms")
	}
	if _, err := c.peers(); err != nil {
		return err
	}
	if _, err := peerList(c.Join); err != nil {
		return err
	}
	if c.DeadPeerAfter < 0 || c.MinVoters < 1 {
		return errors.New("dead-peer-after is negative, or min-voters less than 1")
	}
	if c.KeyMaxAge != 0 && c.KeyMaxAge < time.Hour {
		return errors.New("key-max-age is less than an hour: each rotation writes all records anew")
	}
	if c.Archive != "" {
		if _, _, _, err := archiveAddress(c.Archive); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	if c.RestoreLatest && (c.Archive == "" || c.Peers == "") {
		return errors.New("restore-latest needs archive, which it restores from, and peers, which become the cluster: set both, or remove it")
	}
	if c.ArchiveSnapshotEvery < time.Second {
		return errors.New("archive-snapshot-every is shorter than a second")
	}
	if c.Advertise != "" {
		if host, port, err := net.SplitHostPort(c.Advertise); err != nil || host == "" || port == "" {
			return fmt.Errorf("advertise: %q is not host:port", c.Advertise)
		}
	}
	if _, err := c.keepers(); err != nil {
		return err
	}
	_, err := c.Domains()
	return err
}

// listenAddress reads a bare port, as the variable's name in SPIKE suggests,
// as that port on all addresses.
func listenAddress(s string) string {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return ":" + s
	}
	return s
}

func (c *Config) auditDir() string {
	if c.AuditDir != "" {
		return c.AuditDir
	}
	return filepath.Join(c.DataDir, "audit")
}

// archiveName is the archive without the options of its address, for people.
func (c *Config) archiveName() string {
	name, _, _ := strings.Cut(c.Archive, "?")
	return name
}

func (c *Config) peers() ([]cluster.Peer, error) {
	if c.Peers == "" && c.Join == "" {
		return nil, errors.New("no peers: set --peers id=host:port,… (this one included, the same on each), or --join to join a cluster")
	}
	return peerList(c.Peers)
}

func peerList(text string) ([]cluster.Peer, error) {
	if text == "" {
		return nil, nil
	}
	var list []cluster.Peer
	for _, item := range strings.Split(text, ",") {
		id, address, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok || id == "" || address == "" {
			return nil, fmt.Errorf("peer %q is not written id=host:port", item)
		}
		list = append(list, cluster.Peer{ID: id, Address: address})
	}
	return list, nil
}

type keeperAddress struct{ name, url string }

func (c *Config) keepers() ([]keeperAddress, error) {
	var list []keeperAddress
	if c.Keepers == "" {
		return nil, errors.New("no Keepers: set --keepers name=https://host:port,…")
	}
	seen := map[string]bool{}
	for i, item := range strings.Split(c.Keepers, ",") {
		item = strings.TrimSpace(item)
		name, url, ok := strings.Cut(item, "=")
		if !ok {
			name, url = fmt.Sprintf("keeper-%d", i+1), item
		}
		if !strings.HasPrefix(url, "https://") || spiffeid.ValidatePathSegment(name) != nil || seen[name] {
			return nil, fmt.Errorf("the Keeper %q is not written name=https://host:port, or its name is there twice", item)
		}
		seen[name] = true
		list = append(list, keeperAddress{name, url})
	}
	return list, nil
}

// Domains returns the trust domains by kind of identity.
func (c *Config) Domains() (secret.TrustDomains, error) {
	var failed error
	list := func(own string) []string {
		if own == "" {
			own = c.TrustRoot
		}
		var names []string
		for _, name := range strings.Split(own, ",") {
			domain, err := spiffeid.TrustDomainFromString(strings.TrimSpace(name))
			if err != nil {
				failed = fmt.Errorf("trust root %q is not a trust domain: %w", name, err)
			}
			names = append(names, domain.Name())
		}
		return names
	}
	d := secret.TrustDomains{Nexus: list(c.TrustRootNexus), Keeper: list(c.TrustRootKeeper), Pilot: list(c.TrustRootPilot),
		Bootstrap: list(c.TrustRootBootstrap), Lite: list(c.TrustRootLite)}
	return d, failed
}
