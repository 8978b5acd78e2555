package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"gopkg.in/yaml.v3"

	"github.com/spike-ha/spike-ha/cli"
	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
)

// programs is where TestMain built the three programs; tests of "dev" run them.
var programs string

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"spikectl": func() {
		os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}})
}

type suite struct{ m *testing.M }

func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "spike-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "../cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	programs = dir
	return s.m.Run()
}

// Commands of our own in scripts.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":      exits,
	"eventually": eventually,
	"hasjson":    hasJSON,
	"samedoc":    sameDocument,
	"save":       save,
}

// exits STATUS COMMAND… runs a command that must end with that very status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND...")
	}
	status := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("exit status %d, want %s", status, args[0])
	}
}

// eventually COMMAND… repeats a command until it succeeds.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(nodetest.Patience)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not within %s: %v", nodetest.Patience, err)
		}
		time.Sleep(50 * time.Millisecond) // a poll: the deadline above decides
	}
}

// hasjson FIELD… insists that the document on stdout has exactly these fields.
func hasJSON(ts *testscript.TestScript, neg bool, args []string) {
	var document map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &document))
	for _, name := range args {
		if _, ok := document[name]; !ok {
			ts.Fatalf("the document has no field %q: %v", name, document)
		}
		delete(document, name)
	}
	if len(document) > 0 {
		ts.Fatalf("the document has more fields: %v", document)
	}
}

// samedoc JSON YAML insists that two files hold the same document, but for the
// index, which is that of the read.
func sameDocument(ts *testscript.TestScript, neg bool, args []string) {
	var a, b any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &a))
	ts.Check(yaml.Unmarshal([]byte(ts.ReadFile(args[1])), &b))
	raw, err := json.Marshal(b) // numbers and times as JSON has them
	ts.Check(err)
	b = nil
	ts.Check(json.Unmarshal(raw, &b))
	for _, document := range []any{a, b} {
		delete(document.(map[string]any), "index")
	}
	if !reflect.DeepEqual(a, b) {
		ts.Fatalf("the documents differ:\n%v\n%v", a, b)
	}
}

// save NAME puts the trimmed stdout of the last command into a variable.
func save(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// prompt keeps the race detector from waiting a second at the end of each
// spikectl, in case another goroutine has a race to report.
func prompt(env *testscript.Env) { env.Setenv("GORACE", "atexit_sleep_ms=10") }

// use gives a script the addresses of a cluster and, as variables named like the
// roles, the sockets of the identities.
func use(env *testscript.Env, c *nodetest.Cluster) {
	prompt(env)
	env.Setenv("SPIKE_NEXUS_API_URLS", strings.Join(c.Addresses(), ","))
	env.Setenv("SPIKE_TRUST_ROOT", nodetest.Domain)
	env.Setenv("SPIFFE_ENDPOINT_SOCKET", c.Socket(nodetest.Role("superuser")))
	for _, role := range []string{"superuser", "admin", "operator", "recover", "restore"} {
		env.Setenv(role, c.Socket(nodetest.Role(role)))
	}
	env.Setenv("bootstrap", c.Socket("/spike/bootstrap"))
	env.Setenv("app", c.Socket("/workload/app"))
	env.Setenv("AUDIT", filepath.Join(c.DataDir(0), "audit"))
}

// TestCluster runs scripts against one cluster: each keeps to paths and names of
// its own.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	// The same role of the same domain, by an authority that the cluster has never heard of.
	other, err := devca.Serve(t.Context(), devca.Options{Dir: filepath.Join(c.Dir, "elsewhere"), TrustDomain: nodetest.Domain, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	elsewhere, err := other.Add(nodetest.Role("superuser"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/cluster", Cmds: commands, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			use(env, c)
			env.Setenv("elsewhere", elsewhere)
			return nil
		}})
}

// TestNewCluster runs scripts that need a cluster of their own, without a root key.
func TestNewCluster(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/new", Cmds: commands, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			use(env, nodetest.New(env.T().(testing.TB), nodetest.Options{Peers: 1}))
			return nil
		}})
}

// TestArchive runs scripts against a cluster that has an archive, in the directory archive of the script's own, and small audit files.
func TestArchive(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/archive", Cmds: commands, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			address := "file://" + filepath.Join(env.WorkDir, "archive")
			c := nodetest.Booted(env.T().(testing.TB), nodetest.Options{Peers: 1, Configure: func(_ int, cfg *node.Config) { cfg.Archive, cfg.AuditFileBytes = address, 2<<10 }})
			use(env, c)
			env.Setenv("ARCHIVE", address)
			return nil
		}})
}

// TestLocal runs scripts that need no cluster.
func TestLocal(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/local", Cmds: commands, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			prompt(env)
			return nil
		}})
}

// TestDev runs scripts with the real programs, found by PATH.
func TestDev(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/dev", Cmds: commands, RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", programs+string(filepath.ListSeparator)+env.Getenv("PATH"))
			env.Defer(func() { // whatever a script that failed left running
				for _, dir := range []string{"one", "two", ".spike-dev"} {
					down := exec.Command(filepath.Join(programs, "spikectl"), "dev", "down", "--dir", filepath.Join(env.WorkDir, dir))
					down.Run()
				}
			})
			return nil
		}})
}
