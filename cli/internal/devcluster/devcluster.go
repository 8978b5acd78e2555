// Package devcluster runs a whole cluster on one machine, for development:
// Nexus peers and Keepers as processes of their own, and the development
// authority that gives each its identity.
//
// Everything is in one directory (mode 0700): the data and the log of each
// process, the authority's key, the recovery shares, and a description of the
// cluster. A Supervisor holds it all while it runs; other programs of the same
// user reach it through a control socket (Dial).
//
// It assumes that the user trusts every program that runs as the same user:
// the authority attests nobody, and the recovery shares, which open the
// cluster, lie next to its data. That is what makes "stop everything, start it
// again" work although Keepers hold their shares in memory only, and it is what
// a real cluster must never do.
//
// It guarantees that one directory has at most one Supervisor (flock), that
// the processes do not outlive it (on Linux the kernel sees to that), and that
// it never signals a process which it did not start.
package devcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

const (
	// TrustDomain is SPIKE's default, so that its programs need no other setting.
	TrustDomain = "spike.ist"
	// DefaultBasePort gives nexus-1 SPIKE's usual port.
	DefaultBasePort = 8553
	// FreePorts, as a base port, means: find ports that are free.
	FreePorts = 0
	// KeepPorts, as a base port, means: those that the cluster has, or the default.
	KeepPorts = -1
	// DefaultDir is where commands look for a cluster unless told otherwise.
	DefaultDir = ".spike-dev"

	maxProcesses = 9 // of each kind: the ports of ten would still fit, the screen would not
)

// Warning is what a program that starts a development cluster prints, beside
// devca.Warning.
const Warning = "WARNING: this development cluster keeps its recovery shares next to its data (%s), to open itself " +
	"after a full stop. Whoever reads that directory reads every secret. A real cluster must never do this."

// Shape describes a cluster; it stays in the directory while nothing runs.
type Shape struct {
	Format   int `json:"format"`
	Peers    int `json:"peers"`
	Keepers  int `json:"keepers"`
	BasePort int `json:"basePort"`
	// Sockets is the directory of all sockets: it is not below the cluster's own
	// when that has too long a path for one.
	Sockets string `json:"sockets"`
	// Identities are the SPIFFE paths added by hand; they come back at each start.
	Identities []string `json:"identities,omitempty"`
}

// The ports of one column, counted from BasePort + 10·(i-1): with the default
// base nexus-1 has 8553 and 8555 and keeper-1 has 8554, as SPIKE has them.
const (
	portAPI = iota
	portKeeper
	portPeer
	portMetrics
	portStep = 10
)

func (s Shape) address(i, what int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.BasePort+portStep*(i-1)+what))
}

// API is the address of peer i's API, counted from 1.
func (s Shape) API(i int) string { return "https://" + s.address(i, portAPI) }

// APIs are those of all peers.
func (s Shape) APIs() (list []string) {
	for i := 1; i <= s.Peers; i++ {
		list = append(list, s.API(i))
	}
	return list
}

// ports lists every address with what it is for.
func (s Shape) ports() (list [][2]string) {
	for i := 1; i <= s.Peers; i++ {
		list = append(list, [2]string{s.address(i, portAPI), fmt.Sprintf("the API of nexus-%d", i)},
			[2]string{s.address(i, portPeer), fmt.Sprintf("the peer link of nexus-%d", i)},
			[2]string{s.address(i, portMetrics), fmt.Sprintf("the metrics of nexus-%d", i)})
	}
	for i := 1; i <= s.Keepers; i++ {
		list = append(list, [2]string{s.address(i, portKeeper), fmt.Sprintf("keeper-%d", i)})
	}
	return list
}

// PortTakenError says which port of a cluster something else listens on.
type PortTakenError struct {
	Address string
	Use     string // what it is wanted for
	Base    int
}

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("the port %s, wanted for %s, is taken: choose another range with --base-port (0 finds a free one)", e.Address, e.Use)
}

// checkPorts finds out whether all ports are free, by taking each for a moment.
func (s Shape) checkPorts() error {
	for _, p := range s.ports() {
		l, err := net.Listen("tcp", p[0])
		if err != nil {
			return &PortTakenError{Address: p[0], Use: p[1], Base: s.BasePort}
		}
		l.Close()
	}
	return nil
}

// readShape reads the description of the cluster in dir; none is no error.
func readShape(dir string) (s Shape, exists bool, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, shapeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(raw, &s); err != nil || s.Format != shapeFormat {
		return s, false, fmt.Errorf("%s is not of this version of spikectl: remove the directory to start anew", filepath.Join(dir, shapeFile))
	}
	return s, true, nil
}

const (
	shapeFormat = 1
	shapeFile   = "cluster.json"
)

func (s Shape) save(dir string) error { return writeJSON(filepath.Join(dir, shapeFile), s) }

// writeJSON replaces a file as a whole.
func writeJSON(name string, value any) error {
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(append(raw, '\n'))
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), name)
}
