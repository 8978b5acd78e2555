package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// A Raft connection opens with a hello from the side that dials, and one byte
// in answer:
//
//	4 bytes   "SPKR"
//	byte      version, now 1
//	16 bytes  cluster id
//	uint64    incarnation, big endian
//	byte, n   sender's id; must be the id in its certificate
//	byte, n   id of the peer that it means to talk to
const helloVersion = 1

var helloMagic = []byte("SPKR")

const (
	helloOK byte = iota
	helloForeign
	helloNotYou
	helloNotMe
	helloNotReady
	helloBad
)

var errHello = errors.New("malformed hello")

type hello struct {
	cluster     [16]byte
	incarnation uint64
	from, to    string
}

func (h hello) encode() []byte {
	b := append([]byte(nil), helloMagic...)
	b = append(b, helloVersion)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = append(append(b, byte(len(h.from))), h.from...)
	return append(append(b, byte(len(h.to))), h.to...)
}

func readHello(r io.Reader) (h hello, err error) {
	var head [4 + 1 + 16 + 8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return h, err
	}
	if !bytes.Equal(head[:4], helloMagic) || head[4] != helloVersion {
		return h, errHello
	}
	copy(h.cluster[:], head[5:])
	h.incarnation = binary.BigEndian.Uint64(head[21:])
	id := func() string {
		var n [1]byte
		if err == nil {
			_, err = io.ReadFull(r, n[:])
		}
		if err == nil && (n[0] == 0 || n[0] > maxID) {
			err = errHello
		}
		if err != nil {
			return ""
		}
		b := make([]byte, n[0])
		_, err = io.ReadFull(r, b)
		return string(b)
	}
	h.from = id()
	h.to = id()
	return h, err
}

// greet answers the hello on an accepted connection.
func (n *Node) greet(c *peerConn) error {
	h, err := readHello(c)
	if err != nil {
		_, _ = c.Write([]byte{helloBad})
		return err
	}
	id, inc, ok := n.Identity()
	code, why := helloOK, error(nil)
	switch {
	case h.from != c.id:
		code, why = helloNotYou, fmt.Errorf("%w: it says it is %q", ErrWrongPeer, h.from)
	case h.to != n.cfg.ID:
		code, why = helloNotMe, fmt.Errorf("%w: it wants %q", ErrWrongPeer, h.to)
	case !ok || n.raft.Load() == nil:
		code, why = helloNotReady, ErrNotReady
	case h.cluster != id || h.incarnation != inc:
		code, why = helloForeign, fmt.Errorf("%w: it is of cluster %x incarnation %d, this peer of %x incarnation %d",
			ErrForeignData, h.cluster, h.incarnation, id, inc)
	}
	if _, err := c.Write([]byte{code}); err != nil {
		return err
	}
	return why
}

// stream is Raft's half of the port. The library's "addresses" are server ids:
// what a connection is pooled, dialled and checked under is who the peer is,
// and where it lives is looked up at each dial. Votes, too, are then recorded
// by id, and survive a change of address.
type stream struct {
	*handOff
	n *Node
}

type idAddr string

func (idAddr) Network() string  { return "peer" }
func (a idAddr) String() string { return string(a) }

// ServerAddr makes the library use ids as addresses (raft.ServerAddressProvider).
func (s stream) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id := string(address)
	// An unreachable peer must not hold a heartbeat for the whole RPC timeout.
	ctx, cancel := context.WithTimeout(s.n.ctx, min(timeout, s.n.dialTimeout()))
	defer cancel()
	c, err := s.n.port.dial(ctx, id, alpnRaft, s.introduce)
	if err != nil { // not c, which would be a net.Conn that is not nil
		return nil, err
	}
	return c, nil
}

func (s stream) introduce(c *peerConn, to string) error {
	cluster, inc, _ := s.n.Identity()
	_ = c.SetDeadline(time.Now().Add(s.n.dialTimeout()))
	if _, err := c.Write(hello{cluster, inc, s.n.cfg.ID, to}.encode()); err != nil {
		return err
	}
	var code [1]byte
	if _, err := io.ReadFull(c, code[:]); err != nil {
		return err
	}
	c.mu.Lock()
	c.answered = false
	c.mu.Unlock()
	_ = c.SetDeadline(time.Time{})
	switch code[0] {
	case helloOK:
		return nil
	case helloForeign:
		return fmt.Errorf("%w: it belongs to another cluster or incarnation", ErrForeignData)
	case helloNotYou, helloNotMe:
		return ErrWrongPeer
	case helloNotReady:
		return ErrNotReady
	default:
		return errHello
	}
}
