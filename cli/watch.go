package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func watchCommand() *cli.Command {
	return &cli.Command{Name: "watch", Usage: "print changes of secrets as they happen, without their values", ArgsUsage: "[PATH|PREFIX/]",
		Description: `PATH watches one secret, PREFIX/ all below it, nothing all there are. It runs until it
is interrupted, over peers that come and go. With --format json each change is one
line; "index" is what --after takes to go on after it. Changes with one index
took effect at once: go on after the last of them.

The peers keep the newest changes only, since they got their keys. When those after
--after are not kept any more, the exit status is 3: read anew what you need, then
watch from the index of that answer.`,
		Flags:  []cli.Flag{&cli.Uint64Flag{Name: "after", DefaultText: "from now on", Usage: "only what happened after this `INDEX`, which an answer of the cluster had; 0: since the beginning"}},
		Action: over(connectForever, watchSecrets)}
}

func watchSecrets(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	options := client.WatchOptions{Path: c.Args().First()}
	if c.IsSet("after") {
		// To the peers 0 is "from now on". No change has index 1: the log begins with
		// the cluster's first configuration.
		options.After = max(c.Uint64("after"), 1)
	}
	if options.Path == "" || strings.HasSuffix(options.Path, "/") {
		options.Path, options.Prefix = "", options.Path
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	var w *client.Watcher
	for {
		var events []client.Event
		if w == nil {
			heard := noteQuietUntil(c, "")
			w, err = cl.Watch(ctx, options)
			if heard(); err == nil {
				fmt.Fprintf(c.App.ErrWriter, "watching from index %d on\n", w.Index())
			}
		} else if events, err = w.Next(ctx); err == nil {
			err = printEvents(c, events)
		}
		switch {
		case err == nil:
		case c.Context.Err() != nil: // interrupted, which is how it ends
			return nil
		case secret.CodeOf(err) == secret.CodeUnavailable || secret.CodeOf(err) == secret.CodeSealed || secret.CodeOf(err) == secret.CodeOverloaded:
			fmt.Fprintf(c.App.ErrWriter, "waiting for the cluster: %v\n", err)
		default:
			return err
		}
	}
}

// printEvents prints a stream: one document for each change.
func printEvents(c *cli.Context, events []client.Event) error {
	for _, e := range events {
		switch c.String("format") {
		case "json":
			encoder := json.NewEncoder(c.App.Writer)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(e); err != nil {
				return local(err)
			}
		case "yaml":
			if _, err := io.WriteString(c.App.Writer, "---\n"); err != nil {
				return local(err)
			}
			if err := printYAML(c.App.Writer, e); err != nil {
				return local(err)
			}
		default:
			line := fmt.Sprintf("%d  %s  %-9s  %s", e.Index, shortTime(e.Time), e.Kind, e.Path)
			if len(e.Versions) > 0 {
				line += "  version " + joinVersions(e.Versions)
			}
			if _, err := fmt.Fprintln(c.App.Writer, line); err != nil {
				return local(err)
			}
		}
	}
	return nil
}
