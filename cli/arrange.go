package cli

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange lets flags stand anywhere: "secret get PATH --version 2" and
// "status --format json" are how people write, while the library wants the
// flags of each command right behind its name. A flag belongs to the innermost
// command that knows it. Everything behind "--" is an argument.
func arrange(app *cli.App, args []string) []string {
	if len(args) > 0 && args[len(args)-1] == "--generate-bash-completion" {
		return args // the library looks for it at the end
	}
	type level struct {
		name  string
		flags []cli.Flag
		given []string
	}
	levels := []level{{flags: append([]cli.Flag{cli.HelpFlag}, app.Flags...)}}
	commands := app.Commands
	var arguments []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			arguments = append(arguments, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			if next := find(commands, arg); next != nil && len(arguments) == 0 {
				levels = append(levels, level{name: arg, flags: append([]cli.Flag{cli.HelpFlag}, next.Flags...)})
				commands = next.Subcommands
			} else {
				arguments = append(arguments, arg)
			}
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		at := len(levels) - 1
		var flag cli.Flag
		for k := at; k >= 0 && flag == nil; k-- {
			if flag = named(levels[k].flags, name); flag != nil {
				at = k
			}
		}
		levels[at].given = append(levels[at].given, arg) // an unknown one is refused there
		if _, boolean := flag.(*cli.BoolFlag); flag != nil && !boolean && !hasValue && i+1 < len(args) {
			i++
			levels[at].given = append(levels[at].given, args[i])
		}
	}
	var out []string
	for k, l := range levels {
		if k > 0 {
			out = append(out, l.name)
		}
		out = append(out, l.given...)
	}
	if len(arguments) > 0 {
		out = append(append(out, "--"), arguments...)
	}
	return out
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func named(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}
