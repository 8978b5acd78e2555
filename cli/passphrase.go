package cli

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func passphraseFlag(what string) cli.Flag {
	return &cli.StringFlag{Name: "passphrase-file", Usage: "`FILE` with the passphrase, \"-\" for standard input: " + what}
}

// maxPassphrase bounds one line of passphrases, in bytes.
const maxPassphrase = 4096

// passphrases come from a file, line by line, or are asked for at the terminal,
// which does not show them.
type passphrases struct {
	c     *cli.Context
	lines *bufio.Scanner // nil: the terminal, until the file is opened
}

func newPassphrases(c *cli.Context) *passphrases { return &passphrases{c: c} }

// next is the next passphrase; a new one is asked for twice.
func (p *passphrases) next(question string, isNew bool) (string, error) {
	name := p.c.String("passphrase-file")
	if name == "" {
		return p.ask(question, isNew)
	}
	if p.lines == nil {
		source := p.c.App.Reader
		if name != "-" {
			file, err := os.Open(name)
			if err != nil {
				return "", err
			}
			defer file.Close()
			source = file
		}
		all, err := io.ReadAll(io.LimitReader(source, 256*maxPassphrase))
		if err != nil {
			return "", err
		}
		p.lines = bufio.NewScanner(bytes.NewReader(all))
	}
	if !p.lines.Scan() {
		return "", usage("%s: no passphrase is left in the file", question)
	}
	return p.lines.Text(), nil
}

func (p *passphrases) ask(question string, isNew bool) (string, error) {
	in, ok := p.c.App.Reader.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", usage("%s: there is no terminal to ask at; use --passphrase-file", question)
	}
	read := func(question string) (string, error) {
		fmt.Fprintf(p.c.App.ErrWriter, "%s: ", question)
		answer, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(p.c.App.ErrWriter)
		defer clear(answer)
		return string(answer), err
	}
	first, err := read(question)
	if err != nil || !isNew {
		return first, err
	}
	if second, err := read("Once more"); err != nil || second != first {
		return "", usage("%s: the two are not the same; nothing was written", question)
	}
	return first, nil
}
