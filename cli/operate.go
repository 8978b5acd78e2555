package cli

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

func bootstrapCommand() *cli.Command {
	return &cli.Command{Name: "bootstrap", Usage: "give a new cluster its root key and the Keepers their shares (role bootstrap or superuser)",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", EnvVars: []string{"SPIKE_SHAMIR_SHARES", "SPIKE_NEXUS_SHAMIR_SHARES"}, DefaultText: "that of the Keepers", Usage: "`NUMBER` of shares"},
			&cli.IntFlag{Name: "threshold", EnvVars: []string{"SPIKE_SHAMIR_THRESHOLD", "SPIKE_NEXUS_SHAMIR_THRESHOLD"}, DefaultText: "more than half", Usage: "`NUMBER` of shares needed to unseal"},
			&cli.BoolFlag{Name: "allow-single-share", Usage: "permit a threshold of 1, so that each Keeper holds the whole root key"},
		},
		Action: with(func(c *cli.Context, dial dialer) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			cl, ctx, err := dial()
			if err != nil {
				return err
			}
			if err := cl.Init(ctx, client.InitRequest{Shares: c.Int("shares"), Threshold: c.Int("threshold"), AllowSingleShare: c.Bool("allow-single-share")}); err != nil {
				return needsRole(err, "bootstrap")
			}
			return show(c, map[string]bool{"initialised": true}, func(io.Writer) {
				fmt.Fprintln(c.App.ErrWriter, "the cluster has its root key; the Keepers hold the shares. Keep recovery shares safe: spikectl operator recover")
			})
		})}
}
