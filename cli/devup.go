package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cli/internal/devcluster"
	"github.com/spike-ha/spike-ha/identity/devca"
)

func upFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "peers", Value: 3, Usage: "`NUMBER` of Nexus peers"},
		&cli.IntFlag{Name: "keepers", Value: 3, Usage: "`NUMBER` of Keepers"},
		&cli.IntFlag{Name: "base-port", Value: devcluster.DefaultBasePort, Usage: "first `PORT`; nexus-I has its API at it + 10·(I-1), keeper-I the next, then the peer link and the metrics; 0 finds free ones"},
		&cli.BoolFlag{Name: "detach", Usage: "return when the cluster serves, and leave it running"},
		&cli.BoolFlag{Name: "demo", Usage: "a guided tour: kill the leader, kill every peer, and see it all come back"},
		&cli.DurationFlag{Name: "wait", Value: 90 * time.Second, Usage: "`DURATION` that the cluster may take until it serves"},
	}
}

// devOptions reads the flags. What was not given is for the directory to say.
func devOptions(c *cli.Context, say func(string, ...any)) (o devcluster.Options, err error) {
	if err := errors.Join(checkFormat(c), arguments(c, 0, 0)); err != nil {
		return o, err
	}
	self, err := os.Executable()
	if err != nil {
		return o, err
	}
	o = devcluster.Options{Dir: c.String("dir"), BasePort: devcluster.KeepPorts, Binaries: filepath.Dir(self), Say: say}
	for _, n := range []struct {
		flag string
		to   *int
	}{{"peers", &o.Peers}, {"keepers", &o.Keepers}} {
		if c.IsSet(n.flag) {
			if *n.to = c.Int(n.flag); *n.to < 1 {
				return o, usage("--%s is at least 1", n.flag)
			}
		}
	}
	if c.IsSet("base-port") {
		o.BasePort = c.Int("base-port")
	}
	return o, nil
}

func devUp(c *cli.Context) error {
	// Events come from many goroutines; each is written whole.
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(c.App.ErrWriter, format+"\n", args...)
	}
	o, err := devOptions(c, say)
	if err != nil {
		return err
	}
	switch {
	case c.Bool("demo") && c.Bool("detach"):
		return usage("--demo stops its cluster at the end: it does not go with --detach")
	case c.Bool("demo"):
		return devDemo(c, o)
	case c.Bool("detach"):
		return devDetach(c, say)
	}
	s, err := devcluster.Open(c.Context, o)
	if err != nil {
		return err
	}
	warnDevelopment(say, o.Dir)
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	status, err := s.BringUp(ctx)
	if err != nil && c.Context.Err() == nil {
		return errors.Join(err, s.Close(nil))
	}
	if err == nil {
		err = show(c, status, func(w io.Writer) { welcome(c, w, status); fmt.Fprintln(w, "\nCtrl-C stops it.") })
		select {
		case <-c.Context.Done():
		case <-s.Down():
		}
	} else {
		err = nil // it was interrupted
	}
	say("\nstopping the peers, then the Keepers … (Ctrl-C again: at once)")
	err = errors.Join(err, s.Close(secondSignal()))
	say("everything is stopped; the data stays in %s", o.Dir)
	return err
}

func warnDevelopment(say func(string, ...any), dir string) {
	say("%s", devca.Warning)
	say(devcluster.Warning, filepath.Join(dir, "recovery"))
	say("")
}

// secondSignal is closed at the next Ctrl-C.
func secondSignal() <-chan struct{} {
	signals, hurry := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-signals; close(hurry) }()
	return hurry
}

