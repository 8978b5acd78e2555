package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A transfer that moves, in either direction, may take as long as it takes; one that stands is given up.
func TestSilence(t *testing.T) {
	t.Parallel()
	const silence = 30 * time.Second
	try := func(name string, do func(t *testing.T, c, peer net.Conn)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				here, peer := net.Pipe()
				defer peer.Close()
				c, err := impatient(func(context.Context, string, string) (net.Conn, error) { return here, nil }, silence)(t.Context(), "tcp", "x")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				do(t, c, peer)
			})
		})
	}
	try("a slow upload, and then its answer", func(t *testing.T, c, peer net.Conn) {
		answer := make(chan error, 1)
		go func() { // as the HTTP client does, which waits for the answer from the beginning
			_, err := io.ReadFull(c, make([]byte, 6))
			answer <- err
		}()
		go func() {
			for range 10 {
				time.Sleep(silence - time.Second)
				if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(silence - time.Second)
			io.WriteString(peer, "answer")
		}()
		for range 10 {
			if _, err := io.WriteString(c, "piece"); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
	})
	try("a slow download", func(t *testing.T, c, peer net.Conn) {
		go func() {
			for range 10 {
				time.Sleep(silence - time.Second)
				io.WriteString(peer, "x")
			}
		}()
		if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
			t.Error(err)
		}
	})
	try("no answer", func(t *testing.T, c, _ net.Conn) {
		began := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != silence {
			t.Error(err, time.Since(began))
		}
	})
	try("nobody takes the upload", func(t *testing.T, c, _ net.Conn) {
		began := time.Now()
		if _, err := io.WriteString(c, "x"); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != silence {
			t.Error(err, time.Since(began))
		}
	})
}
