//go:build !linux

package cluster

import (
	"net"
	"time"
)

func setStale(net.Conn, time.Duration) {}
