package s3

import (
	"context"
	"net"
	"time"
)

type dial = func(ctx context.Context, network, address string) (net.Conn, error)

// impatient gives up a connection on which nothing moved for so long, either way: neither waiting for an answer nor a transfer hangs,
// and a slow one that moves goes on.
func impatient(next dial, silence time.Duration) dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn{c, silence}, nil
	}
}

type conn struct {
	net.Conn
	silence time.Duration
}

func (c conn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write moves the deadline of a Read that waits meanwhile, too, before and after: what is sent has its answer still to come.
func (c conn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(c.silence))
	}
	return n, err
}
