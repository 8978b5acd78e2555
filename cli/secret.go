package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func secretCommand() *cli.Command {
	versions := func(usage string) cli.Flag {
		return &cli.StringFlag{Name: "versions", Aliases: []string{"v"}, Usage: "`NUMBERS` of versions, with commas between; " + usage}
	}
	yes := &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
	return &cli.Command{Name: "secret", Usage: "read and write secrets", Subcommands: []*cli.Command{
		{Name: "put", Usage: "write the next version of a secret", ArgsUsage: "PATH KEY=VALUE|KEY=@FILE|KEY=-...",
			Description: `KEY=VALUE  the value itself; others on this machine can see a command line
KEY=@FILE  the contents of a file, byte for byte; text only
KEY=-      standard input, without the newline at its end

The new version holds these keys and no others. A value that begins with @, or
is -, comes from a file or from standard input.`,
			Flags:  []cli.Flag{&cli.Uint64Flag{Name: "cas", DefaultText: "whatever it is", Usage: "only if this is the current `VERSION` (0: there is none)"}},
			Action: with(putSecret)},
		{Name: "get", Usage: "read a secret, or one key of it", ArgsUsage: "PATH [KEY]",
			Description: "One key's value is printed with a newline at its end, unless it has one.",
			Flags:       []cli.Flag{&cli.Uint64Flag{Name: "version", Aliases: []string{"v"}, DefaultText: "the current one", Usage: "`NUMBER` of the version"}},
			Action:      with(getSecret)},
		{Name: "list", Usage: "list paths", ArgsUsage: "[PREFIX]", Action: with(listSecrets)},
		{Name: "metadata", Usage: "show the versions of a secret", ArgsUsage: "PATH", Action: with(secretMetadata)},
		{Name: "delete", Usage: "delete versions so that they can be undeleted", ArgsUsage: "PATH", Flags: []cli.Flag{versions("the current one by default")},
			Description: "The newest version that is left becomes the current one, and is what 'get' reads:\nto hide a secret, delete all its versions; to be rid of it, purge it.",
			Action:      with(changeVersions("deleted", (*client.Client).Delete))},
		{Name: "undelete", Usage: "make deleted versions readable again", ArgsUsage: "PATH", Flags: []cli.Flag{versions("the newest one by default, if all are deleted")},
			Action: with(changeVersions("undeleted", (*client.Client).Undelete))},
		{Name: "destroy", Usage: "remove the contents of versions for good", ArgsUsage: "PATH", Flags: []cli.Flag{versions("0 is the current one"), yes},
			Action: with(destroyVersions)},
		{Name: "purge", Usage: "remove a secret with all its versions and metadata", ArgsUsage: "PATH", Flags: []cli.Flag{yes},
			Action: with(purgeSecret)},
		transactCommand(),
		watchCommand(),
	}}
}

func putSecret(c *cli.Context, dial dialer) error {
	if err := arguments(c, 2, -1); err != nil {
		return err
	}
	values, err := readValues(c.Args().Tail(), c.App.Reader)
	if err != nil {
		return err
	}
	var expect *secret.Version
	if c.IsSet("cas") {
		v := secret.Version(c.Uint64("cas"))
		expect = &v
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.Put(ctx, c.Args().First(), values, expect)
	if err != nil {
		return err
	}
	return show(c, answer, func(io.Writer) {
		fmt.Fprintf(c.App.ErrWriter, "written: %s, version %d\n", c.Args().First(), answer.Version)
	})
}

// maxValueFile bounds what is read of a file or of standard input.
const maxValueFile = 2 << 20

func readValues(pairs []string, stdin io.Reader) (map[string]string, error) {
	values := map[string]string{}
	stdinUsed := false
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			// The argument itself may be a secret typed in the wrong place.
			return nil, usage("each value is written KEY=VALUE, KEY=@FILE or KEY=- (standard input)")
		}
		if _, twice := values[key]; twice {
			return nil, usage("the key %q is given twice", key)
		}
		switch {
		case value == "-":
			if stdinUsed {
				return nil, usage("only one key can be read from standard input")
			}
			stdinUsed = true
			read, err := readBounded(stdin)
			if err != nil {
				return nil, usage("standard input: %w", err)
			}
			value = strings.TrimSuffix(read, "\n")
		case strings.HasPrefix(value, "@"):
			file, err := os.Open(value[1:])
			if err != nil {
				return nil, usage("value of %q: %w", key, err)
			}
			read, err := readBounded(file)
			file.Close()
			if err != nil {
				return nil, usage("value of %q: %w", key, err)
			}
			value = read
		}
		values[key] = value
	}
	return values, nil
}

