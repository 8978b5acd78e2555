package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

// watchStatus looks again and again until it is interrupted, which is how it
// ends. A look that fails is said and does not end it: this is what one looks at
// while peers are down.
func watchStatus(c *cli.Context, dial dialer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	interval := c.Duration("interval")
	if interval <= 0 {
		return usage("--interval %s is not a time to wait", interval)
	}
	patience := c.Duration("timeout")
	if !c.IsSet("timeout") {
		patience, _ = time.ParseDuration(statusPatience)
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	screen := isTerminal(c.App.Writer)
	for {
		bounded, cancel := context.WithTimeout(ctx, patience)
		status, err := cl.Status(bounded)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = local(draw(c, screen, status))
		} else {
			err = lost(c, screen, err)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// draw writes one look, in one piece: over the one before on a terminal, else
// below it.
func draw(c *cli.Context, screen bool, status client.Status) error {
	var look bytes.Buffer
	switch c.String("format") {
	case "json":
		encoder := json.NewEncoder(&look)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(status); err != nil {
			return err
		}
	case "yaml":
		look.WriteString("---\n")
		if err := printYAML(&look, status); err != nil {
			return err
		}
	default:
		fmt.Fprintf(&look, "%s\n\n", shortTime(time.Now()))
		printStatus(&look, status)
		return page(c.App.Writer, screen, look.String())
	}
	_, err := look.WriteTo(c.App.Writer)
	return err
}

// lost says that a look failed: on the page, or beside the data.
func lost(c *cli.Context, screen bool, why error) error {
	text := fmt.Sprintf("%s\n\nno peer answers: %v\n", shortTime(time.Now()), why)
	if screen && c.String("format") == "table" {
		return local(page(c.App.Writer, screen, text))
	}
	_, err := io.WriteString(c.App.ErrWriter, text)
	return local(err)
}

func page(w io.Writer, screen bool, text string) error {
	if screen { // home; each line to its end; what was below
		text = "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
	} else {
		text += "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
