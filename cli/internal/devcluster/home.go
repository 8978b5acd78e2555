package devcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spike-ha/spike-ha/internal/process"
)

// ErrRunning says that another supervisor has the directory.
var ErrRunning = errors.New("a development cluster runs there already")

// home is the directory of a cluster, locked for this process.
type home struct {
	dir   string // absolute
	lock  *os.File
	shape Shape
	fresh bool // nothing was there
}

// openHome takes the directory for this process and settles the cluster's shape.
func openHome(o Options) (_ *home, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := &home{dir: dir}
	if h.lock, err = lock(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if err := h.sweep(o.Say); err != nil { // before the ports are looked at
		return nil, err
	}
	if err := h.settle(o); err != nil {
		return nil, err
	}
	// Only a directory with our own file in it is narrowed: it may have been
	// somebody's, opened to others for a reason.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	for _, sub := range []string{"logs", "data", "recovery", "archive"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (h *home) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

func (h *home) close() { h.lock.Close() }

func (h *home) settle(o Options) error {
	old, exists, err := readShape(h.dir)
	if err != nil {
		return err
	}
	h.shape, h.fresh = old, !exists
	if !exists {
		if err := h.mustBeEmpty(); err != nil {
			return err
		}
		h.shape = Shape{Format: shapeFormat, Peers: 3, Keepers: 3, BasePort: DefaultBasePort}
	}
	for _, n := range []struct {
		flag string
		want int
		have *int
	}{{"peers", o.Peers, &h.shape.Peers}, {"keepers", o.Keepers, &h.shape.Keepers}} {
		switch {
		case n.want == 0 || n.want == *n.have:
		case exists:
			return fmt.Errorf("the cluster in %s has %d %s; that cannot be changed: use another --dir", o.Dir, *n.have, n.flag)
		case n.want < 1 || n.want > maxProcesses:
			return fmt.Errorf("--%s is between 1 and %d", n.flag, maxProcesses)
		default:
			*n.have = n.want
		}
	}
	if o.BasePort != KeepPorts {
		h.shape.BasePort = o.BasePort
	}
	if err := h.settlePorts(); err != nil {
		return err
	}
	if err := h.settleSockets(); err != nil {
		return err
	}
	kept := h.shape
	if exists && o.Passing {
		kept.BasePort = old.BasePort
	}
	return kept.save(h.dir)
}

// mustBeEmpty keeps a mistyped --dir from filling somebody's directory.
func (h *home) mustBeEmpty() error {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockFile {
			return fmt.Errorf("%s is neither empty nor a development cluster (it holds %s): use another --dir", h.dir, e.Name())
		}
	}
	return nil
}

func (h *home) settlePorts() error {
	s := &h.shape
	if s.BasePort != FreePorts {
		if s.BasePort < 1024 || s.BasePort+portStep*maxProcesses > 65535 {
			return errors.New("--base-port is between 1024 and 65400, or 0 to find free ports")
		}
		return s.checkPorts()
	}
	// Below the range from which systems take the ports of outgoing connections:
	// those could take a port of ours while its process is down.
	var err error
	for range 50 {
		s.BasePort = 20000 + portStep*rand.IntN(1100)
		if err = s.checkPorts(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no free range of ports was found: %w", err)
}

// maxSocketDir leaves room for the longest socket name that the authority
// makes, in the 103 bytes that a socket's path may have.
const maxSocketDir = 103 - len("/0123456789abcdef-01234567.sock")

func (h *home) settleSockets() error {
	if own := h.path("sockets"); len(own) <= maxSocketDir {
		h.shape.Sockets = own
		return os.MkdirAll(own, 0o700)
	}
	// The same one again, if it is still there and ours: programs that were given
	// a socket find it after a restart.
	if info, err := os.Lstat(h.shape.Sockets); err == nil && info.IsDir() && info.Mode().Perm() == 0o700 && ownedByUs(info) {
		return nil
	}
	short, err := os.MkdirTemp("", "spike-dev-") // mode 0700
	if err != nil {
		return err
	}
	if len(short) > maxSocketDir {
		os.Remove(short)
		return fmt.Errorf("the path of %s is too long for sockets, and that of %s as well: use a shorter --dir", h.dir, os.TempDir())
	}
	h.shape.Sockets = short
	return nil
}

func ownedByUs(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Getuid()
}

const (
	lockFile = "lock"
	// lockPatience outlasts who has the lock for a moment only: a command that
	// looks whether it is taken, or a process between its fork and its exec.
	lockPatience = 500 * time.Millisecond
)

func lock(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(pollEvery) {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if time.Now().Before(deadline) {
			continue
		}
		file.Close()
		return nil, fmt.Errorf("%w (%s): 'spikectl dev status' shows it, 'spikectl dev down' stops it", ErrRunning, dir)
	}
}

// locked says whether a supervisor has dir.
func locked(dir string) bool {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// run is what a supervisor writes down of its processes, so that the next one
// can tell what is left of them should it crash.
type run struct {
	Supervisor int        `json:"supervisor"`
	Processes  []runEntry `json:"processes"`
}

type runEntry struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start string `json:"start"` // of the process, as the kernel says it
}

const runFile = "run.json"

// sweep ends what a crashed supervisor left: processes that have not ended with
// it (they are told to by the kernel, but that takes them a moment).
func (h *home) sweep(say func(string, ...any)) error {
	var r run
	raw, err := os.ReadFile(h.path(runFile))
	if err != nil || json.Unmarshal(raw, &r) != nil {
		return nil // nothing was left
	}
	alive := func() (list []runEntry) {
		for _, p := range r.Processes {
			if p.PID > 0 && p.Start != "" && process.StartTime(p.PID) == p.Start {
				list = append(list, p)
			}
		}
		return list
	}
	for _, p := range alive() {
		say("%s (pid %d) was left by a supervisor that crashed; stopping it", p.Name, p.PID)
		syscall.Kill(p.PID, syscall.SIGTERM)
	}
	deadline := time.Now().Add(process.StopPatience)
	for killed := false; len(alive()) > 0; time.Sleep(pollEvery) {
		if time.Now().Before(deadline) {
			continue
		}
		if killed {
			return errors.New("processes of a crashed supervisor cannot be ended; see run.json")
		}
		for _, p := range alive() {
			syscall.Kill(p.PID, syscall.SIGKILL)
		}
		deadline, killed = time.Now().Add(process.StopPatience), true
	}
	return os.Remove(h.path(runFile))
}
