package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/spike-ha/spike-ha/internal/process"
)

// Options say which cluster to start.
type Options struct {
	Dir            string
	Peers, Keepers int // 0: as the directory says, else 3
	// BasePort is the first port, FreePorts or KeepPorts.
	BasePort int
	// Passing leaves the ports that a directory has recorded as they are: those
	// of BasePort are for this time.
	Passing bool
	// Binaries is the directory of the programs nexus and keeper.
	Binaries string
	// Say tells people what goes on; it may be called from any goroutine.
	Say func(format string, args ...any)
}

// Supervisor runs one cluster. All methods may be called from any goroutine.
type Supervisor struct {
	options   Options
	home      *home
	authority *devca.Authority
	log       *os.File // of the authority
	spawn     *process.Spawner
	keepers   []*process.Child
	peers     []*process.Child
	control   net.Listener
	served    sync.WaitGroup // requests of the control socket

	mu       sync.Mutex // guards what follows, and the files of shape and run
	shape    Shape
	closing  bool
	rising   bool          // the cluster is brought up: an end is an error then
	fell     chan struct{} // closed at the first such end
	fall     string        // what it was
	downOnce sync.Once
	down     chan struct{}
}

// Open takes the directory, starts the authority and every process. Whether the
// cluster serves is for BringUp to see to.
func Open(ctx context.Context, o Options) (_ *Supervisor, err error) {
	for _, name := range []string{"nexus", "keeper"} {
		if _, err := os.Stat(filepath.Join(o.Binaries, name)); err != nil {
			return nil, fmt.Errorf("the program %s is not next to spikectl (in %s): build all three with 'make build'", name, o.Binaries)
		}
	}
	s := &Supervisor{options: o, fell: make(chan struct{}), rising: true, down: make(chan struct{})}
	if s.home, err = openHome(o); err != nil {
		return nil, err
	}
	s.shape = s.home.shape
	s.spawn = process.NewSpawner()
	defer func() {
		if err != nil {
			s.Close(nil)
		}
	}()
	if err := s.startAuthority(ctx); err != nil {
		return nil, err
	}
	if err := s.plan(); err != nil {
		return nil, err
	}
	if err := s.serveControl(); err != nil {
		return nil, err
	}
	for _, c := range s.children() {
		if err := c.Start(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Supervisor) children() []*process.Child { return slices.Concat(s.keepers, s.peers) }

func (s *Supervisor) find(name string) (*process.Child, error) {
	var names []string
	for _, c := range s.children() {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("there is no process %q: they are %s", name, strings.Join(names, ", "))
}

// Start, Stop and Kill act on one process; they return when it runs or has ended.
func (s *Supervisor) Start(name string) error {
	c, err := s.find(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	closing := s.closing
	s.mu.Unlock()
	if closing {
		return errors.New("the cluster is being stopped")
	}
	return c.Start()
}

func (s *Supervisor) Stop(name string) error {
	c, err := s.find(name)
	if err != nil {
		return err
	}
	return c.Stop(nil)
}

func (s *Supervisor) Kill(name string) error {
	c, err := s.find(name)
	if err != nil {
		return err
	}
	return c.Kill()
}

// Processes lists all, peers first.
func (s *Supervisor) Processes() (list []process.Info) {
	for _, c := range slices.Concat(s.peers, s.keepers) {
		list = append(list, c.Info())
	}
	return list
}

// Shape describes the cluster.
func (s *Supervisor) Shape() Shape {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shape
}

// AddIdentity serves an identity and returns its socket's address. It comes
// back when the cluster is started again.
func (s *Supervisor) AddIdentity(path string) (string, error) {
	socket, err := s.authority.Add(path)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.shape.Identities, path) {
		return socket, nil
	}
	s.shape.Identities = append(s.shape.Identities, path)
	return socket, s.shape.save(s.home.dir)
}

// Client makes a client with the identity at path, of the peers numbered (from
// 1), of all when none is; the caller runs done at the end.
func (s *Supervisor) Client(ctx context.Context, path string, peers ...int) (_ *client.Client, done func(), err error) {
	socket, err := s.authority.Add(path)
	if err != nil {
		return nil, nil, err
	}
	return newClient(ctx, socket, s.Shape(), peers...)
}

func newClient(ctx context.Context, socket string, shape Shape, peers ...int) (_ *client.Client, done func(), err error) {
	addresses := shape.APIs()
	if len(peers) > 0 {
		addresses = nil
		for _, i := range peers {
			addresses = append(addresses, shape.API(i))
		}
	}
	source, err := identity.Open(ctx, identity.Options{Socket: socket, Timeout: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	cl, err := client.New(client.Config{Addresses: addresses, Attempt: 5 * time.Second, TLS: source.Client(func(id spiffeid.ID) error {
		if id.TrustDomain().Name() != TrustDomain || !strings.HasPrefix(id.Path(), "/spike/nexus/") {
			return errors.New("it is not a peer of this cluster")
		}
		return nil
	})})
	if err != nil {
		source.Close()
		return nil, nil, err
	}
	return cl, func() { cl.Close(); source.Close() }, nil
}

// record writes down which processes run, for whoever comes after a crash.
func (s *Supervisor) record() {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := run{Supervisor: os.Getpid()}
	for _, c := range s.children() {
		if pid, start, ok := c.Running(); ok {
			r.Processes = append(r.Processes, runEntry{c.Name, pid, start})
		}
	}
	if err := writeJSON(s.home.path(runFile), r); err != nil {
		s.options.Say("%s cannot be written: %v", runFile, err)
	}
}

// mourn says that a process ended by itself, or by a kill that was not ours.
func (s *Supervisor) mourn(c *process.Child, how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return
	}
	what := fmt.Sprintf("%s ended (%s); its log is %s", c.Name, how, c.LogFile)
	if s.rising {
		if s.fall == "" {
			s.fall = what
			if words := c.LastWords(); words != "" {
				s.fall += ", which ends with:\n  " + words
			}
			close(s.fell)
		}
		return
	}
	where := ""
	if s.options.Dir != DefaultDir {
		where = " --dir " + s.options.Dir
	}
	s.options.Say("%s\n  start it again: spikectl dev start %s%s", what, c.Name, where)
}

// Down is closed when somebody asked through the control socket to stop all.
func (s *Supervisor) Down() <-chan struct{} { return s.down }

// Close stops everything: the peers first, while the Keepers and the authority
// still serve them, so that leadership and the last requests end in order; then
// the Keepers; the authority last, since all the others need it. Closing hurry
// makes it quick and rough.
func (s *Supervisor) Close(hurry <-chan struct{}) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.closing = true
	s.mu.Unlock()
	var errs []error
	for _, group := range [][]*process.Child{s.peers, s.keepers} {
		errs = append(errs, stopAll(group, hurry))
	}
	if s.control != nil {
		s.control.Close()
		s.served.Wait()
	}
	if s.authority != nil {
		s.authority.Close()
	}
	if s.log != nil {
		s.log.Close()
	}
	s.spawn.Close()
	if err := os.Remove(s.home.path(runFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	s.home.close()
	return errors.Join(errs...)
}

func stopAll(children []*process.Child, hurry <-chan struct{}) error {
	errs := make([]error, len(children))
	var wait sync.WaitGroup
	for i, c := range children {
		if c.Info().State == process.Running {
			wait.Go(func() { errs[i] = c.Stop(hurry) })
		}
	}
	wait.Wait()
	return errors.Join(errs...)
}
