package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func policyParts() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the policy"},
		&cli.StringFlag{Name: "path-pattern", Usage: "`PATTERN` of paths: exact:TEXT, prefix:TEXT, glob:TEXT or regexp:TEXT"},
		&cli.StringFlag{Name: "spiffeid-pattern", Usage: "`PATTERN` of SPIFFE ids, written likewise"},
		&cli.StringFlag{Name: "permissions", Usage: "`LIST` with commas between: read, write, list, execute, super"},
	}
}

// patternHelp explains patterns; each matches whole names.
const patternHelp = `Patterns match whole names, never a part:
  exact:tenants/acme/db     this name
  prefix:tenants/acme       this name, and all below it (not tenants/acme2)
  glob:tenants/*/db         * stands for anything without a slash, ** for anything
  regexp:tenants/[a-z]+/db  a Go regular expression; ^…$ may be written alone`

func policyCommand() *cli.Command {
	return &cli.Command{Name: "policy", Usage: "say who may do what", Subcommands: []*cli.Command{
		{Name: "create", Usage: "create a policy; it must not exist", Description: patternHelp, Flags: policyParts(), Action: with(createPolicy)},
		{Name: "apply", Usage: "create or replace a policy", Description: patternHelp + "\n\nA file has name, spiffeidPattern, pathPattern and permissions, or is what 'policy get --format yaml' prints.",
			Flags:  append([]cli.Flag{&cli.StringFlag{Name: "file", Usage: "YAML `FILE` with the policy; - is standard input"}}, policyParts()...),
			Action: with(applyPolicy)},
		{Name: "get", Usage: "show a policy", ArgsUsage: "NAME", Action: with(getPolicy)},
		{Name: "list", Usage: "list all policies", Action: with(listPolicies)},
		{Name: "delete", Usage: "delete a policy: what it granted is denied from now on", ArgsUsage: "NAME",
			Flags: []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}}, Action: with(deletePolicy)},
	}}
}

// parsePattern reads KIND:TEXT. SPIKE's untyped patterns are regular
// expressions and begin with ^.
func parsePattern(flag, s string) (secret.Pattern, error) {
	kind, text, ok := strings.Cut(s, ":")
	switch k := secret.MatchKind(kind); {
	case s == "":
		return secret.Pattern{}, usage("--%s is missing", flag)
	case ok && (k == secret.Exact || k == secret.Prefix || k == secret.Glob || k == secret.Regexp):
		return secret.Pattern{Kind: k, Text: text}, nil
	case strings.HasPrefix(s, "^") && strings.HasSuffix(s, "$"):
		return secret.Pattern{Kind: secret.Regexp, Text: s}, nil
	}
	return secret.Pattern{}, usage("--%s is written exact:TEXT, prefix:TEXT, glob:TEXT, regexp:TEXT or ^EXPRESSION$", flag)
}

func policyFromFlags(c *cli.Context) (client.Policy, error) {
	if c.String("name") == "" {
		return client.Policy{}, usage("--name is missing")
	}
	id, err := parsePattern("spiffeid-pattern", c.String("spiffeid-pattern"))
	if err != nil {
		return client.Policy{}, err
	}
	path, err := parsePattern("path-pattern", c.String("path-pattern"))
	if err != nil {
		return client.Policy{}, err
	}
	if c.String("permissions") == "" {
		return client.Policy{}, usage("--permissions is missing")
	}
	return client.Policy{Name: c.String("name"), SPIFFEID: id, Path: path, Permissions: listed([]string{c.String("permissions")})}, nil
}

func createPolicy(c *cli.Context, dial dialer) error {
	p, err := policyFromFlags(c)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	switch _, err := cl.GetPolicy(ctx, p.Name); {
	case err == nil:
		return &secret.Error{Code: secret.CodeConflict, Message: fmt.Sprintf("the policy %q exists; 'spikectl policy apply' replaces it", p.Name)}
	case secret.CodeOf(err) != secret.CodeNotFound:
		return err
	}
	return putPolicy(c, ctx, cl, p)
}

// policyFile is a policy as people write it, SPIKE's files included, or as "policy
// get" prints it.
type policyFile struct {
	client.Policy   `yaml:",inline"`
	SPIFFEIDPattern string `yaml:"spiffeidPattern"`
	PathPattern     string `yaml:"pathPattern"`
	Created         string `yaml:"createdTime"` // of the printed form, and ignored
	Updated         string `yaml:"updatedTime"`
}

func applyPolicy(c *cli.Context, dial dialer) error {
	policyOf := policyFromFlags
	if c.IsSet("file") {
		policyOf = policyFromFile
	}
	p, err := policyOf(c)
	if err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	return putPolicy(c, ctx, cl, p)
}

func policyFromFile(c *cli.Context) (p client.Policy, err error) {
	for _, f := range policyParts() {
		if name := f.Names()[0]; c.IsSet(name) {
			return p, usage("--%s does not go with --file: the file says it", name)
		}
	}
	in := c.App.Reader
	if name := c.String("file"); name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return p, err
		}
		defer file.Close()
		in = file
	}
	var f policyFile
	decoder := yaml.NewDecoder(io.LimitReader(in, 64<<10))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil {
		return p, usage("the policy file is not understood: %s", strings.ReplaceAll(err.Error(), " in type cli.policyFile", ""))
	}
	p = f.Policy
	if p.SPIFFEID == (secret.Pattern{}) {
		if p.SPIFFEID, err = parsePattern("spiffeid-pattern", f.SPIFFEIDPattern); err != nil {
			return p, err
		}
	}
	if p.Path == (secret.Pattern{}) {
		p.Path, err = parsePattern("path-pattern", f.PathPattern)
	}
	return p, err
}

func putPolicy(c *cli.Context, ctx context.Context, cl *client.Client, p client.Policy) error {
	answer, err := cl.PutPolicy(ctx, p)
	if err != nil {
		return err
	}
	return show(c, answer, func(io.Writer) { fmt.Fprintf(c.App.ErrWriter, "policy %s is in force\n", p.Name) })
}

func getPolicy(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	p, err := cl.GetPolicy(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return show(c, p, func(w io.Writer) {
		table(w, []string{"name:", p.Name}, []string{"SPIFFE ids:", pattern(p.SPIFFEID)}, []string{"paths:", pattern(p.Path)},
			[]string{"permissions:", strings.Join(p.Permissions, ",")}, []string{"created:", shortTime(*p.Created)}, []string{"updated:", shortTime(*p.Updated)})
	})
}

func listPolicies(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	list, err := cl.ListPolicies(ctx)
	if err != nil {
		return err
	}
	return show(c, client.PoliciesAnswer{Policies: list}, func(w io.Writer) {
		rows := [][]string{{"NAME", "SPIFFE IDS", "PATHS", "PERMISSIONS"}}
		for _, p := range list {
			rows = append(rows, []string{p.Name, pattern(p.SPIFFEID), pattern(p.Path), strings.Join(p.Permissions, ",")})
		}
		table(w, rows...)
	})
}

func deletePolicy(c *cli.Context, dial dialer) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	if err := confirm(c, fmt.Sprintf("Delete the policy %s?", c.Args().First())); err != nil {
		return err
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	answer, err := cl.DeletePolicy(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return show(c, answer, func(io.Writer) { fmt.Fprintf(c.App.ErrWriter, "policy %s is deleted\n", c.Args().First()) })
}

func pattern(p secret.Pattern) string { return string(p.Kind) + ":" + p.Text }
