package main

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/identity/devca"
)

// TestMain lets the test binary be the program: what runs is main itself.
func TestMain(m *testing.M) {
	if os.Getenv("KEEPER_TEST_MAIN") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestTerminatesGracefully(t *testing.T) {
	dir, err := os.MkdirTemp("", "km")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a, err := devca.Serve(t.Context(), devca.Options{Dir: dir, TrustDomain: "spike.ist", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	socket, err := a.Add("/spike/keeper/keeper-1")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--id", "keeper-1", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "KEEPER_TEST_MAIN=1", "SPIFFE_ENDPOINT_SOCKET="+socket)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	var log strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "keeper ready") {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(log.String(), "shares are wiped") {
		t.Fatalf("%v\n%s", err, log.String())
	}
}

func TestFailureExitsWithOne(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--log-level", "loud")
	cmd.Env = append(os.Environ(), "KEEPER_TEST_MAIN=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(string(out), "keeper: log level") {
		t.Fatalf("%v: %s", err, out)
	}
}
