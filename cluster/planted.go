package cluster

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// lastTold is for planted.HeartbeatFastPath alone: a peer takes itself for the
// leader until the library says otherwise on LeaderCh, as most users of the
// library do, and has more than two proposals under way. One that looks right
// before it proposes can be made to forge entries too, but hardly ever; one that
// has two places only has filled them, most of the time, before it hears of the
// next leader.
type lastTold struct {
	once sync.Once
	last atomic.Bool
}

func (t *lastTold) leads(r *raft.Raft) bool {
	t.once.Do(func() {
		t.last.Store(r.State() == raft.Leader)
		go func() {
			for leads := range r.LeaderCh() { // never closed: a program with a defect is not for long
				t.last.Store(leads)
			}
		}()
	})
	return t.last.Load()
}
