package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cli/internal/devcluster"
	"github.com/spike-ha/spike-ha/internal/process"
)

func devCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Aliases: []string{"d"}, Value: devcluster.DefaultDir, Usage: "`DIRECTORY` of the cluster"}
	process := func(op, usage string) *cli.Command {
		return &cli.Command{Name: op, Usage: usage, ArgsUsage: "NAME...|all", Flags: []cli.Flag{dir}, Action: devProcess(op)}
	}
	return &cli.Command{Name: "dev", Usage: "run a whole cluster on this machine, for development", Subcommands: []*cli.Command{
		{Name: "up", Usage: "start a cluster: new, or as it was stopped", Flags: append([]cli.Flag{dir}, upFlags()...), Action: devUp},
		{Name: "down", Usage: "stop the cluster; its data stays", Flags: []cli.Flag{dir}, Action: devDown},
		{Name: "status", Usage: "show the processes and the cluster", Flags: []cli.Flag{dir}, Action: devStatus},
		{Name: "env", Usage: "print what a shell needs to use the cluster: eval \"$(spikectl dev env)\"",
			Flags:  []cli.Flag{dir, &cli.StringFlag{Name: "role", Value: "superuser", Usage: "`ROLE` to be: " + strings.Join(devRoles, ", ")}},
			Action: devEnv},
		{Name: "identity", Usage: "identities of applications", Subcommands: []*cli.Command{
			{Name: "add", Usage: "give an application an identity and print its SPIFFE_ENDPOINT_SOCKET", ArgsUsage: "workload/NAME|ROLE", Flags: []cli.Flag{dir}, Action: devIdentity},
		}},
		{Name: "start", Usage: "start processes that ended, and wait until peers serve", ArgsUsage: "NAME...|all", Action: devProcess("start"),
			Flags: []cli.Flag{dir, &cli.DurationFlag{Name: "wait", Value: 10 * time.Second, Usage: "`DURATION` to wait at most; 0: not at all"}}},
		process("stop", "stop processes gracefully"),
		process("kill", "kill processes at once (SIGKILL)"),
		{Name: "supervise", Hidden: true, Flags: append([]cli.Flag{dir}, upFlags()...), Action: devSupervise},
	}}
}

// devRoles are the roles that a shell may take; each has a SPIFFE path.
var devRoles = []string{"superuser", "admin", "operator", "recover", "restore", "bootstrap", "lite"}

func rolePath(role string) (string, bool) {
	switch {
	case role == "bootstrap":
		return "/spike/bootstrap", true
	case role == "lite":
		return "/spike/workload/role/lite", true
	case slices.Contains(devRoles, role):
		return devcluster.RolePath(role), true
	}
	return "", false
}

func devDial(c *cli.Context, least, most int) (*devcluster.Remote, error) {
	if err := errors.Join(checkFormat(c), arguments(c, least, most)); err != nil {
		return nil, err
	}
	return devcluster.Dial(c.String("dir"))
}

// stopWithin is longer than stopping everything by force takes.
const stopWithin = 90 * time.Second

func devDown(c *cli.Context) error {
	remote, err := devDial(c, 0, 0)
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, "stopping the peers, then the Keepers …")
	ctx, cancel := context.WithTimeout(c.Context, stopWithin)
	defer cancel()
	if err := remote.Stop(ctx); err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "everything is stopped; the data stays in %s\n", c.String("dir"))
	return nil
}

// devStatusAnswer is the document of "dev status".
type devStatusAnswer struct {
	devcluster.Report
	Cluster *client.Status `json:"cluster"` // null while no peer answers
}

func devStatus(c *cli.Context) error {
	remote, err := devDial(c, 0, 0)
	if err != nil {
		return err
	}
	var answer devStatusAnswer
	if answer.Report, err = remote.Report(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, min(5*time.Second, c.Duration("timeout")))
	defer cancel()
	status, failed := remote.Status(ctx)
	if failed == nil {
		answer.Cluster = &status
	}
	err = show(c, answer, func(w io.Writer) {
		rows := [][]string{{"PROCESS", "PID", "STATE", "ADDRESS"}}
		for _, p := range answer.Processes {
			pid, state := "-", string(p.State)
			if p.PID != 0 {
				pid = strconv.Itoa(p.PID)
			}
			if p.State == process.Died {
				state = endText(p.Detail)
			}
			rows = append(rows, []string{p.Name, pid, state, p.Address})
		}
		table(w, rows...)
		if failed == nil {
			fmt.Fprintln(w)
			printStatus(w, status)
		}
	})
	return errors.Join(err, failed)
}