// devDetach starts a supervisor of its own session and passes on what it says
// until the cluster serves.
func devDetach(c *cli.Context, say func(string, ...any)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := c.String("dir")
	words, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer words.Close()
	args := []string{"dev", "supervise", "--dir", dir, "--wait", c.Duration("wait").String()}
	for _, name := range []string{"peers", "keepers", "base-port"} {
		if c.IsSet(name) {
			args = append(args, "--"+name, strconv.Itoa(c.Int(name)))
		}
	}
	supervisor := exec.Command(self, args...)
	supervisor.ExtraFiles = []*os.File{theirs} // its descriptor 3
	supervisor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = supervisor.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	stopped := context.AfterFunc(c.Context, func() { supervisor.Process.Signal(syscall.SIGTERM) })
	defer stopped()
	if err := follow(words, say, func() { warnDevelopment(say, dir) }); err != nil {
		supervisor.Wait()
		return err
	}
	if err := supervisor.Process.Release(); err != nil {
		return err
	}
	remote, err := devcluster.Dial(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	status, err := remote.Status(ctx)
	if err != nil {
		return err
	}
	return show(c, status, func(w io.Writer) {
		welcome(c, w, status)
		fmt.Fprintf(w, "\nIt runs in the background: %s dev down%s stops it.\n", invoked(), dirFlag(c))
	})
}

// The words of a supervisor to the program that started it, one a line.
const (
	saysProgress = "progress: "
	saysFailed   = "failed: "
	saysServing  = "serving"
)

// follow passes on what the supervisor says; started is called before the first
// word of progress.
func follow(words io.Reader, say func(string, ...any), started func()) error {
	lines := bufio.NewScanner(words)
	first := sync.OnceFunc(started)
	for lines.Scan() {
		line := lines.Text()
		if line == saysServing {
			return nil
		}
		if what, ok := strings.CutPrefix(line, saysFailed); ok {
			what, err := strconv.Unquote(what)
			return errors.Join(errors.New(what), err)
		}
		first()
		say("%s", strings.TrimPrefix(line, saysProgress))
	}
	return errors.New("the supervisor ended before the cluster served; see logs/supervisor.log in the directory")
}

// devSupervise is the supervisor of "dev up --detach". It writes its log into
// the directory and tells descriptor 3 how it goes until the cluster serves.
func devSupervise(c *cli.Context) error {
	starter := os.NewFile(3, "starter")
	if _, err := starter.Stat(); err != nil {
		return usage("'spikectl dev up --detach' runs this")
	}
	syscall.CloseOnExec(3)
	var mu sync.Mutex
	rising := true
	log := io.Discard
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(log, time.Now().UTC().Format(time.RFC3339)+" "+format+"\n", args...)
		if rising {
			fmt.Fprintf(starter, saysProgress+format+"\n", args...)
		}
	}
	fail := func(err error) error {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(starter, saysFailed+strconv.Quote(err.Error()))
		fmt.Fprintln(log, err)
		return exitStatus(ExitLocal)
	}
	o, err := devOptions(c, say)
	if err != nil {
		return fail(err)
	}
	s, err := devcluster.Open(c.Context, o)
	if err != nil {
		return fail(err)
	}
	// Only now is the directory known to be ours.
	file, err := os.OpenFile(filepath.Join(o.Dir, "logs", "supervisor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fail(errors.Join(err, s.Close(nil)))
	}
	defer file.Close()
	mu.Lock()
	log = file
	mu.Unlock()
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	if _, err := s.BringUp(ctx); err != nil {
		return fail(errors.Join(err, s.Close(nil)))
	}
	mu.Lock()
	rising = false
	mu.Unlock()
	say("the cluster serves")
	mu.Lock()
	fmt.Fprintln(starter, saysServing)
	starter.Close()
	mu.Unlock()
	select {
	case <-c.Context.Done():
	case <-s.Down():
	}
	say("stopping")
	err = s.Close(secondSignal())
	say("stopped")
	return err
}

// dirFlag repeats --dir in lines to copy, where it was given.
func dirFlag(c *cli.Context) string {
	if !c.IsSet("dir") {
		return ""
	}
	return " --dir " + shellWord(c.String("dir"))
}

// shellWord quotes s only where a shell would read it differently.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-+:,@%") == "" && s != "" {
		return s
	}
	return shellQuote(s)
}

// welcome shows what runs and what to do with it.
func welcome(c *cli.Context, w io.Writer, status client.Status) {
	printStatus(w, status)
	self, dir := shellWord(invoked()), dirFlag(c)
	fmt.Fprintf(w, `
Try this, in another shell:

  eval "$(%[1]s dev env%[2]s)"
  %[1]s secret put tenants/acme/db user=app password=s3cr3t
  %[1]s secret get tenants/acme/db password
  %[1]s policy create --name acme --spiffeid-pattern exact:spiffe://spike.ist/workload/acme \
      --path-pattern prefix:tenants/acme/ --permissions read,list
  SPIFFE_ENDPOINT_SOCKET=$(%[1]s dev identity add workload/acme%[2]s) %[1]s secret get tenants/acme/db
  %[1]s dev kill %[3]s%[2]s && %[1]s status && %[1]s dev start %[3]s%[2]s
`, self, dir, status.Leader)
}
