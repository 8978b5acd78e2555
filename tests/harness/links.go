package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Links are the ways between the peers: a proxy in front of each peer port,
// which finds out which peer a connection comes from, and one gate for each
// ordered pair of peers.
//
// A closed gate holds bytes back and delivers them, in order, when it opens: what
// a network that loses packets does to TCP. Connections stay open meanwhile, and
// new ones are taken and lead nowhere.
//
// Who dials is found by asking the kernel which process owns the other end of
// the connection, since on one machine all come from one address: proc(5),
// net/tcp. No privileges are needed for one's own processes.
type Links struct {
	addresses []string
	backends  []string
	pids      func() map[int]int
	listeners []net.Listener
	wg        sync.WaitGroup

	mu     sync.Mutex // guards what follows
	opened chan struct{}
	shut   [][]bool // from, to
	conns  map[net.Conn]bool
	closed bool
}

func newLinks(backends []string, pids func() map[int]int) (*Links, error) {
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		return nil, errors.New("links need a Linux kernel, which tells whose a connection is")
	}
	l := &Links{backends: backends, pids: pids, opened: make(chan struct{}), conns: map[net.Conn]bool{}}
	for i := range backends {
		l.shut = append(l.shut, make([]bool, len(backends)))
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			l.close()
			return nil, err
		}
		l.listeners = append(l.listeners, listener)
		l.addresses = append(l.addresses, listener.Addr().String())
		l.wg.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				l.wg.Go(func() { l.carry(conn, i) })
			}
		})
	}
	return l, nil
}

// Cut closes the gate for bytes that from sends to to.
func (l *Links) Cut(from, to int) {
	l.set(func(f, t int) bool { return l.shut[f][t] || f == from && t == to })
}

// Partition lets peers talk only within their group; a peer in no group is alone.
func (l *Links) Partition(groups ...[]int) {
	of := map[int]int{}
	for g, group := range groups {
		for _, i := range group {
			of[i] = g + 1
		}
	}
	l.set(func(f, t int) bool { return of[f] != of[t] || of[f] == 0 })
}

// Heal opens all gates.
func (l *Links) Heal() { l.set(func(int, int) bool { return false }) }

func (l *Links) set(shut func(from, to int) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.shut {
		for t := range l.shut[f] {
			l.shut[f][t] = f != t && shut(f, t)
		}
	}
	close(l.opened)
	l.opened = make(chan struct{})
}

// pass waits until the gate is open; false at the end.
func (l *Links) pass(from, to int) bool {
	for {
		l.mu.Lock()
		shut, closed, changed := l.shut[from][to], l.closed, l.opened
		l.mu.Unlock()
		if closed || !shut {
			return !closed
		}
		<-changed
	}
}

// carry joins a connection to peer to with that peer.
func (l *Links) carry(conn net.Conn, to int) {
	if !l.hold(conn) {
		return
	}
	defer l.drop(conn)
	from, ok := l.owner(conn)
	if !ok || !l.pass(from, to) {
		return
	}
	back, err := net.DialTimeout("tcp", l.backends[to], 5*time.Second)
	if err != nil || !l.hold(back) {
		return
	}
	defer l.drop(back)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.copy(back, conn, from, to)
	}()
	l.copy(conn, back, to, from)
	<-done
}

// copy carries bytes one way; when that ends, so does the connection.
func (l *Links) copy(dst, src net.Conn, from, to int) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !l.pass(from, to) {
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			l.pass(from, to) // the end of a connection does not travel faster than its bytes
			return
		}
	}
}

func (l *Links) hold(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		conn.Close()
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *Links) drop(conn net.Conn) {
	conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

func (l *Links) close() {
	l.mu.Lock()
	l.closed = true
	close(l.opened)
	l.opened = make(chan struct{})
	for conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	for _, listener := range l.listeners {
		listener.Close()
	}
	l.wg.Wait()
}

// owner finds the peer at the other end of conn; false when there is none any
// more.
func (l *Links) owner(conn net.Conn) (peer int, ok bool) {
	local, remote := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)
	inode := socketInode(remote, local)
	if inode == "" {
		return 0, false
	}
	for pid, peer := range l.pids() {
		names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, name := range names {
			if target, err := os.Readlink(name); err == nil && target == "socket:["+inode+"]" {
				return peer, true
			}
		}
	}
	return 0, false
}

// socketInode is the inode of the connected socket from local to remote.
func socketInode(local, remote *net.TCPAddr) string {
	raw, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		// sl, local_address, rem_address, st, queues, timers, retransmits, uid,
		// timeout, inode
		f := strings.Fields(line)
		if len(f) >= 10 && port(f[1]) == local.Port && port(f[2]) == remote.Port {
			return f[9]
		}
	}
	return ""
}

// port reads that of an address as the kernel writes it, in hexadecimal.
func port(address string) int {
	_, p, _ := strings.Cut(address, ":")
	n, _ := strconv.ParseUint(p, 16, 16)
	return int(n)
}
