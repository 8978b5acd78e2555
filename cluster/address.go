package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// Where a peer lives. A peer is its id, which its certificate proves; addresses
// are only places to look for it, and looking in a wrong one does no harm. So
// everything that ever was said of where a peer is counts: what the log has,
// what the peer itself announced, what is configured here, what was known when
// this peer formed or joined. They are tried at once, each a little later than
// the likelier one before it, and names are resolved at each dial.
//
// A peer that was started with another address than the cluster has announces
// it to everybody it can find (Admit), which is enough to be found in its turn.
// So peers whose lists of one another are right find each other when all of them
// have moved at once, and one whose address the others do not know yet is found
// as long as it finds one of them.
//
// A voter that moved also has the address in the log changed, for those that
// start or join later. It asks the leader, who dials it there, and then lets it
// lead: a leader changes its own address alone. For that of a peer that it
// replicates to, the library writes what its other goroutines read without a
// lock (startStopReplication and replicateTo, v1.8.0). A learner, which cannot
// lead, goes on announcing itself instead.

// places is what this process has learnt of where peers are.
type places struct {
	mu        sync.Mutex // guards the rest
	announced map[string]string
	worked    map[string]string // where the peer was found last

	refused string // why a move was refused; owned by belong, like the rest
	next    time.Time
	pause   time.Duration
}

// announce notes where the member id says it lives.
func (p *places) announce(n *Node, id, address string) {
	if address == "" || id == n.cfg.ID || validAddress(address) != nil || !n.isMember(id) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.announced == nil {
		p.announced = map[string]string{}
	}
	p.announced[id] = address
}

func (p *places) found(id, address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.worked == nil {
		p.worked = map[string]string{}
	}
	p.worked[id] = address
}

// placesOf lists the addresses to try for the peer id, likeliest first.
func (n *Node) placesOf(id string) (list []string) {
	add := func(address string) {
		if address != "" && !slices.Contains(list, address) {
			list = append(list, address)
		}
	}
	n.places.mu.Lock()
	worked, announced := n.places.worked[id], n.places.announced[id]
	n.places.mu.Unlock()
	if r := n.raft.Load(); r != nil {
		if s, ok := find(r.GetConfiguration().Configuration(), id); ok {
			add(string(s.Address))
		}
	}
	add(announced)
	for _, configured := range [][]Peer{n.cfg.Join, n.cfg.Peers} {
		for _, p := range configured {
			if p.ID == id {
				add(p.Address)
			}
		}
	}
	m := n.marker.Load()
	for _, known := range [][]*peerpb.Member{m.GetPeers(), m.GetSuperseded()} {
		for _, p := range known {
			if p.GetId() == id {
				add(p.GetAddress())
			}
		}
	}
	if i := slices.Index(list, worked); i > 0 {
		list = slices.Insert(slices.Delete(list, i, i+1), 0, worked)
	}
	return list
}

// headStart is what a likelier address has before the next is tried, too.
const headStart = 100 * time.Millisecond

// dial connects to the peer id, wherever it is found first; greet, when not nil,
// must agree. The error has what each address came to.
func (p *port) dial(ctx context.Context, id, alpn string, greet func(c *peerConn, id string) error) (*peerConn, error) {
	list := p.places(id)
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnknownPeer, id)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c       *peerConn
		address string
		err     error
	}
	results := make(chan result)
	failed := make([]error, 0, len(list))
	started, under := 0, 0
	start := func() {
		address := list[started]
		started++
		under++
		go func() {
			c, err := p.dialAt(ctx, id, address, alpn)
			if err == nil && greet != nil {
				end := context.AfterFunc(ctx, func() { _ = c.Close() })
				err = greet(c, id)
				if !end() && err == nil {
					err = ctx.Err()
				}
				if err != nil {
					_ = c.Close()
					err = fmt.Errorf("peer %s at %s: %w", id, address, err)
				}
			}
			results <- result{c, address, err}
		}()
	}
	start()
	for {
		var next <-chan time.Time
		if started < len(list) {
			next = time.After(headStart)
		}
		select {
		case <-next:
			start()
			continue
		case r := <-results:
			under--
			if r.err == nil {
				if p.found != nil && greet != nil {
					p.found(id, r.address)
				}
				go func() { // the others, which ctx ends
					for range under {
						if late := <-results; late.err == nil {
							_ = late.c.Close()
						}
					}
				}()
				return r.c, nil
			}
			failed = append(failed, r.err)
			switch {
			case started < len(list):
				start()
			case under == 0:
				return nil, errors.Join(failed...)
			}
		}
	}
}

// findAt tells whether the peer id, of this cluster, is at an address.
func (n *Node) findAt(ctx context.Context, id, address string) error {
	ctx, cancel := context.WithTimeout(ctx, n.dialTimeout())
	defer cancel()
	c, err := n.port.dialAt(ctx, id, address, alpnRaft)
	if err == nil {
		err = stream{n.port.raft, n}.introduce(c, id)
		_ = c.Close()
	}
	var dns *net.DNSError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &dns):
		return fmt.Errorf("%w: %s is a name that resolves to nothing: %w", ErrAddress, address, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrAddress, address, err)
}

// mayMove checks a change of address; done when it is so already.
func mayMove(c raft.Configuration, s raft.Server, address string) (done bool, err error) {
	if err := validAddress(address); err != nil {
		return false, err
	}
	for _, other := range c.Servers {
		if other.ID != s.ID && string(other.Address) == address {
			return false, fmt.Errorf("%w: the member %s has the address %s", ErrMember, other.ID, address)
		}
	}
	return string(s.Address) == address, nil
}

// moved has the cluster note where this peer lives, when it has another address.
func (n *Node) moved(r *raft.Raft) {
	s, member := find(r.GetConfiguration().Configuration(), n.cfg.ID)
	p := &n.places
	if !member || n.cfg.Advertise == "" || string(s.Address) == n.cfg.Advertise || !n.leads() && time.Now().Before(p.next) {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timing.Patience)
	defer cancel()
	p.pause = min(max(2*p.pause, 250*time.Millisecond), 5*time.Second)
	defer func() { p.next = time.Now().Add(p.pause) }()
	req := &peerpb.AdmitRequest{Id: n.cfg.ID, Scope: n.scope(), Address: n.cfg.Advertise}
	for _, id := range n.acquainted() {
		_, _ = n.askAdmit(ctx, id, req)
	}
	err := n.alterOnce(ctx, peerpb.ChangeRequest_OP_MOVE, n.cfg.ID, n.cfg.Advertise)
	if err == nil {
		return // it is so, or soon will be; if not, this is repeated
	}
	if why := err.Error(); why != p.refused && n.ctx.Err() == nil {
		p.refused = why
		n.log.Warn("the cluster has another address for this peer, and does not take the one that it has now; it is tried again", "has", string(s.Address), "now", n.cfg.Advertise, "error", err)
	}
}
