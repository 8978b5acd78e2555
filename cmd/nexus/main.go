// Command nexus runs one peer of a SPIKE HA secrets cluster. Its settings are
// described at node.Config; nexus --help lists them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spike-ha/spike-ha/node"
)

func main() {
	started := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := node.App(os.Stderr).RunContext(ctx, os.Args)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "nexus:", err)
	if ctx.Err() == nil && node.RestartsItself(err, time.Since(started)) {
		fmt.Fprintln(os.Stderr, "nexus: starting itself again")
		fmt.Fprintln(os.Stderr, "nexus: cannot start itself again:", node.Restart())
	}
	stop()
	os.Exit(node.ExitStatus(err))
}