// endText says how a process ended that nobody here had asked to: one that somebody
// else asked has not died.
func endText(how string) string {
	if how == "exit status 0" {
		return "ended (" + how + ")"
	}
	return string(process.Died) + " (" + how + ")"
}

func devEnv(c *cli.Context) error {
	path, ok := rolePath(c.String("role"))
	if !ok {
		return usage("there is no role %q: choose one of %s; 'spikectl dev identity add' makes identities for applications", c.String("role"), strings.Join(devRoles, ", "))
	}
	remote, err := devDial(c, 0, 0)
	if err != nil {
		return err
	}
	socket, shape, err := remote.Socket(path)
	if err != nil {
		return err
	}
	type variable struct{ name, value string }
	variables := []variable{
		{"SPIFFE_ENDPOINT_SOCKET", socket},
		{"SPIKE_NEXUS_API_URLS", strings.Join(shape.APIs(), ",")},
		{"SPIKE_NEXUS_API_URL", shape.API(1)},
		{"SPIKE_TRUST_ROOT", devcluster.TrustDomain},
	}
	for _, of := range []string{"NEXUS", "KEEPER", "PILOT", "BOOTSTRAP", "LITE_WORKLOAD"} {
		variables = append(variables, variable{"SPIKE_TRUST_ROOT_" + of, devcluster.TrustDomain})
	}
	document := map[string]string{}
	for _, v := range variables {
		document[v.name] = v.value
	}
	return show(c, document, func(w io.Writer) {
		for _, v := range variables {
			fmt.Fprintf(w, "export %s=%s\n", v.name, shellQuote(v.value))
		}
	})
}

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func devIdentity(c *cli.Context) error {
	remote, err := devDial(c, 1, 1)
	if err != nil {
		return err
	}
	path, err := identityPath(c.Args().First())
	if err != nil {
		return err
	}
	socket, err := remote.AddIdentity(path)
	if err != nil {
		return err
	}
	id := "spiffe://" + devcluster.TrustDomain + path
	return show(c, map[string]string{"spiffeId": id, "socket": socket}, func(w io.Writer) {
		fmt.Fprintln(w, socket)
		fmt.Fprintf(c.App.ErrWriter, "%s: run it with SPIFFE_ENDPOINT_SOCKET=%s\n", id, shellQuote(socket))
	})
}

// identityPath reads a role, a path, or a whole SPIFFE id of the development
// trust domain, and returns the path.
func identityPath(s string) (string, error) {
	if path, ok := rolePath(s); ok {
		return path, nil
	}
	path, whole := strings.CutPrefix(s, "spiffe://"+devcluster.TrustDomain)
	path = "/" + strings.TrimPrefix(path, "/")
	if strings.Contains(path, "//") || !whole && strings.Count(path, "/") < 2 {
		return "", usage("an identity is written workload/NAME, or is a role: %s", strings.Join(devRoles, ", "))
	}
	return path, nil
}

var devDone = map[string]string{"start": "runs", "stop": "is stopped", "kill": "is killed"}

func devProcess(op string) cli.ActionFunc {
	return func(c *cli.Context) error {
		remote, err := devDial(c, 1, maxDevProcesses)
		if err != nil {
			return err
		}
		names, err := devNames(c, remote)
		if err != nil {
			return err
		}
		list := make([]process.Info, len(names))
		for i, name := range names { // all of them first: some serve only when others do
			if list[i], err = remote.Do(op, name); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
		defer cancel()
		for _, p := range list {
			serves := ""
			if op == "start" && strings.HasPrefix(p.Name, "nexus-") && c.Duration("wait") > 0 {
				if serves = " and serves"; remote.AwaitPeer(ctx, p.Name) != nil {
					serves = "; it does not serve yet: see 'spikectl dev status'"
				}
			}
			err := show(c, p, func(io.Writer) {
				pid := ""
				if p.PID != 0 {
					pid = fmt.Sprintf(" (pid %d)", p.PID)
				}
				fmt.Fprintf(c.App.ErrWriter, "%s %s%s%s\n", p.Name, devDone[op], pid, serves)
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// maxDevProcesses is more than a development cluster has.
const maxDevProcesses = 64

// devNames are the processes that the arguments name.
func devNames(c *cli.Context, remote *devcluster.Remote) ([]string, error) {
	if !slices.Equal(c.Args().Slice(), []string{"all"}) {
		return c.Args().Slice(), nil
	}
	report, err := remote.Report()
	var names []string
	for _, p := range report.Processes {
		names = append(names, p.Name)
	}
	return names, err
}

// invoked is how the user calls this program, for lines to copy.
func invoked() string {
	if name := os.Args[0]; filepath.Base(name) == "spikectl" {
		return name
	}
	return "spikectl"
}
