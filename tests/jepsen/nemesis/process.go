package nemesis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// down kills processes, and up has them run: another harm may have had hold of them too.
func down(list ...*process.Child) (failed error) {
	for _, p := range list {
		if _, _, runs := p.Running(); runs {
			failed = errors.Join(failed, p.Kill())
		}
	}
	return failed
}

// up has all of them run, unfrozen; what was told to end and could not, for a disk that hung, ends first.
func up(list ...*process.Child) (failed error) {
	runs := func(p *process.Child) bool { _, _, runs := p.Running(); return runs }
	for _, p := range list {
		if p.Ending() {
			if err := p.Kill(); err != nil && runs(p) {
				failed = errors.Join(failed, err)
				continue
			}
		}
		if runs(p) {
			failed = errors.Join(failed, p.Thaw())
		} else if err := p.Start(); err != nil && !runs(p) { // else another harm's end was faster
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Revive has all peers run, after harm that could not be done: it may have killed some, and others have to die yet.
func (t *Target) Revive() (failed error) {
	for i := range t.Peers() {
		failed = errors.Join(failed, up(t.Peer(i)))
	}
	return failed
}

// processes kill and freeze peers.
func processes() []Nemesis {
	kill := func(t *Target, victims ...int) (Harm, error) {
		for _, i := range victims {
			if err := down(t.Peer(i)); err != nil {
				return Harm{}, err
			}
		}
		running := t.peers(victims...)
		if len(victims) > 1 {
			running = nil // no quorum
		}
		return Harm{What: fmt.Sprintf("killed: %v", names(victims)), Silenced: victims, Running: running, Undo: func(context.Context) error {
				var failed error
				for _, i := range victims {
					failed = errors.Join(failed, up(t.Peer(i)))
				}
				return failed
			}},

			nil
	}
	freeze := func(hold time.Duration) func(ctx context.Context, t *Target) (Harm, error) {
		return func(ctx context.Context, t *Target) (Harm, error) {
			leader, err := t.Leader(ctx)
			if err != nil {
				return Harm{}, err
			}
			if err := t.Peer(leader).Freeze(); err != nil {
				return Harm{}, err
			}
			h := Harm{What: "frozen: " + harness.PeerName(leader), Silenced: []int{leader}, Running: t.peers(leader), Undo: func(context.Context) error { return up(t.Peer(leader)) }}
			if hold < time.Second {
				h.Silenced, h.Running = nil, nil
			}
			return h, nil
		}
	}
	return []Nemesis{
		{Name: "kill-leader", About: "SIGKILL of the leader", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			return kill(t, leader)
		})},
		{Name: "kill-one", About: "SIGKILL of any peer", Do: func(_ context.Context, t *Target) (Harm, error) {
			return kill(t, t.Random.IntN(t.Peers()))
		}},
		{Name: "kill-majority", About: "SIGKILL of a majority of the voters", Do: func(_ context.Context, t *Target) (Harm, error) {
			return kill(t, t.voters()[:t.Voters/2+1]...)
		}},
		{Name: "kill-all", About: "SIGKILL of all peers", Do: func(_ context.Context, t *Target) (Harm, error) {
			return kill(t, t.peers()...)
		}},
		{Name: "freeze-leader", About: "SIGSTOP of the leader until another has led for a while", Hold: 5 * time.Second, Do: freeze(5 * time.Second)},
		{Name: "freeze-shortly", About: "SIGSTOP of the leader for about an election timeout", Hold: 600 * time.Millisecond, Do: freeze(600 * time.Millisecond)},
		{Name: "freeze-follower", About: "SIGSTOP of a follower", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			return Harm{What: "frozen: " + harness.PeerName(victim), Silenced: []int{victim}, Running: t.peers(victim), Undo: func(context.Context) error { return up(t.Peer(victim)) }}, t.Peer(victim).Freeze()
		})},
	}
}
