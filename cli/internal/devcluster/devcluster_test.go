package devcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/process"
)

const patience = 60 * time.Second

// programs is where TestMain built nexus and keeper.
var programs string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "spike-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir, "../../../cmd/nexus", "../../../cmd/keeper").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	programs = dir
	return m.Run()
}

// words collects what a supervisor says.
type words struct {
	mu   sync.Mutex
	said []string
}

func (w *words) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

func (w *words) contains(s string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.said, func(x string) bool { return strings.Contains(x, s) })
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func options(t *testing.T, w *words) Options {
	dir, err := os.MkdirTemp("", "spike") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Options{Dir: filepath.Join(dir, "c"), BasePort: FreePorts, Binaries: programs, Say: w.say}
}

// fake makes programs that are shell scripts.
func fake(t *testing.T, nexus, keeper string) string {
	dir := t.TempDir()
	for name, body := range map[string]string{"nexus": nexus, "keeper": keeper} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, o Options) *Supervisor {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(nil) })
	return s
}

func TestLifeOfACluster(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Peers = 1
	s := open(t, o)
	status, err := s.BringUp(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Peers) != 1 || len(status.Keepers) != 3 || status.Threshold != 2 {
		t.Fatalf("%+v", status)
	}
	cl, done, err := s.Client(bounded(t), RolePath("superuser"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Put(bounded(t), "a/b", map[string]string{"k": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	done()

	// Beside it, another program of the same user.
	r, err := Dial(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := r.AddIdentity("/workload/web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddIdentity("workload"); err == nil {
		t.Error("an identity without a path was served")
	}
	if _, err := r.ask("dance", ""); err == nil {
		t.Error("an unknown request was obeyed")
	}
	if p, err := r.Do("kill", "keeper-2"); err != nil || p.State != process.Killed || p.PID != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := r.Do("start", "keeper-2"); err != nil || p.State != process.Running || p.PID == 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrRunning) {
		t.Errorf("a second supervisor: %v", err)
	}

	// A process that dies is told, and nothing else stops.
	pid := s.Processes()[0].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := Poll(bounded(t), func() error {
		if !w.contains("nexus-1 ended (signal: killed)") {
			return errors.New("nothing was said")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	// Stopped while a peer is down, started again: it opens itself.
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(o.Dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
	o.BasePort = KeepPorts
	s = open(t, o)
	if _, err := s.BringUp(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if !w.contains("opening the cluster with its recovery shares") {
		t.Error("nothing was said of the recovery shares")
	}
	values, _, err := read(t, s)
	if err != nil || values["k"] != "v" {
		t.Errorf("%v, %v", values, err)
	}
	if again, err := s.AddIdentity("/workload/web"); err != nil || again != socket {
		t.Errorf("the identity came back at %s and was at %s: %v", again, socket, err)
	}
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}

	// Without its recovery shares, it says that it is lost.
	if err := os.RemoveAll(filepath.Join(o.Dir, "recovery")); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	if _, err := s.BringUp(bounded(t)); err == nil || !strings.Contains(err.Error(), "cannot be opened any more") {
		t.Errorf("without recovery shares: %v", err)
	}
}

func read(t *testing.T, s *Supervisor) (map[string]string, client.SecretAnswer, error) {
	cl, done, err := s.Client(bounded(t), RolePath("superuser"))
	if err != nil {
		return nil, client.SecretAnswer{}, err
	}
	defer done()
	return cl.Get(bounded(t), "a/b", 0)
}

func TestAProgramThatFailsIsNamedWithItsLastWords(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Binaries = fake(t, "echo the disk is full >&2; exit 3", "exec sleep 60")
	s := open(t, o)
	_, err := s.BringUp(bounded(t))
	if err == nil {
		t.Fatal("it came up")
	}
	for _, want := range []string{"nexus-", "exit status 3", "the disk is full", filepath.Join(o.Dir, "logs")} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestAProcessThatDoesNotStopIsKilledInAHurry(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Peers, o.Keepers = 1, 1
	o.Binaries = fake(t, "trap '' TERM; while :; do sleep 1; done", "exec sleep 60")
	s := open(t, o)
	hurry := make(chan struct{})
	close(hurry)
	begin := time.Now()
	if err := s.Close(hurry); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > process.StopPatience/2 {
		t.Errorf("it took %s", took)
	}
	if state := s.Processes()[0].State; state != process.Killed && state != process.Stopped {
		t.Error(state)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Binaries = t.TempDir()
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Error(err)
	}
	if _, err := os.Stat(o.Dir); err == nil {
		t.Error("the directory was made")
	}
}

func TestProcessesOfACrashedSupervisorAreEnded(t *testing.T) {
	t.Parallel()
	var w words
	left, stranger := exec.Command("sleep", "600"), exec.Command("sleep", "600")
	ended := make(chan struct{})
	for _, c := range []*exec.Cmd{left, stranger} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { stranger.Process.Kill(); stranger.Wait() })
	go func() { left.Wait(); close(ended) }()
	h := &home{dir: t.TempDir()}
	err := writeJSON(h.path(runFile), run{Processes: []runEntry{
		{"nexus-1", left.Process.Pid, process.StartTime(left.Process.Pid)},
		{"nexus-2", stranger.Process.Pid, "1"}, // the number went to another process since
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.sweep(w.say); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the process that was left still runs")
	}
	if process.StartTime(stranger.Process.Pid) == "" {
		t.Error("a process that is not ours was ended")
	}
	if !w.contains("nexus-1") || w.contains("nexus-2") {
		t.Errorf("%q", w.said)
	}
}

func TestHome(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Peers = 5
	h, err := openHome(o)
	if err != nil {
		t.Fatal(err)
	}
	if s := h.shape; s.Peers != 5 || s.Keepers != 3 || !h.fresh || s.BasePort < 20000 {
		t.Errorf("%+v", s)
	}
	h.close()

	o.BasePort = KeepPorts
	for _, change := range []func(*Options){func(o *Options) { o.Peers = 3 }, func(o *Options) { o.Keepers = 1 }, func(o *Options) { o.BasePort = 80 }} {
		bad := o
		change(&bad)
		if _, err := openHome(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	o.Peers = 0
	o.BasePort, o.Passing = FreePorts, true
	passing, err := openHome(o)
	if err != nil {
		t.Fatal(err)
	}
	passing.close()
	o.BasePort, o.Passing = KeepPorts, false
	again, err := openHome(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.shape.BasePort != h.shape.BasePort || again.shape.Peers != 5 || again.fresh {
		t.Errorf("%+v", again.shape)
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	t.Parallel()
	var w words
	h, err := openHome(options(t, &w))
	if err != nil {
		t.Fatal(err)
	}
	h.close()
	l, err := net.Listen("tcp", h.shape.address(2, portKeeper))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := options(t, &w)
	o.BasePort = h.shape.BasePort
	_, err = openHome(o)
	var taken *PortTakenError
	if !errors.As(err, &taken) || taken.Address != l.Addr().String() || taken.Use != "keeper-2" || !strings.Contains(err.Error(), "--base-port") {
		t.Error(err)
	}
}

func TestSocketsOfALongDirectoryAreElsewhere(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	o.Dir = filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	h, err := openHome(o)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(h.shape.Sockets)
	h.close()
	if strings.HasPrefix(h.shape.Sockets, h.dir) || len(h.shape.Sockets) > maxSocketDir {
		t.Error(h.shape.Sockets)
	}
	if info, err := os.Stat(h.shape.Sockets); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info, err)
	}
	o.BasePort = KeepPorts
	again, err := openHome(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.shape.Sockets != h.shape.Sockets {
		t.Errorf("%s, then %s", h.shape.Sockets, again.shape.Sockets)
	}
}

func TestDefaultPortsAreThoseOfSPIKE(t *testing.T) {
	t.Parallel()
	s := Shape{Peers: 3, Keepers: 3, BasePort: DefaultBasePort}
	if got := strings.Join(s.APIs(), " "); got != "https://127.0.0.1:8553 https://127.0.0.1:8563 https://127.0.0.1:8573" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, p := range s.ports() {
		if seen[p[0]] {
			t.Errorf("%s is used twice", p[0])
		}
		seen[p[0]] = true
	}
	if len(seen) != 12 || !seen["127.0.0.1:8554"] || !seen["127.0.0.1:8555"] {
		t.Errorf("%v", seen)
	}
}

func TestDamagedDescriptionIsRefused(t *testing.T) {
	t.Parallel()
	var w words
	o := options(t, &w)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", `{"format": 2}`} {
		if err := os.WriteFile(filepath.Join(o.Dir, shapeFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openHome(o); err == nil || !strings.Contains(err.Error(), shapeFile) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