func readBounded(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxValueFile+1))
	if err == nil && len(b) > maxValueFile {
		err = fmt.Errorf("more than %s", bytesText(maxValueFile))
	}
	return string(b), err
}

func getSecret(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 2); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	values, answer, err := cl.Get(ctx, c.Args().First(), secret.Version(c.Uint64("version")))
	if err != nil {
		return err
	}
	if c.NArg() == 2 {
		value, ok := values[c.Args().Get(1)]
		if !ok {
			return secret.Errorf(secret.CodeNotFound, "version %d of the secret has no key %q", answer.Version, c.Args().Get(1))
		}
		return show(c, value, func(w io.Writer) { fmt.Fprintln(w, strings.TrimSuffix(value, "\n")) })
	}
	return show(c, answer, func(w io.Writer) {
		keys := make([]string, 0, len(values))
		for key := range values {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			fmt.Fprintf(w, "%s: %s\n", key, values[key])
		}
	})
}

func listSecrets(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.List(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return show(c, answer, func(w io.Writer) {
		for _, key := range answer.Keys {
			fmt.Fprintln(w, key)
		}
		if len(answer.Keys) == 0 {
			fmt.Fprintln(c.App.ErrWriter, "no secrets")
		}
	})
}

func secretMetadata(c *cli.Context, dial dialer) error {
	// SPIKE's own command is "secret metadata get PATH".
	path := c.Args().First()
	if c.NArg() == 2 && path == "get" {
		path = c.Args().Get(1)
	} else if err := arguments(c, 1, 1); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.Metadata(ctx, path)
	if err != nil {
		return err
	}
	return show(c, answer, func(w io.Writer) {
		fmt.Fprintf(w, "current version: %d\noldest version:  %d\nkept versions:   %d\ncreated:         %s\nupdated:         %s\n\n",
			answer.CurrentVersion, answer.OldestVersion, answer.MaxVersions, shortTime(answer.Created), shortTime(answer.Updated))
		rows := [][]string{{"VERSION", "CREATED", "STATE"}}
		for _, v := range answer.Versions {
			state := "live"
			if v.Destroyed {
				state = "destroyed"
			} else if v.Deleted != nil {
				state = "deleted " + shortTime(*v.Deleted)
			}
			rows = append(rows, []string{strconv.Itoa(int(v.Version)), shortTime(v.Created), state})
		}
		table(w, rows...)
	})
}

func changeVersions(done string, change func(*client.Client, context.Context, string, ...secret.Version) (client.ChangeAnswer, error)) action {
	return func(c *cli.Context, dial dialer) error {
		if err := arguments(c, 1, 1); err != nil {
			return err
		}
		versions, err := parseVersions(c.String("versions"))
		if err != nil {
			return err
		}
		cl, ctx, err := dial()
		if err != nil {
			return err
		}
		answer, err := change(cl, ctx, c.Args().First(), versions...)
		if secret.CodeOf(err) == secret.CodeNotFound && done == "undeleted" {
			return hinted{err, "'spikectl secret metadata' shows which versions are deleted; name them with --versions"}
		}
		if err != nil {
			return err
		}
		return show(c, answer, func(io.Writer) {
			if len(answer.Versions) == 0 {
				fmt.Fprintf(c.App.ErrWriter, "nothing to do: none of these versions of %s could be %s\n", c.Args().First(), done)
				return
			}
			fmt.Fprintf(c.App.ErrWriter, "%s: %s, version %s\n", done, c.Args().First(), joinVersions(answer.Versions))
		})
	}
}

func destroyVersions(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	if _, err := parseVersions(c.String("versions")); err != nil {
		return err
	}
	if c.String("versions") == "" {
		return usage("name the versions to destroy with --versions")
	}
	if err := confirm(c, fmt.Sprintf("Destroy versions %s of %s?", c.String("versions"), c.Args().First())); err != nil {
		return err
	}
	return changeVersions("destroyed", (*client.Client).Destroy)(c, dial)
}

func purgeSecret(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	if err := confirm(c, fmt.Sprintf("Remove %s with all its versions?", c.Args().First())); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.Purge(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return show(c, answer, func(io.Writer) { fmt.Fprintf(c.App.ErrWriter, "purged: %s\n", c.Args().First()) })
}

func parseVersions(list string) ([]secret.Version, error) {
	var versions []secret.Version
	if list == "" {
		return versions, nil
	}
	for _, item := range strings.Split(list, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(item), 10, 62)
		if err != nil {
			return nil, usage("%q is not a version number", item)
		}
		versions = append(versions, secret.Version(n))
	}
	return versions, nil
}

func joinVersions(versions []secret.Version) string {
	words := make([]string, len(versions))
	for i, v := range versions {
		words[i] = strconv.FormatUint(uint64(v), 10)
	}
	return strings.Join(words, ", ")
}
