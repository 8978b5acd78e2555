//go:build !linux

package harness

import (
	"errors"

	"github.com/spike-ha/spike-ha/internal/process"
)

// network needs Linux.
type network struct {
	wires
	nodes []*process.Spawner
}

func newNetwork(*Links, int) (*network, error) {
	return nil, errors.New("network namespaces need a Linux kernel")
}

func (n *network) address(int) string     { return "" }
func (n *network) host() string           { return "" }
func (n *network) link(int, int) string   { return "" }
func (n *network) setLink(int, int) error { return nil }
