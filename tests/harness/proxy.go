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

// proxy is wires on loopback: one in front of each peer port, which finds out which
// peer a connection comes from.
//
// A cut holds bytes back and delivers them, in order, when it is over: what a
// network that loses packets does to TCP. Connections stay open meanwhile, and new
// ones are taken and lead nowhere. A loss is a pause of as long as TCP takes to send
// again.
//
// Who dials is found by asking the kernel which process owns the other end of
// the connection, since on one machine all come from one address: proc(5),
// net/tcp. No privileges are needed for one's own processes.
type proxy struct {
	links     *Links
	pids      func() map[int]int
	listeners []net.Listener
	wg        sync.WaitGroup

	mu       sync.Mutex // guards what follows
	backends []string
	changed  chan struct{} // closed with the next change of the cuts
	cut      [][]bool      // from, to
	refused  [][]bool
	held     [][]int
	conns    map[net.Conn]bool
	joined   map[net.Conn][2]int // those of them whose ends are known
	closed   bool
}

func newProxy(links *Links, backends []string, pids func() map[int]int) (*proxy, error) {
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		return nil, errors.New("links need a Linux kernel, which tells whose a connection is")
	}
	p := &proxy{links: links, pids: pids, backends: backends, changed: make(chan struct{}), conns: map[net.Conn]bool{}, joined: map[net.Conn][2]int{}}
	for i := range backends {
		p.cut = append(p.cut, make([]bool, len(backends)))
		p.refused = append(p.refused, make([]bool, len(backends)))
		p.held = append(p.held, make([]int, len(backends)))
		if err := p.listen(i); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// listen opens an address for peer i; it replaces the one that it had.
func (p *proxy) listen(i int) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if i < len(p.listeners) {
		p.listeners[i].Close()
		p.listeners[i] = listener
	} else {
		p.listeners = append(p.listeners, listener)
	}
	p.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.carry(conn, i) })
		}
	})
	return nil
}

// address is where the other peers find peer i.
func (p *proxy) address(i int) string { return p.listeners[i].Addr().String() }

// readdress gives peer i, which listens at backend now, another address.
func (p *proxy) readdress(i int, backend string) (string, error) {
	p.mu.Lock()
	p.backends[i] = backend
	p.mu.Unlock()
	err := p.listen(i)
	return p.listeners[i].Addr().String(), err
}

func (p *proxy) apply(rules [][]rule) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range rules {
		for t := range rules[f] {
			p.cut[f][t], p.refused[f][t] = rules[f][t].cut, rules[f][t].refused
		}
	}
	for conn, link := range p.joined {
		if p.refused[link[0]][link[1]] {
			conn.Close()
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

func (p *proxy) stopped(from, to int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[from][to], nil
}

// pass waits until due, and then until the link is not cut; false at the end.
func (p *proxy) pass(from, to int, due time.Time) bool {
	counted := false
	for {
		p.mu.Lock()
		cut, closed, changed := p.cut[from][to], p.closed, p.changed
		if cut && !counted {
			counted = true
			p.held[from][to]++
		}
		p.mu.Unlock()
		wait := time.Until(due)
		if closed || !cut && wait <= 0 {
			return !closed
		}
		var arrival <-chan time.Time
		if wait > 0 {
			arrival = time.After(wait)
		}
		select {
		case <-changed:
		case <-arrival:
		}
	}
}

// carry joins a connection to peer to with that peer.
func (p *proxy) carry(conn net.Conn, to int) {
	if !p.hold(conn) {
		return
	}
	defer p.drop(conn)
	from, ok := p.owner(conn)
	if !ok || !p.join(conn, from, to) || !p.pass(from, to, time.Time{}) {
		return
	}
	p.mu.Lock()
	backend := p.backends[to]
	p.mu.Unlock()
	back, err := net.DialTimeout("tcp", backend, 5*time.Second)
	if err != nil || !p.hold(back) {
		return
	}
	defer p.drop(back)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.copy(back, conn, from, to)
	}()
	p.copy(conn, back, to, from)
	<-done
}

// part is what was read of a stream at once.
type part struct {
	bytes []byte
	due   time.Time
}

// copy carries bytes one way; when that ends, so does the connection.
func (p *proxy) copy(dst, src net.Conn, from, to int) {
	under := make(chan part, 4) // as much as a socket would hold
	go func() {
		defer close(under)
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				under <- part{append([]byte(nil), buf[:n]...), p.arrival(from, to, n)}
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		dst.Close()
		src.Close()
		for range under { // what was on its way
		}
	}()
	for b := range under {
		if !p.pass(from, to, b.due) {
			return
		}
		if _, err := dst.Write(b.bytes); err != nil {
			return
		}
	}
	p.pass(from, to, time.Time{}) // the end of a connection does not travel faster than its bytes
}

// arrival is when n bytes arrive that are sent now: those that are lost are sent
// again, after a pause that doubles.
func (p *proxy) arrival(from, to, n int) time.Time {
	var pause time.Duration
	for again := 200 * time.Millisecond; ; again = min(2*again, 2*time.Second) {
		due, lost := p.links.send(from, to, n)
		if !lost {
			return due.Add(pause)
		}
		pause += again
	}
}

// join notes whose connection it is; false when such are refused.
func (p *proxy) join(conn net.Conn, from, to int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joined[conn] = [2]int{from, to}
	return !p.refused[from][to]
}

func (p *proxy) hold(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	p.conns[conn] = true
	return true
}

func (p *proxy) drop(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	delete(p.joined, conn)
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	close(p.changed)
	p.changed = make(chan struct{})
	for conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	for _, listener := range p.listeners {
		listener.Close()
	}
	p.wg.Wait()
}

// owner finds the peer at the other end of conn; false when there is none any
// more.
func (p *proxy) owner(conn net.Conn) (peer int, ok bool) {
	local, remote := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)
	inode := socketInode(remote, local)
	if inode == "" {
		return 0, false
	}
	for pid, peer := range p.pids() {
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
