package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/cli/internal/devcluster"
)

func devDemo(c *cli.Context, o devcluster.Options) error { return usage("not yet") }
