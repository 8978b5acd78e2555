package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/cli/internal/devcluster"
)

func devDemo(c *cli.Context, o devcluster.Options) (err error) {
	if o.Peers != 0 && o.Peers < 3 {
		return usage("the tour kills the leader and goes on: that takes at least 3 peers")
	}
	if !c.IsSet("base-port") {
		o.BasePort, o.Passing = devcluster.FreePorts, true // next to a cluster that runs already
	}
	if !c.IsSet("dir") {
		var scratch string
		scratch, err = os.MkdirTemp("", "spike-demo-")
		if err != nil {
			return err
		}
		o.Dir = filepath.Join(scratch, "spike")
		defer func() {
			if err == nil || c.Context.Err() != nil { // what a failure left is for people to look at
				os.RemoveAll(scratch)
			}
		}()
	}
	var steps []tourStep
	t := &tour{report: func(s tourStep) {
		s.Seconds = s.took.Seconds()
		steps = append(steps, s)
		if c.String("format") == "table" {
			printStep(c.App.Writer, "✓", s)
		}
	}}
	begin := time.Now()
	t.cluster, err = devcluster.Open(c.Context, o)
	if err != nil {
		return err
	}
	warnDevelopment(o.Say, o.Dir)
	err = t.walk(c.Context, begin, c.Duration("wait"))
	stopping := time.Now()
	if stopped := t.cluster.Close(secondSignal()); err == nil {
		if err = stopped; err == nil {
			t.report(tourStep{What: "everything is stopped again", took: time.Since(stopping)})
		}
	}
	if err != nil {
		if c.Context.Err() != nil {
			return usage("interrupted; everything is stopped")
		}
		return fmt.Errorf("the tour failed: %w\n  everything is stopped; data and logs are in %s", err, o.Dir)
	}
	return show(c, map[string]any{"steps": steps}, func(io.Writer) {})
}

// printStep writes a sentence and, in a column on the right, how long it took.
func printStep(w io.Writer, mark string, s tourStep) {
	const width = 100
	took := s.took.Round(time.Millisecond).String()
	if s.took >= time.Second {
		took = fmt.Sprintf("%.1fs", s.took.Seconds())
	}
	space := max(2, width-utf8.RuneCountInString(s.What)-len(took))
	fmt.Fprintf(w, "%s %s%s%s\n", mark, s.What, strings.Repeat(" ", space), took)
}
