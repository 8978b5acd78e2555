package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Taking out members that are dead, when Config.DeadAfter says so. It is off by
// default: a peer that comes back after a long repair would have to be added
// again, and a cluster that loses peers one by one would shrink in silence to
// where one more loss is the last.
//
// Only the leader does it, by what it has seen itself since it leads, on the
// monotonic clock: time of day and what an earlier leader saw do not count. It
// takes one member at a time, never so that fewer than Config.MinVoters voters
// stay, and by Remove, which asks a majority of those that stay whether they are
// alive.

// cleanup looks at the members for as long as this peer lives.
func (n *Node) cleanup() {
	if n.cfg.DeadAfter <= 0 {
		return
	}
	every := min(max(n.cfg.DeadAfter/20, 50*time.Millisecond), 10*time.Second)
	t := time.NewTicker(every)
	defer t.Stop()
	gap := 4*every + 4*(n.dialTimeout()+n.roundTimeout())
	seen := sightings{gap: gap, least: n.cfg.MinVoters}
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		r := n.raft.Load()
		if r == nil || !n.leads() {
			seen = sightings{gap: gap, least: n.cfg.MinVoters}
			continue
		}
		conf := r.GetConfiguration().Configuration()
		term := r.CurrentTerm()
		alive := n.answering(conf, term)
		id, silent := seen.look(conf, n.cfg.ID, term, alive, time.Now())
		if id == "" || silent < n.cfg.DeadAfter {
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timing.Patience)
		n.log.Warn("a member is taken for dead and is removed", "id", id, "silent", silent)
		err := n.cfg.Bury(ctx, id, silent)
		cancel()
		if err != nil {
			n.log.Warn("a dead member could not be removed; it is tried again", "id", id, "error", err)
		}
	}
}

// sightings is what a leader has seen of the others since it leads.
type sightings struct {
	gap    time.Duration // a longer pause between two looks is this peer's own: it begins anew
	least  int           // voters that must stay
	term   uint64
	looked time.Time
	last   map[raft.ServerID]time.Time
}

// look notes who is alive at now and returns who has been silent longest of those
// that may go: one that must stay keeps no other.
func (s *sightings) look(conf raft.Configuration, self string, term uint64, alive map[raft.ServerID]bool, now time.Time) (id string, silent time.Duration) {
	anew := s.term != term || now.Sub(s.looked) > s.gap
	last := make(map[raft.ServerID]time.Time)
	for _, m := range conf.Servers {
		if string(m.ID) == self {
			continue
		}
		at, known := s.last[m.ID]
		if alive[m.ID] || !known || anew {
			at = now
		}
		last[m.ID] = at
		if d := now.Sub(at); d > silent && mayClean(conf, string(m.ID), s.least) {
			id, silent = string(m.ID), d
		}
	}
	s.term, s.looked, s.last = term, now, last
	return id, silent
}

// mayClean tells whether enough voters stay without the member id.
func mayClean(conf raft.Configuration, id string, least int) bool {
	voters := 0
	for _, m := range conf.Servers {
		if m.Suffrage == raft.Voter && string(m.ID) != id {
			voters++
		}
	}
	s, _ := find(conf, id)
	return s.Suffrage != raft.Voter || voters >= least
}

// answering are the other members that answer in this term.
func (n *Node) answering(conf raft.Configuration, term uint64) map[raft.ServerID]bool {
	ctx, cancel := context.WithTimeout(n.ctx, n.dialTimeout()+n.roundTimeout())
	defer cancel()
	alive := make(map[raft.ServerID]bool)
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, m := range conf.Servers {
		if string(m.ID) == n.cfg.ID {
			continue
		}
		wait.Go(func() {
			if _, err := n.askTerm(ctx, term, string(m.ID)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				alive[m.ID] = true
			}
		})
	}
	wait.Wait()
	return alive
}
