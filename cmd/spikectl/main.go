// Command spikectl runs and uses a SPIKE HA secrets cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spike-ha/spike-ha/cli"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	cancel()
	os.Exit(status)
}
