// Package cli is spikectl: its commands, runnable in this process.
//
// How it speaks: data goes to standard output, everything else (progress,
// warnings, errors, hints) to standard error. "--format json" and "yaml" print
// the same document; tables are for people and may change. An error says what
// happened, to which thing, and what to do now. Exit status 0 is success, 1 a
// wrong use or a local failure, 2 a refusal or failure of the cluster, 3 a watch
// that cannot go on from where it was.
//
// Secret values are never needed on the command line: key=- reads one from
// standard input, key=@file from a file.
package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/secret"
)

// Exit statuses.
const (
	ExitOK     = 0
	ExitLocal  = 1 // wrong use, or a failure on this side
	ExitRemote = 2 // the cluster refused or failed
	ExitForgot = 3 // the changes that a watch was to go on from are not kept any more
)

// Main runs spikectl with args (without the program's name) and returns its
// exit status. It uses nothing of the process but what it is given and the
// environment.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	switch {
	case len(args) == 1 && args[0] == "--version":
		args = []string{"version"}
	case len(args) > 1 && args[0] == "help": // the library's own forgets the subcommands
		args = append(args[1:len(args):len(args)], "--help")
	}
	app := newApp(in, out, errOut)
	err := app.RunContext(ctx, append([]string{"spikectl"}, arrange(app, args)...))
	if err == nil {
		return ExitOK
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	fmt.Fprintln(errOut, "Error:", err)
	var remote *secret.Error
	if errors.As(err, &remote) && remote.Code == secret.CodeUnavailable && remote.Cause != nil {
		fmt.Fprintln(errOut, "Cause:", innermost(remote.Cause))
	}
	if hint := hintFor(err); hint != "" {
		fmt.Fprintln(errOut, "Hint:", hint)
	}
	if secret.CodeOf(err) == secret.CodeForgotten {
		return ExitForgot
	}
	if (remote != nil || errors.Is(err, errRemote)) && !errors.Is(err, errLocal) {
		return ExitRemote
	}
	return ExitLocal
}

// innermost leaves out what the HTTP client says of the request.
func innermost(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// exitStatus ends the program without another word: it was said already.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// errRemote marks failures of the other side that have no code.
var errRemote = errors.New("remote")

// errLocal marks failures that are of this side although they have a code.
var errLocal = errors.New("local")

// usage makes an error about how the command was used.
func usage(format string, args ...any) error { return fmt.Errorf(format, args...) }

// local marks err as of this side.
func local(err error) error {
	if err == nil {
		return nil
	}
	return localError{err}
}

type localError struct{ error }

func (e localError) Unwrap() []error { return []error{e.error, errLocal} }

// hinted carries the hint that a command knows better than hintFor.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// needsRole says which role a refused operation takes, or which of several,
// "a, b or c": no policy grants it.
func needsRole(err error, role string) error {
	if secret.CodeOf(err) != secret.CodeDenied {
		return err
	}
	one, _, _ := strings.Cut(role, ",")
	return hinted{&secret.Error{Code: secret.CodeDenied, Message: "this takes the role " + role + ", which no policy gives", Cause: err},
		"be that role (SPIFFE_ENDPOINT_SOCKET); for a cluster of 'spikectl dev up': eval \"$(spikectl dev env --role " + one + ")\""}
}

func hintFor(err error) string {
	var own hinted
	if errors.As(err, &own) {
		return own.hint
	}
	switch secret.CodeOf(err) {
	case secret.CodeSealed:
		return "see 'spikectl status'; a sealed peer gets its keys from the Keepers by itself, from 'spikectl operator restore', or, if an operator sealed it, after 'spikectl operator unseal'"
	case secret.CodeUnavailable:
		switch remote := (*secret.Error)(nil); {
		case errors.As(err, &remote) && remote.Reason == client.ReasonNoSuchHost:
			return "check --address and SPIKE_NEXUS_API_URLS: nobody has that name here"
		case errors.As(err, &remote) && remote.Reason == client.ReasonDraining:
			return "name other peers, too (--address, SPIKE_NEXUS_API_URLS), or end it: 'spikectl cluster drain --undo'"
		case errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, new(tls.RecordHeaderError)):
			return "what answers at that address does not speak TLS: check --address, it takes the API address of a peer"
		case stranger(err):
			return "this is another cluster, or another trust domain: check --address, --trust-root and which identity you use (SPIFFE_ENDPOINT_SOCKET)"
		}
		return "a majority of the peers must be up; 'spikectl status' asks any one of them"
	case secret.CodeForgotten:
		return "start over: list or read what you need with --format json, then watch --after the \"index\" of that answer"
	case secret.CodeDenied:
		return "check which identity you use (SPIFFE_ENDPOINT_SOCKET) and the policies ('spikectl policy list')"
	}
	switch {
	case errors.Is(err, cluster.ErrDirInUse):
		return "stop the peer first"
	case errors.Is(err, identity.ErrUnavailable):
		return "for a cluster of 'spikectl dev up': eval \"$(spikectl dev env)\""
	}
	return ""
}

