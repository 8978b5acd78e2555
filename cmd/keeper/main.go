// Command keeper holds one share of a SPIKE HA root key in memory and gives it to attested Nexus peers.
// Its settings are described at keeper.Config; keeper --help lists them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spike-ha/spike-ha/seal/keeper"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := keeper.App(os.Stderr).RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
		stop()
		os.Exit(1)
	}
}
