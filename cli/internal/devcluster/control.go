package devcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/process"
)

// The control socket speaks one JSON request and one JSON answer per
// connection. Who may open it (mode 0600, in a directory of mode 0700) may do
// everything.

const (
	controlSocket  = "control.sock"
	controlTimeout = time.Minute // longer than it takes to stop a process by force
	maxControl     = 1 << 20
)

type controlRequest struct {
	Op   string `json:"op"`
	Name string `json:"name,omitempty"` // of a process, or a SPIFFE path
}

type controlAnswer struct {
	Error      string         `json:"error,omitempty"`
	Supervisor int            `json:"supervisor"`
	Shape      Shape          `json:"shape"`
	Processes  []process.Info `json:"processes,omitempty"`
	Socket     string         `json:"socket,omitempty"`
}

func (s *Supervisor) serveControl() (err error) {
	name := filepath.Join(s.shape.Sockets, controlSocket)
	// The lock says that no other supervisor lives: the socket is a dead one's.
	os.Remove(name)
	if s.control, err = net.Listen("unix", name); err != nil {
		return err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := s.control.Accept()
			if err != nil {
				return
			}
			s.served.Go(func() { s.converse(conn) })
		}
	}()
	return nil
}

func (s *Supervisor) converse(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(controlTimeout))
	var r controlRequest
	answer := controlAnswer{Supervisor: os.Getpid()}
	err := json.NewDecoder(io.LimitReader(conn, maxControl)).Decode(&r)
	if err == nil {
		answer.Socket, err = s.obey(r)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	answer.Shape, answer.Processes = s.Shape(), s.Processes()
	json.NewEncoder(conn).Encode(answer)
}

func (s *Supervisor) obey(r controlRequest) (socket string, err error) {
	switch r.Op {
	case "status":
	case "socket": // of one of the roles that are always there
		return s.authority.Add(r.Name)
	case "identity":
		return s.AddIdentity(r.Name)
	case "start":
		err = s.Start(r.Name)
	case "stop":
		err = s.Stop(r.Name)
	case "kill":
		err = s.Kill(r.Name)
	case "down":
		s.downOnce.Do(func() { close(s.down) })
	default:
		err = fmt.Errorf("the request %q is not known", r.Op)
	}
	return "", err
}

// ErrNotRunning says that no supervisor has the directory.
var ErrNotRunning = errors.New("no development cluster runs there")

// Remote is a cluster that another process supervises.
type Remote struct {
	dir    string
	socket string
}

// Dial finds the cluster of dir.
func Dial(dir string) (*Remote, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	shape, exists, err := readShape(abs)
	if err != nil {
		return nil, err
	}
	if !exists || !locked(abs) {
		return nil, fmt.Errorf("%w (%s): 'spikectl dev up' starts one, --dir names another directory", ErrNotRunning, dir)
	}
	return &Remote{abs, filepath.Join(shape.Sockets, controlSocket)}, nil
}

func (r *Remote) ask(op, name string) (answer controlAnswer, err error) {
	conn, err := net.DialTimeout("unix", r.socket, 5*time.Second)
	if err != nil {
		return answer, fmt.Errorf("the supervisor of %s does not answer; is it just starting or stopping? %w", r.dir, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(controlTimeout))
	if err := json.NewEncoder(conn).Encode(controlRequest{op, name}); err != nil {
		return answer, err
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxControl)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("the supervisor of %s does not answer: %w", r.dir, err)
	}
	if answer.Error != "" {
		return answer, errors.New(answer.Error)
	}
	return answer, nil
}

// Report is a supervisor and its processes.
type Report struct {
	Supervisor int            `json:"supervisor"` // its process id
	Shape      Shape          `json:"-"`
	Processes  []process.Info `json:"processes"`
}

// Report asks how the processes are.
func (r *Remote) Report() (Report, error) {
	a, err := r.ask("status", "")
	return Report{a.Supervisor, a.Shape, a.Processes}, err
}

// Do does op, one of start, stop and kill, to a process and returns how it is
// then.
func (r *Remote) Do(op, name string) (process.Info, error) {
	a, err := r.ask(op, name)
	for _, p := range a.Processes {
		if p.Name == name {
			return p, err
		}
	}
	return process.Info{}, err
}

// Socket returns the address of the socket of the identity at path, and the
// cluster's shape.
func (r *Remote) Socket(path string) (string, Shape, error) {
	a, err := r.ask("socket", path)
	return a.Socket, a.Shape, err
}

// AddIdentity is like Socket, for an identity that comes back at each start.
func (r *Remote) AddIdentity(path string) (string, error) {
	a, err := r.ask("identity", path)
	return a.Socket, err
}

// Status asks the cluster itself.
func (r *Remote) Status(ctx context.Context) (client.Status, error) {
	socket, shape, err := r.Socket(RolePath("superuser"))
	if err != nil {
		return client.Status{}, err
	}
	cl, done, err := newClient(ctx, socket, shape)
	if err != nil {
		return client.Status{}, err
	}
	defer done()
	return cl.Status(ctx)
}

// AwaitPeer waits until the peer of that name serves.
func (r *Remote) AwaitPeer(ctx context.Context, name string) error {
	number, err := strconv.Atoi(strings.TrimPrefix(name, "nexus-"))
	if err != nil {
		return err
	}
	socket, shape, err := r.Socket(RolePath("superuser"))
	if err != nil {
		return err
	}
	cl, done, err := newClient(ctx, socket, shape, number)
	if err != nil {
		return err
	}
	defer done()
	return Poll(ctx, func() error {
		h, err := cl.Health(ctx, 0)
		if err == nil && (h.Sealed || !h.LeaderKnown) {
			err = errors.New("it does not serve yet")
		}
		return err
	})
}

// Stop stops everything and returns when nothing is left.
func (r *Remote) Stop(ctx context.Context) error {
	if _, err := r.ask("down", ""); err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for locked(r.dir) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("the cluster is still stopping; its log is " + filepath.Join(r.dir, "logs", "supervisor.log"))
		}
	}
	return nil
}
