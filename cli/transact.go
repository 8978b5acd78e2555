package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

func transactCommand() *cli.Command {
	return &cli.Command{Name: "transact", Usage: "put, delete, destroy and purge several secrets at once, or none of them", ArgsUsage: "FILE.json|-",
		Description: `The file is what POST /v1/secrets/transact takes; "-" reads standard input:

{"operations": [
  {"op": "put", "path": "app/db", "values": {"password": "…"}, "expectedVersion": 3},
  {"op": "delete", "path": "app/old", "versions": [1, 2]},
  {"op": "destroy", "path": "app/leaked", "versions": [4]},
  {"op": "purge", "path": "app/gone"}
]}

At most 64 operations on as many secrets, with at most 1 MiB of values. "expectedVersion"
is optional: the current version that the secret must have (0: none).`,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask before destroying or purging"}},
		Action: with(transact)}
}

func transact(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	request, err := readTransaction(c.Args().First(), c.App.Reader)
	if err != nil {
		return err
	}
	for _, o := range request.Operations {
		if o.Op == "destroy" || o.Op == "purge" {
			if c.Args().First() == "-" && !c.Bool("yes") { // there is nobody left to ask
				return usage("The transaction destroys or purges. This cannot be undone: add --yes to do it")
			}
			if err := confirm(c, fmt.Sprintf("The transaction would %s %s, among others.", o.Op, o.Path)); err != nil {
				return err
			}
			break
		}
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.Transact(ctx, request.Operations...)
	if err != nil {
		return err
	}
	return show(c, answer, func(io.Writer) {
		for _, o := range answer.Operations {
			switch {
			case o.Op == "put":
				fmt.Fprintf(c.App.ErrWriter, "written: %s, version %d\n", o.Path, o.Version)
			case o.Op == "purge":
				fmt.Fprintf(c.App.ErrWriter, "purged: %s\n", o.Path)
			case len(o.Versions) == 0:
				fmt.Fprintf(c.App.ErrWriter, "nothing to %s: %s\n", o.Op, o.Path)
			default:
				fmt.Fprintf(c.App.ErrWriter, "%s: %s, version %s\n", map[string]string{"delete": "deleted", "destroy": "destroyed"}[o.Op], o.Path, joinVersions(o.Versions))
			}
		}
	})
}

// readTransaction reads the operations. Its errors never repeat what was read.
func readTransaction(name string, stdin io.Reader) (request client.TransactRequest, err error) {
	in, what := stdin, "standard input"
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return request, usage("%w", err)
		}
		defer file.Close()
		in, what = file, name
	}
	text, err := readBounded(in)
	if err != nil {
		return request, usage("%s: %w", what, err)
	}
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return request, usage("%s is not valid JSON, near byte %d", what, syntax.Offset)
		}
		return request, usage("%s does not have the form of a transaction; see spikectl secret transact --help", what)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return request, usage("something follows the JSON object in %s", what)
	}
	if len(request.Operations) == 0 {
		return request, usage("%s has no operations", what)
	}
	return request, nil
}
