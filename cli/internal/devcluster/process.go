package devcluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopPatience is how long a process may take to stop when asked: a little
	// more than a peer gives itself.
	stopPatience = 18 * time.Second
	pollEvery    = 50 * time.Millisecond
)

// State is how a process is.
type State string

const (
	Running State = "running"
	Stopped State = "stopped" // as asked
	Killed  State = "killed"  // as asked
	Died    State = "died"    // not as asked
)

// Process is one process as others see it.
type Process struct {
	Name    string `json:"name"`
	PID     int    `json:"pid,omitempty"`
	State   State  `json:"state"`
	Detail  string `json:"detail,omitempty"` // how it ended
	Address string `json:"address"`
	Log     string `json:"log"`
}

// child is one process of the cluster, over all its starts.
type child struct {
	name, address string
	binary        string
	args          []string
	logFile       string
	spawn         *spawner
	changed       func()                     // after each start and end; called without the lock
	died          func(c *child, how string) // when it ended and nobody had asked

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd  // nil while it does not run
	start  string
	ended  chan struct{} // closed when cmd has ended
	asked  State         // what its end will be, Died unless it was asked for
	state  State
	detail string
}

func (c *child) info() Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := Process{Name: c.name, State: c.state, Detail: c.detail, Address: c.address, Log: c.logFile}
	if c.cmd != nil {
		p.PID = c.cmd.Process.Pid
	}
	return p
}

func (c *child) entry() (runEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return runEntry{}, false
	}
	return runEntry{c.name, c.cmd.Process.Pid, c.start}, true
}

// run starts the process.
func (c *child) run() error {
	c.mu.Lock()
	cmd, err := c.launch()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.changed()
	go c.await(cmd)
	return nil
}

// launch makes the process; the lock is held.
func (c *child) launch() (*exec.Cmd, error) {
	if c.cmd != nil {
		return nil, fmt.Errorf("%s runs already (pid %d)", c.name, c.cmd.Process.Pid)
	}
	log, err := os.OpenFile(c.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(c.binary, c.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = cleanEnvironment()
	cmd.SysProcAttr = attributes()
	if err := c.spawn.start(cmd); err != nil {
		return nil, fmt.Errorf("%s cannot be started: %w", c.name, err)
	}
	c.cmd, c.start, c.ended = cmd, startTime(cmd.Process.Pid), make(chan struct{})
	c.asked, c.state, c.detail = Died, Running, ""
	return cmd, nil
}

// await waits until the process has ended and says so.
func (c *child) await(cmd *exec.Cmd) {
	how := "exit status 0"
	if err := cmd.Wait(); err != nil {
		how = err.Error()
	}
	c.mu.Lock()
	c.cmd, c.state, c.detail = nil, c.asked, how
	unasked, ended := c.state == Died, c.ended
	c.mu.Unlock()
	c.changed()
	if unasked {
		c.died(c, how)
	}
	close(ended)
}

// signal asks the process to end and returns what is closed when it has; nil
// when it does not run.
func (c *child) signal(s syscall.Signal, as State) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return nil
	}
	c.asked = as
	c.cmd.Process.Signal(s) // it may have ended just now: then ended is closed soon
	return c.ended
}

// stop ends the process gracefully, by force after a while or when hurry is
// closed.
func (c *child) stop(hurry <-chan struct{}) error {
	ended := c.signal(syscall.SIGTERM, Stopped)
	if ended == nil {
		return fmt.Errorf("%s does not run", c.name)
	}
	select {
	case <-ended:
		return nil
	case <-hurry:
	case <-time.After(stopPatience):
	}
	return c.kill()
}

// kill ends the process at once.
func (c *child) kill() error {
	ended := c.signal(syscall.SIGKILL, Killed)
	if ended == nil {
		return fmt.Errorf("%s does not run", c.name)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopPatience):
		return fmt.Errorf("%s cannot be killed", c.name)
	}
}

// lastWords are the last lines of the log: what a process that ended said.
func (c *child) lastWords() string {
	file, err := os.Open(c.logFile)
	if err != nil {
		return ""
	}
	defer file.Close()
	const tail = 2048
	if info, err := file.Stat(); err == nil && info.Size() > tail {
		file.Seek(-tail, io.SeekEnd)
	}
	raw, _ := io.ReadAll(io.LimitReader(file, tail))
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(lines[len(lines)-1])
}

// cleanEnvironment is ours without the settings of SPIKE and SPIFFE: those of
// the user's shell are for clients, and the processes are told all by flags.
func cleanEnvironment() (list []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SPIKE_") && !strings.HasPrefix(v, "SPIFFE_") {
			list = append(list, v)
		}
	}
	return list
}

// spawner starts processes from one thread that lives as long as it does: the
// kernel takes the end of the thread that started a child for the end of its
// parent (prctl(2), PR_SET_PDEATHSIG).
type spawner struct {
	requests chan spawnRequest
	done     chan struct{}
}

type spawnRequest struct {
	cmd    *exec.Cmd
	answer chan error
}

func newSpawner() *spawner {
	s := &spawner{make(chan spawnRequest), make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		for {
			select {
			case r := <-s.requests:
				r.answer <- r.cmd.Start()
			case <-s.done:
				return // and with it the thread
			}
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	answer := make(chan error, 1)
	select {
	case s.requests <- spawnRequest{cmd, answer}:
		return <-answer
	case <-s.done:
		return errors.New("the supervisor has stopped")
	}
}

func (s *spawner) close() { close(s.done) }
