// Command nexus runs one Nexus peer.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/node"
)

func main() {
	app := &cli.App{
		Name:            "nexus",
		Usage:           "one peer of a SPIKE HA secrets cluster",
		Version:         node.Version,
		HideHelpCommand: true,
		Flags:           node.Flags(),
		Action:          run,
	}
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "nexus:", err)
		os.Exit(1)
	}
}

// stopWithin bounds a graceful stop.
const stopWithin = 15 * time.Second

func run(c *cli.Context) error {
	cfg, err := node.FromCLI(c)
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return fmt.Errorf("log level %q is not one of debug, info, warn, error", cfg.LogLevel)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	n, err := node.Start(ctx, cfg, slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-n.Done():
		err = fmt.Errorf("this peer cannot go on: %w", n.Err())
	}
	stop, cancelStop := context.WithTimeout(context.Background(), stopWithin)
	defer cancelStop()
	return errors.Join(err, n.Stop(stop))
}
