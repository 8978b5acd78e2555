package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/spike-ha/spike-ha/internal/process"
)

// network is wires of namespaces: each process has a network namespace of its own
// with an address of its own, on a bridge that lives in another one, which this
// process, too, has a way to. Nothing stands between the ends of a connection.
//
//   - Cuts are rules of nftables where the bridge forwards. They stop IP and not
//     ARP, or a cut of one direction would be one of both.
//   - What is slow, lossy or narrow takes a way through this process (detour), since
//     the kernel need not have netem; only that does.
//
// Namespaces have no names: each is held by the thread from which its process is
// started, and all that is in it goes with that thread. So nothing is left behind,
// however this process ends.
type network struct {
	prefix string             // of all addresses, as in 198.18.7.
	hub    *process.Spawner   // in the namespace of the bridge
	nodes  []*process.Spawner // each in one of its own
	detour *detour
	cut    string // the rules for nft that are in force
	slow   string // those for tc
}

// The range of addresses is the one for benchmarks (RFC 2544), which nobody routes.
// Each network takes 256 of them. That of this process is the last; a node has one
// where it serves clients and one where its peers find it, and may change the latter.
const (
	networks    = 512
	hostAddress = 254
	firstLink   = 100
	mostNodes   = 14
)

func newNetwork(links *Links, nodes int) (_ *network, err error) {
	if nodes > mostNodes {
		return nil, fmt.Errorf("%d processes; a network has %d", nodes, mostNodes)
	}
	n := &network{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.hub, err = newNamespace(); err != nil {
		return nil, err
	}
	if n.detour, err = openDetour(n.hub, links); err != nil {
		return nil, err
	}
	setup := []string{"link add hub type bridge mcast_snooping 0", "link set hub up",
		"link set detour master hub up", "link set detour type bridge_slave learning off flood off mcast_flood off bcast_flood off"}
	for i := range nodes {
		node, err := newNamespace()
		if err != nil {
			return nil, err
		}
		n.nodes = append(n.nodes, node)
		var thread string
		if err := node.Do(func() error {
			thread = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
			return nil
		}); err != nil {
			return nil, err
		}
		setup = append(setup, fmt.Sprintf("link add port%d type veth peer name eth0 address %s netns %s", i, mac(i), thread), fmt.Sprintf("link set port%d master hub up", i))
	}
	if err := feed(n.hub, strings.Join(setup, "\n"), "ip", "-batch", "-"); err != nil {
		return nil, err
	}
	if err := n.joinHost(); err != nil {
		return nil, err
	}
	for i := range nodes {
		if err := feed(n.nodes[i], fmt.Sprintf("link set lo up\naddress add %s/24 dev eth0\nlink set eth0 up", n.address(i)), "ip", "-batch", "-"); err != nil {
			return nil, err
		}
		if err := n.setLink(i, 0); err != nil {
			return nil, err
		}
		if err := feed(n.hub, fmt.Sprintf("qdisc add dev port%d ingress", i), "tc", "-batch", "-"); err != nil {
			return nil, err
		}
	}
	rules := []string{"table bridge links {", "chain forward { type filter hook forward priority 0; policy accept; }"}
	for f := range nodes {
		for t := range nodes {
			rules = append(rules, fmt.Sprintf("counter %s { }", counter(f, t)))
		}
	}
	return n, feed(n.hub, strings.Join(append(rules, "}"), "\n"), "nft", "-f", "-")
}

// joinHost makes the way from this process to the bridge. The name of its near end
// says which addresses are taken: the kernel gives no name twice.
func (n *network) joinHost() error {
	var err error
	for i := range networks {
		number := (os.Getpid() + i) % networks
		name := fmt.Sprintf("spike%d", number)
		err = feed(n.hub, fmt.Sprintf("link add host type veth peer name %s netns /proc/%d/ns/net\nlink set host master hub up", name, os.Getpid()), "ip", "-batch", "-")
		if err == nil {
			n.prefix = fmt.Sprintf("198.%d.%d.", 18+number/256, number%256)
			return feed(nil, fmt.Sprintf("address add %s/24 dev %s\nlink set %s up", n.host(), name, name), "ip", "-batch", "-")
		}
		if !strings.Contains(err.Error(), "File exists") {
			return err
		}
	}
	return err
}

// address is where a node serves clients.
func (n *network) address(node int) string { return fmt.Sprintf("%s%d", n.prefix, node+1) }

// host is where the nodes find this process.
func (n *network) host() string { return fmt.Sprintf("%s%d", n.prefix, hostAddress) }

// link is where the other nodes find it, at its so-many-th place.
func (n *network) link(node, place int) string {
	return fmt.Sprintf("%s%d", n.prefix, firstLink+place%10*mostNodes+node)
}

// setLink gives a node its so-many-th place, and takes the one before it away.
func (n *network) setLink(node, place int) error {
	setup := fmt.Sprintf("address add %s/24 dev eth0", n.link(node, place))
	if place > 0 {
		setup += fmt.Sprintf("\naddress delete %s/24 dev eth0", n.link(node, place-1))
	}
	return feed(n.nodes[node], setup, "ip", "-batch", "-")
}

func (n *network) apply(rules [][]rule) error {
	cut, slow := []string{"flush chain bridge links forward"}, []string{}
	for f := range rules {
		slow = append(slow, fmt.Sprintf("filter delete dev port%d ingress", f))
		for t, r := range rules[f] {
			if r.refused {
				return errors.New("a network of namespaces refuses no connections")
			}
			if r.cut {
				cut = append(cut, fmt.Sprintf("add rule bridge links forward ether saddr %s ether daddr %s ether type ip counter name %s drop", mac(f), mac(t), counter(f, t)))
			}
			if r.slows() {
				slow = append(slow, fmt.Sprintf("filter add dev port%d ingress protocol ip u32 match ether dst %s action mirred egress redirect dev detour", f, mac(t)))
			}
		}
	}
	return errors.Join(n.change(&n.cut, cut, "nft", "-f", "-"), n.change(&n.slow, slow, "tc", "-batch", "-"))
}

// change feeds lines to a command when they differ from those before.
func (n *network) change(was *string, lines []string, command ...string) error {
	now := strings.Join(lines, "\n")
	if now == *was {
		return nil
	}
	*was = now
	return feed(n.hub, now, command...)
}

func (n *network) stopped(from, to int) (int, error) {
	var list struct {
		Nftables []struct {
			Counter struct {
				Packets int `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	out, err := run(n.hub, "", "nft", "-j", "list", "counter", "bridge", "links", counter(from, to))
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return 0, err
	}
	packets := 0
	for _, c := range list.Nftables {
		packets += c.Counter.Packets
	}
	return packets, nil
}

// close ends the threads, and with them the namespaces and what is in them.
func (n *network) close() {
	if n.detour != nil {
		n.detour.close()
	}
	for _, s := range append(n.nodes, n.hub) {
		if s != nil {
			s.Close()
		}
	}
}

func mac(node int) string { return fmt.Sprintf("02:00:00:00:00:%02x", node) }

func counter(from, to int) string { return fmt.Sprintf("cut_%d_%d", from, to) }

// newNamespace makes a network namespace and returns what starts processes in it.
// The main thread, which stands for the whole process in /proc, keeps its own.
func newNamespace() (*process.Spawner, error) {
	s := process.NewSpawner()
	main := false
	err := s.Do(func() error {
		if main = unix.Gettid() == os.Getpid(); main {
			return nil
		}
		return unix.Unshare(unix.CLONE_NEWNET)
	})
	switch {
	case err != nil:
		s.Close()
		return nil, fmt.Errorf("a network namespace (it takes root): %w", err)
	case main:
		defer s.Close() // once another has been made, which cannot get that thread, too
		return newNamespace()
	}
	return s, nil
}

func feed(s *process.Spawner, input string, command ...string) error {
	_, err := run(s, input, command...)
	return err
}

// run runs a command where processes of s run, or in the host's namespace.
func run(s *process.Spawner, input string, command ...string) (out []byte, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	var said strings.Builder
	cmd.Stderr = &said
	do := func() error { out, err = cmd.Output(); return err }
	if s == nil {
		err = do()
	} else {
		err = s.Do(do)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(said.String()))
	}
	return out, nil
}
