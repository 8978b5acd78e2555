package harness

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/spike-ha/spike-ha/tests/s3server"
)

// openStore starts the S3 server with a proxy in front of it, and returns the arguments that have a peer archive there. Peers in
// namespaces reach the proxy, which is in this process, at this process's address on their bridge.
func (c *Cluster) openStore(ctx context.Context) (args []string, err error) {
	if !c.o.Store {
		return nil, nil
	}
	host := "127.0.0.1"
	if c.network != nil {
		host = c.network.host()
	}
	dir := c.path("store")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if c.store, err = s3server.Run(dir, net.ParseIP(host)); err != nil {
		return nil, err
	}
	if c.Store, err = c.store.Front(net.JoinHostPort(host, "0"), 1); err != nil {
		return nil, fmt.Errorf("the proxy of the S3 server: %w", err)
	}
	address, err := c.Store.MakeBucket(ctx, "archive")
	if err != nil {
		return nil, fmt.Errorf("the bucket: %w", err)
	}
	return []string{"--archive", address}, nil
}

func (c *Cluster) closeStore() {
	if c.Store != nil {
		c.Store.Close()
	}
	if c.store != nil {
		c.store.Close()
	}
}