func newApp(in io.Reader, out, errOut io.Writer) *cli.App {
	app := &cli.App{
		Name:                 "spikectl",
		Usage:                "run and use a SPIKE HA secrets cluster",
		Version:              node.Version,
		Reader:               in,
		Writer:               out,
		ErrWriter:            errOut,
		HideVersion:          true,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {},
		OnUsageError:         func(_ *cli.Context, err error, _ bool) error { return usage("%w; see spikectl --help", err) },
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "address", Aliases: []string{"a"}, EnvVars: []string{"SPIKE_NEXUS_API_URLS", "SPIKE_NEXUS_API_URL"}, Usage: "API `ADDRESS` of a peer, https://host:port; several are tried in turn"},
			&cli.StringFlag{Name: "socket", EnvVars: []string{identity.SocketEnv}, Usage: "SPIFFE Workload API `ADDRESS`: decides who you are"},
			&cli.StringFlag{Name: "trust-root", EnvVars: []string{"SPIKE_TRUST_ROOT_NEXUS", "SPIKE_TRUST_ROOT"}, Value: "spike.ist", Usage: "trust `DOMAINS` of Nexus peers"},
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, EnvVars: []string{"SPIKE_FORMAT"}, Value: "table", Usage: "`FORMAT` of data: table, json or yaml"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "`DURATION` that one command may take"},
		},
		Commands: []*cli.Command{
			secretCommand(), policyCommand(), cipherCommand(), statusCommand(), clusterCommand(), bootstrapCommand(), keyCommand(), snapshotCommand(), keeperCommand(), operatorCommand(), auditCommand(), devCommand(), versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("there is no command %q; see spikectl --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	finish(app.Commands)
	return app
}

// finish gives all commands what they have in common: words about a wrong use go
// through Main alone, and a group asks for one of its commands.
func finish(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true
			}
		}
		if len(c.Subcommands) == 0 {
			c.HideHelpCommand = true // "help" may be an argument
			continue
		}
		c.Action = func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("there is no command %q; see %s --help", c.Args().First(), c.Command.HelpName)
			}
			return cli.ShowSubcommandHelp(c)
		}
		finish(c.Subcommands)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	return usage("%w; see %s --help", err, c.Command.HelpName)
}

// connect makes the client of a command, and bounds it in time; the caller runs
// done at the end.
func connect(c *cli.Context) (*client.Client, context.Context, func(), error) {
	cl, ctx, done, err := connectBounded(c)
	if err != nil {
		return nil, nil, nil, err
	}
	heard := noteQuiet(c)
	return cl, ctx, func() { heard(); done() }, nil
}

// noteQuiet says that no peer has answered yet, unless heard is called soon.
func noteQuiet(c *cli.Context) (heard func()) {
	return noteQuietUntil(c, fmt.Sprintf(" until %s are over (--timeout)", c.Duration("timeout")))
}

func noteQuietUntil(c *cli.Context, until string) (heard func()) {
	note := time.AfterFunc(quiet, func() {
		fmt.Fprintf(c.App.ErrWriter, "no answer yet; asking the peers again%s\n", until)
	})
	return func() { note.Stop() }
}

// connectBounded is connect without a word while no peer answers.
func connectBounded(c *cli.Context) (*client.Client, context.Context, func(), error) {
	if c.Duration("timeout") <= 0 {
		return nil, nil, nil, usage("--timeout %s is not a time to wait", c.Duration("timeout"))
	}
	ctx, cancel := context.WithDeadline(c.Context, time.Now().Add(c.Duration("timeout")))
	cl, _, done, err := connectForever(c)
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return cl, ctx, func() { done(); cancel() }, nil
}

// connectForever is connect for a command that runs until it is interrupted.
func connectForever(c *cli.Context) (cl *client.Client, ctx context.Context, done func(), err error) {
	var domains []spiffeid.TrustDomain
	for _, name := range strings.Split(c.String("trust-root"), ",") {
		domain, err := spiffeid.TrustDomainFromString(strings.TrimSpace(name))
		if err != nil {
			return nil, nil, nil, usage("--trust-root %q is not a trust domain", name)
		}
		domains = append(domains, domain)
	}
	addresses := listed(c.StringSlice("address"))
	if len(addresses) == 0 { // the first variable is set, to nothing
		addresses = listed([]string{os.Getenv("SPIKE_NEXUS_API_URL")})
	}
	if len(addresses) == 0 {
		return nil, nil, nil, usage("no peer is named: set SPIKE_NEXUS_API_URLS or --address; for a cluster of 'spikectl dev up': eval \"$(spikectl dev env)\"")
	}
	if err := checkSocket(c.String("socket")); err != nil {
		return nil, nil, nil, err
	}
	source, err := identity.Open(c.Context, identity.Options{Socket: c.String("socket"), Timeout: min(10*time.Second, c.Duration("timeout"))})
	if err != nil {
		return nil, nil, nil, err
	}
	cl, err = client.New(client.Config{Addresses: addresses, TLS: source.Client(func(id spiffeid.ID) error {
		for _, d := range domains {
			if id.MemberOf(d) && (id.Path() == "/spike/nexus" || strings.HasPrefix(id.Path(), "/spike/nexus/")) {
				return nil
			}
		}
		return errNotNexus
	})})
	if err != nil {
		source.Close()
		return nil, nil, nil, local(err)
	}
	return cl, c.Context, func() { cl.Close(); source.Close() }, nil
}

