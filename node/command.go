package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/seal"
)

// stopWithin bounds a graceful stop, once the peer is drained.
const stopWithin = 15 * time.Second

// App is the nexus program: settings to Config, then Run until ctx ends.
func App(stderr io.Writer) *cli.App {
	return &cli.App{
		Name:    "nexus",
		Usage:   "one peer of a SPIKE HA secrets cluster",
		Version: Version,
		Description: fmt.Sprintf("Exit statuses: 0 stopped as asked; %d wrong settings, or it cannot go on (the last line says why);\n"+
			"%d its data is damaged, another's, or of a newer version: starting it again does not help;\n"+
			"%d start it again: Raft made no progress (after a minute of running it does that itself), or the disk hung.", ExitFailed, ExitData, ExitRestart),
		HideHelpCommand: true,
		Flags:           Flags(),
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // main decides
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("unexpected argument %q; every setting is a flag", c.Args().First())
			}
			cfg, err := FromCLI(c)
			if err != nil {
				return err
			}
			return Run(c.Context, cfg, stderr)
		},
	}
}

// Run runs a peer until ctx ends, which is success, or until it cannot go on.
func Run(ctx context.Context, cfg Config, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return fmt.Errorf("log level %q is not one of debug, info, warn, error", cfg.LogLevel)
	}
	if os.Getenv("GOGC") == "" {
		// The state lives on the heap for as long as the process: collecting at half
		// as much garbage saves a quarter of the memory and costs a few percent.
		debug.SetGCPercent(50)
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: durationsAsText}))
	if err := seal.ProtectProcess(); err != nil {
		log.Warn("keys in memory are less protected than they could be", "error", err)
	}
	n, err := Start(ctx, cfg, log)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-n.Done():
		err = fmt.Errorf("this peer cannot go on: %w", n.Err())
	}
	if err == nil {
		n.Retire(context.WithoutCancel(ctx))
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop(stop) }()
	select {
	case stopErr := <-stopped:
		return errors.Join(err, stopErr)
	case <-time.After(2 * stopWithin): // what waits for a disk heeds no context
		return errors.Join(err, errors.New("this peer did not stop in time and is abandoned; does its disk hang?"))
	}
}

// durationsAsText writes "5s" where JSON would have nanoseconds.
func durationsAsText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
