package cli

import "github.com/urfave/cli/v2"

func devCommand() *cli.Command {
	return &cli.Command{Name: "dev", Usage: "run a whole cluster on this machine, for development"}
}