// errNotNexus is of a peer whose certificate is somebody else's.
var errNotNexus = errors.New("it is not a Nexus peer of a trusted domain")

// stranger tells that this side and the peer do not trust each other's certificate.
func stranger(err error) bool {
	var alert tls.AlertError
	var remote *net.OpError
	if e := (*secret.Error)(nil); errors.As(err, &e) && e.Cause != nil && strings.Contains(e.Cause.Error(), "x509svid: ") { // go-spiffe has no type for it
		return true
	}
	return errors.Is(err, errNotNexus) || errors.As(err, &alert) || errors.As(err, &remote) && remote.Op == "remote error" ||
		errors.As(err, new(x509.UnknownAuthorityError))
}

// quiet is how long a command waits without a word: longer than an election
// takes, shorter than people think that it hangs.
const quiet = 4 * time.Second

// listed splits at commas and leaves out what is blank.
func listed(given []string) (list []string) {
	for _, item := range strings.Split(strings.Join(given, ","), ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// checkSocket refuses a socket that nobody serves at once: identity.Open would
// wait for it, as a service that starts before its agent must.
func checkSocket(address string) error {
	if address == "" {
		address = identity.DefaultSocket
	}
	path := strings.TrimPrefix(strings.TrimPrefix(address, "unix:"), "//")
	if !strings.HasPrefix(path, "/") {
		return nil // identity.Open knows what to say
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return fmt.Errorf("%w: nobody serves the socket %s; set SPIFFE_ENDPOINT_SOCKET or --socket", identity.ErrUnavailable, path)
	}
	return conn.Close()
}

// action is a command that talks to the cluster. It dials once it knows that it
// was used rightly: nobody waits for a cluster to hear of a typing error.
type action func(c *cli.Context, dial dialer) error

// dialer makes the client of a command, and the context that bounds it.
type dialer func() (*client.Client, context.Context, error)

// with runs an action and closes what it opened. What the cluster says of the
// thing that the first argument names begins with that name.
func with(do action) cli.ActionFunc { return over(connect, do) }

func over(connect func(*cli.Context) (*client.Client, context.Context, func(), error), do action) cli.ActionFunc {
	return func(c *cli.Context) (err error) {
		if err := checkFormat(c); err != nil {
			return err
		}
		done := func() {}
		defer func() {
			done()
			switch secret.CodeOf(err) {
			case secret.CodeNotFound, secret.CodeConflict, secret.CodeDenied:
				if thing := c.Args().First(); thing != "" && !strings.Contains(err.Error(), thing) {
					err = fmt.Errorf("%s: %w", thing, err)
				}
			}
		}()
		return do(c, func() (*client.Client, context.Context, error) {
			cl, ctx, end, err := connect(c)
			if err == nil {
				done = end
			}
			return cl, ctx, err
		})
	}
}

// arguments checks the number of positional arguments: from least to most, where
// most < 0 means any number.
func arguments(c *cli.Context, least, most int) error {
	n := c.NArg()
	words := strings.TrimSpace(c.Command.HelpName + " " + c.Command.ArgsUsage)
	switch {
	case n < least:
		return usage("too few arguments; write %s", words)
	case most >= 0 && n > most:
		return usage("too many arguments; write %s", words)
	}
	return nil
}

func versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print the version", Action: func(c *cli.Context) error {
		if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
			return err
		}
		return show(c, map[string]string{"version": node.Version}, func(w io.Writer) { fmt.Fprintln(w, node.Version) })
	}}
}

// confirm asks before something that cannot be undone, unless --yes was given.
// Without a terminal to ask on, it refuses.
func confirm(c *cli.Context, question string) error {
	return ask(c, question+" This cannot be undone")
}

// ask is confirm for what can be undone.
func ask(c *cli.Context, question string) error {
	if c.Bool("yes") {
		return nil
	}
	if in, ok := c.App.Reader.(*os.File); ok {
		if info, err := in.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			fmt.Fprintf(c.App.ErrWriter, "%s. Type \"yes\": ", question)
			var answer string
			switch n, _ := fmt.Fscanln(in, &answer); {
			case answer == "yes":
				return nil
			case n > 0:
				return usage("nothing was done")
			}
			fmt.Fprintln(c.App.ErrWriter) // the end of /dev/null, say
		}
	}
	return usage("%s: add --yes to do it", question)
}
