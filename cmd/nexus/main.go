// Command nexus runs one peer of a SPIKE HA secrets cluster. Its settings are
// described at node.Config; nexus --help lists them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spike-ha/spike-ha/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := node.App(os.Stderr).RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "nexus:", err)
		stop()
		os.Exit(1)
	}
}
