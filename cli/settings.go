package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

func clusterCommand() *cli.Command {
	return &cli.Command{Name: "cluster", Usage: "the cluster as a whole: its members and settings (changes take the role superuser)", Subcommands: append(append(memberCommands(), offlineCommands()...), []*cli.Command{
		{Name: "settings", Usage: "what holds for all peers", Subcommands: []*cli.Command{
			{Name: "get", Usage: "show the settings", ArgsUsage: "", Action: with(getSettings)},
			{Name: "set", Usage: "change settings, as superuser", ArgsUsage: "NAME=VALUE...",
				Description: `The settings:

max_versions       versions kept of secrets that are created from now on, 1 to 1000
state_limit_bytes  over which writes that make the state grow are refused; every peer needs the memory
wire_recovery      on or off: recovery shares in the clear on the SPIKE wire
index_reads        on or off: reads that are at least as new as a token instead of linearizable`,
				Action: with(setSettings)},
		}},
	}...)}
}

func getSettings(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	settings, err := cl.Settings(ctx)
	if err != nil {
		return needsRole(err, "operator")
	}
	return show(c, settings, func(w io.Writer) { printSettings(w, settings) })
}

func printSettings(w io.Writer, s client.Settings) {
	table(w, []string{"max_versions", strconv.FormatUint(uint64(s.MaxVersions), 10)},
		[]string{"state_limit_bytes", strconv.FormatUint(s.StateLimitBytes, 10)},
		[]string{"wire_recovery", onOff(s.WireRecovery)}, []string{"index_reads", onOff(s.IndexReads)})
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func setSettings(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	request, err := parseSettings(c.Args().Slice())
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	settings, err := cl.PutSettings(ctx, request)
	if err != nil {
		return needsRole(err, "superuser")
	}
	return show(c, settings, func(io.Writer) { fmt.Fprintln(c.App.ErrWriter, "changed:", strings.Join(c.Args().Slice(), ", ")) })
}

func parseSettings(pairs []string) (q client.SettingsRequest, err error) {
	given := map[string]bool{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return q, usage("%q is not a setting written NAME=VALUE", pair)
		}
		if given[name] {
			return q, usage("the setting %s is given twice", name)
		}
		given[name] = true
		switch name {
		case "max_versions":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == 0 {
				return q, usage("max_versions is a number from 1 to 1000")
			}
			versions := uint32(n)
			q.MaxVersions = &versions
		case "state_limit_bytes":
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil {
				return q, usage("state_limit_bytes is a number of bytes")
			}
			q.StateLimitBytes = &n
		case "wire_recovery", "index_reads":
			if value != "on" && value != "off" {
				return q, usage("%s is on or off", name)
			}
			on := value == "on"
			if name == "index_reads" {
				q.IndexReads = &on
			} else {
				q.WireRecovery = &on
			}
		default:
			return q, usage("there is no setting %q; they are max_versions, state_limit_bytes, wire_recovery and index_reads", name)
		}
	}
	return q, nil
}
