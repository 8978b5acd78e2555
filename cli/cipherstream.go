package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/spike-ha/spike-ha/api/client"
)

// direction is what a stream does with its input.
type direction func(*client.Client, context.Context, io.Reader) (io.ReadCloser, error)

// eitherCipher does one in one piece, or with --stream the other, which may take
// as long as its input does.
func eitherCipher(piece action, stream direction) cli.ActionFunc {
	return func(c *cli.Context) error {
		if !c.Bool("stream") {
			return with(piece)(c)
		}
		return over(connectForever, func(c *cli.Context, dial dialer) error { return cipherStream(c, dial, stream) })(c)
	}
}

func cipherStream(c *cli.Context, dial dialer, stream direction) (err error) {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	if c.String("format") != "table" {
		return usage("a stream is bytes: leave --format (SPIKE_FORMAT) away")
	}
	in, size := c.App.Reader, int64(-1)
	if c.IsSet("file") {
		file, err := os.Open(c.String("file"))
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
	}
	cl, ctx, err := dial()
	if err != nil {
		return err
	}
	out, keep, err := streamOutput(c)
	if err != nil {
		return err
	}
	defer func() { err = keep(err) }()
	if size >= 0 && isTerminal(c.App.ErrWriter) && (c.IsSet("out") || !isTerminal(c.App.Writer)) {
		bar := newBar(c.App.ErrWriter, size)
		defer bar.end()
		in = io.TeeReader(in, bar)
	}
	input := &remembering{Reader: in}
	answer, err := stream(cl, ctx, input)
	if input.err != nil {
		return local(fmt.Errorf("reading the input: %w", input.err))
	}
	if err != nil {
		return err
	}
	defer answer.Close()
	output := &remembering{Writer: out}
	_, err = io.Copy(output, answer)
	switch {
	case input.err != nil:
		return local(fmt.Errorf("reading the input: %w; what was written is not all", input.err))
	case output.err != nil:
		return local(fmt.Errorf("writing: %w", output.err))
	}
	return err
}

// remembering keeps the error that its other side may hide.
type remembering struct {
	io.Reader
	io.Writer
	err error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func (r *remembering) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	r.err = err
	return n, err
}

// streamOutput opens where the bytes go. A file appears under its name only when
// keep is called without an error, whole and for nobody else.
func streamOutput(c *cli.Context) (out io.Writer, keep func(error) error, err error) {
	if !c.IsSet("out") {
		return c.App.Writer, func(err error) error { return err }, nil
	}
	name := c.String("out")
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() { // a pipe, a device
		file, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return nil, nil, err
		}
		return file, func(err error) error { return errors.Join(err, file.Close()) }, nil
	}
	file, err := os.CreateTemp(filepath.Dir(name), ".spikectl-*") // mode 0600
	if err != nil {
		return nil, nil, err
	}
	return file, func(err error) error {
		if err == nil {
			err = local(file.Sync())
		}
		if closed := file.Close(); err == nil {
			err = local(closed)
		}
		if err == nil {
			err = local(os.Rename(file.Name(), name))
		}
		if err != nil {
			os.Remove(file.Name())
		}
		return err
	}, nil
}

// bar shows on a terminal how much of a known number of bytes went by.
type bar struct {
	w           io.Writer
	total, done int64
	begun, last time.Time
}

func newBar(w io.Writer, total int64) *bar { return &bar{w: w, total: total, begun: time.Now()} }

// Write counts p.
func (b *bar) Write(p []byte) (int, error) {
	b.done += int64(len(p))
	if now := time.Now(); now.Sub(b.last) >= 200*time.Millisecond {
		b.last = now
		fmt.Fprint(b.w, "\r"+barLine(b.done, b.total, now.Sub(b.begun)))
	}
	return len(p), nil
}

func (b *bar) end() { fmt.Fprintln(b.w, "\r"+barLine(b.done, b.total, time.Since(b.begun))) }

func barLine(done, total int64, took time.Duration) string {
	const width = 30
	part := 1.0
	if total > 0 {
		part = min(float64(done)/float64(total), 1)
	}
	filled := int(part * width)
	mib := float64(done) / (1 << 20)
	return fmt.Sprintf("[%s%s] %3.0f %%  %.1f MiB, %.0f MiB/s ", strings.Repeat("#", filled), strings.Repeat(".", width-filled), 100*part, mib, mib/max(took.Seconds(), 0.001))
}
