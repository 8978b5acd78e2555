// Package process starts programs as children that end with this process, and
// stops, kills, freezes and starts them again: for whatever runs a whole cluster
// on one machine. It knows nothing of what the programs are.
package process

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// StopPatience is how long a process may take to stop when asked: a little more
// than a peer gives itself.
const StopPatience = 18 * time.Second

// State is how a process is.
type State string

const (
	Running State = "running"
	Stopped State = "stopped" // as asked
	Killed  State = "killed"  // as asked
	Died    State = "died"    // not as asked
)

// Info is one process as others see it.
type Info struct {
	Name    string `json:"name"`
	PID     int    `json:"pid,omitempty"`
	State   State  `json:"state"`
	Detail  string `json:"detail,omitempty"` // how it ended
	Address string `json:"address"`
	Log     string `json:"log"`
}

// Child is one process, over all its starts. Its fields are set before the
// first; its methods may be called from any goroutine.
type Child struct {
	Name, Address string // for people: what it is called, and where it answers
	Binary        string
	Args          []string
	Env           []string // besides this process's own, from which all that begins with SPIKE_ is left out
	LogFile       string   // both outputs are appended to it
	Spawner       *Spawner
	Changed       func()                     // after each start and end; nil: nobody asks
	Died          func(c *Child, how string) // when it ended and nobody had asked; nil: nobody asks

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd  // nil while it does not run
	start  string
	ended  chan struct{} // closed when cmd has ended
	asked  State         // what its end will be, Died unless it was asked for
	state  State
	detail string

	still sync.RWMutex // held by KillAnd; held for reading while the process is started
}

func (c *Child) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := Info{Name: c.Name, State: c.state, Detail: c.detail, Address: c.Address, Log: c.LogFile}
	if c.cmd != nil {
		p.PID = c.cmd.Process.Pid
	}
	return p
}

// Running returns the number of the process and what StartTime said of it when
// it started; false when it does not run.
func (c *Child) Running() (pid int, start string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return 0, "", false
	}
	return c.cmd.Process.Pid, c.start, true
}

// Ending is whether the process runs although it was told to end: one that waits for a disk that hangs does, when it is killed.
func (c *Child) Ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cmd != nil && c.asked != Died
}

// Start starts the process.
func (c *Child) Start() error {
	c.still.RLock()
	defer c.still.RUnlock()
	c.mu.Lock()
	cmd, err := c.launch()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.tell()
	go c.await(cmd)
	return nil
}

// launch makes the process; the lock is held.
func (c *Child) launch() (*exec.Cmd, error) {
	if c.cmd != nil {
		return nil, fmt.Errorf("%s runs already (pid %d)", c.Name, c.cmd.Process.Pid)
	}
	log, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(c.Binary, c.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(CleanEnvironment(), c.Env...)
	cmd.SysProcAttr = attributes()
	if err := c.Spawner.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s cannot be started: %w", c.Name, err)
	}
	c.cmd, c.start, c.ended = cmd, StartTime(cmd.Process.Pid), make(chan struct{})
	c.asked, c.state, c.detail = Died, Running, ""
	return cmd, nil
}

func (c *Child) tell() {
	if c.Changed != nil {
		c.Changed()
	}
}

// await waits until the process has ended and says so.
func (c *Child) await(cmd *exec.Cmd) {
	how := "exit status 0"
	if err := cmd.Wait(); err != nil {
		how = err.Error()
	}
	c.mu.Lock()
	c.cmd, c.state, c.detail = nil, c.asked, how
	unasked, ended := c.state == Died, c.ended
	c.mu.Unlock()
	c.tell()
	if unasked && c.Died != nil {
		c.Died(c, how)
	}
	close(ended)
}

// signal asks the process to end and returns what is closed when it has; nil
// when it does not run.
func (c *Child) signal(s syscall.Signal, as State) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return nil
	}
	c.asked = as
	c.cmd.Process.Signal(s) // it may have ended just now: then ended is closed soon
	return c.ended
}

// Freeze stops the process where it stands, as SIGSTOP does; Thaw lets it go on.
func (c *Child) Freeze() error { return c.send(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (c *Child) Thaw() error { return c.send(syscall.SIGCONT) }

func (c *Child) send(s syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return fmt.Errorf("%s does not run", c.Name)
	}
	return c.cmd.Process.Signal(s)
}

// Stop ends the process gracefully, by force after a while or when hurry is
// closed.
func (c *Child) Stop(hurry <-chan struct{}) error {
	ended := c.signal(syscall.SIGTERM, Stopped)
	if ended == nil {
		return fmt.Errorf("%s does not run", c.Name)
	}
	select {
	case <-ended:
		return nil
	case <-hurry:
	case <-time.After(StopPatience):
	}
	return c.Kill()
}

// Kill ends the process at once.
func (c *Child) Kill() error {
	ended := c.signal(syscall.SIGKILL, Killed)
	if ended == nil {
		return fmt.Errorf("%s does not run", c.Name)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(StopPatience):
		return fmt.Errorf("%s cannot be killed", c.Name)
	}
}

// KillAnd ends the process, if it runs, and does something before anybody can
// start it again; Start waits meanwhile.
func (c *Child) KillAnd(do func() error) error {
	c.still.Lock()
	defer c.still.Unlock()
	if _, _, runs := c.Running(); runs {
		if err := c.Kill(); err != nil {
			if _, _, runs := c.Running(); runs {
				return err
			}
		}
	}
	return do()
}

// LastWords are the last lines of the log: what a process that ended said.
func (c *Child) LastWords() string {
	file, err := os.Open(c.LogFile)
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
