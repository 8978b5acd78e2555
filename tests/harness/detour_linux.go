package harness

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spike-ha/spike-ha/internal/process"
)

// detour is the way of packets that are to be late or lost: a port of the bridge
// whose other end is this process. The kernel sends it what a slow link carries, as
// packets of the size that a wire has, and it gives them back when they are due.
type detour struct {
	port  *os.File
	links *Links
	wg    sync.WaitGroup
	done  chan struct{}
}

// backlog is how many packets wait for one link, as in a router; the next is lost.
const backlog = 256

// openDetour makes the port, named detour, where processes of s run.
func openDetour(s *process.Spawner, links *Links) (*detour, error) {
	d := &detour{links: links, done: make(chan struct{})}
	if err := s.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("detour")
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		d.port = os.NewFile(uintptr(fd), "detour")
		return err
	}); err != nil {
		_ = d.port.Close()
		return nil, fmt.Errorf("a port of the bridge: %w", err)
	}
	d.wg.Go(d.run)
	return d, nil
}

type packet struct {
	bytes []byte
	due   time.Time
}

func (d *detour) run() {
	under := map[[2]int]chan packet{}
	buf := make([]byte, 64<<10)
	for {
		n, err := d.port.Read(buf)
		if err != nil {
			return
		}
		from, to := int(buf[11]), int(buf[5]) // the last bytes of both ends' addresses: mac
		if n < 14 || from >= len(d.links.rules) || to >= len(d.links.rules) {
			continue
		}
		due, lost := d.links.send(from, to, n)
		if lost {
			continue
		}
		pair := [2]int{from, to}
		link := under[pair]
		if link == nil {
			link = make(chan packet, backlog)
			under[pair] = link
			d.wg.Go(func() { d.deliver(link) })
		}
		select {
		case link <- packet{append([]byte(nil), buf[:n]...), due}:
		default:
		}
	}
}

// deliver gives the packets of a link back, in order.
func (d *detour) deliver(under <-chan packet) {
	for {
		select {
		case <-d.done:
			return
		case p := <-under:
			select {
			case <-d.done:
				return
			case <-time.After(time.Until(p.due)):
			}
			if _, err := d.port.Write(p.bytes); err != nil {
				return
			}
		}
	}
}

func (d *detour) close() {
	close(d.done)
	d.port.Close()
	d.wg.Wait()
}
