package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/harness/faultfs"
)

// disks are what disks do to peers. Peers that end because of it are started again by what supervises them.
func disks() []Nemesis {
	list := []Nemesis{
		{Name: "disk-full-leader", About: "no room on the leader's disk", Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			return t.silencing(faultfs.Fault{Full: true}, leader), nil
		})},
		{Name: "disk-full-follower", About: "no room on a follower's disk", Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			return t.silencing(faultfs.Fault{Full: true}, t.voters(leader)[0]), nil
		})},
		{Name: "disk-full-all", About: "no room on any disk", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.silencing(faultfs.Fault{Full: true}, t.peers()...), nil
		}},
		{Name: "disk-readonly", About: "a voter's disk turns read-only", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.silencing(faultfs.Fault{ReadOnly: true}, t.voters()[0]), nil
		}},
		{Name: "disk-stall-leader", About: "the leader's disk hangs for less than what makes a peer give up", Hold: 8 * time.Second, Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			return t.deposing(faultfs.Fault{Stall: true}, leader), nil
		})},
		{Name: "disk-hang-leader", About: "the leader's disk hangs for longer than that", Hold: 20 * time.Second, Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			return t.deposing(faultfs.Fault{Stall: true}, leader), nil
		})},
		{Name: "disk-stall-follower", About: "a follower's disk hangs for half a minute; it catches up without a restart of the leader", Hold: 30 * time.Second, Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			pid, _, _ := t.Peer(leader).Running()
			harm := t.silencing(faultfs.Fault{Stall: true}, t.voters(leader)[0])
			harm.Check = func(context.Context) error {
				if now, _, _ := t.Peer(leader).Running(); now != pid {
					return fmt.Errorf("the leader, %s, has ended", harness.PeerName(leader))
				}
				return nil
			}
			return harm, nil
		})},
		{Name: "disk-slow-follower", About: "each fsync of a follower takes longer by up to 150 ms, and each write by up to 15", Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			victim := t.voters(leader)[0]
			harm := t.suffering(faultfs.Fault{Slow: t.slowness(150)}, victim)
			harm.Running = t.peers(victim) // it may be behind by more than clients wait
			return harm, nil
		})},
		{Name: "disk-slow-leader", About: "each fsync of the leader takes longer by up to 40 ms, and each write by up to 4", Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			return t.suffering(faultfs.Fault{Slow: t.slowness(40)}, leader), nil
		})},
		{Name: "fsync-fails", About: "each fsync of the leader fails; then the power does, since nothing else shows what was durable", Hold: 8 * time.Second, Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			harm := t.deposing(faultfs.Fault{FailSync: true}, leader)
			harm.Undo = func(context.Context) error {
				return errors.Join(t.PowerLoss(t.Random, leader), up(t.Peer(leader)))
			}
			return harm, nil
		})},
		{Name: "fsync-failed", About: "each fsync of the leader fails, and it is started again and goes on from what the kernel's cache says; then the power fails", Hold: 8 * time.Second, Do: led(func(_ context.Context, t *Target, leader int) (Harm, error) {
			harm := t.deposing(faultfs.Fault{FailSync: true}, leader)
			undo, deposed := harm.Undo, harm.Check
			harm.Check = func(ctx context.Context) error { return errors.Join(deposed(ctx), t.reliesOnCache(ctx, leader)) }
			harm.Undo = func(ctx context.Context) error { return errors.Join(undo(ctx), up(t.Peer(leader))) }
			return harm, nil
		})},
		{Name: "power-loss-one", About: "a voter loses its power, and some or all of what was not durable", Do: func(_ context.Context, t *Target) (Harm, error) {
			some := t.Random
			if t.Random.IntN(2) == 0 {
				some = nil
			}
			return t.powerless(some, t.voters()[0])
		}},
		{Name: "power-loss-all", About: "all peers lose their power at once, and all that was not durable", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.powerless(nil, t.peers()...)
		}},
		{Name: "power-loss-torn", About: "all peers lose their power at once; of what was not durable some pages are on the disks", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.powerless(t.Random, t.peers()...)
		}},
		{Name: "audit-full", About: "no room for the audit log of a voter, which then answers nothing", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.silencing(faultfs.Fault{Full: true, Under: "audit"}, t.voters()[0]), nil
		}},
		{Name: "audit-slow", About: "each fsync of a voter's audit log takes longer by up to 150 ms, and each write by up to 15", Do: func(_ context.Context, t *Target) (Harm, error) {
			return t.suffering(faultfs.Fault{Slow: t.slowness(150), Under: "audit"}, t.voters()[0]), nil
		}},
	}
	for i := range list {
		list[i].Privileged = true
		list[i].Prepare = func(o *harness.Options) { o.Disks, o.Supervise = true, true }
	}
	return list
}

// reliesOnCache has a peer, whose disk failed, go on from what the kernel's cache says is on it, and then takes the cache away. What its log
// had when it went on must be there. The peer stays down.
func (t *Target) reliesOnCache(ctx context.Context, victim int) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	p, raft := t.Peer(victim), filepath.Join(t.DataDir(victim), "raft")
	var before cluster.Report
	if err := p.KillAnd(func() (err error) {
		t.Disk(victim).Suffer(faultfs.Fault{})
		before, err = inspect(ctx, raft)
		return err
	}); err != nil {
		return err
	}
	since := t.Recorder.Now()
	if err := up(p); err != nil {
		return err
	}
	if refuses, err := t.refuses(ctx, victim, since); err != nil || refuses {
		return errors.Join(err, fmt.Errorf("%s ended: %t", harness.PeerName(victim), refuses))
	}
	if err := t.PowerLoss(nil, victim); err != nil {
		return err
	}
	after, err := inspect(ctx, raft)
	if err == nil && before.Newer(after) {
		err = fmt.Errorf("%s had entry %d of term %d, and lost it with its power: its log ends at %d of term %d", harness.PeerName(victim), before.LastIndex, before.LastTerm, after.LastIndex, after.LastTerm)
	}
	return err
}

// slowness is between a quarter of most milliseconds and all.
func (t *Target) slowness(most int) time.Duration {
	return time.Duration(most/4+t.Random.IntN(most*3/4)) * time.Millisecond
}

// suffering has the disks of peers suffer from a fault, during which everybody goes on.
func (t *Target) suffering(fault faultfs.Fault, victims ...int) Harm {
	hits := make([]uint64, len(victims))
	for k, i := range victims {
		hits[k] = t.Disk(i).Hit()
		t.Disk(i).Suffer(fault)
	}
	return Harm{What: fmt.Sprintf("%v: %v", fault, names(victims)), Running: t.peers(), Undo: func(context.Context) error {
		for _, i := range victims {
			t.Disk(i).Suffer(faultfs.Fault{})
		}
		return nil
	}, Bit: func(context.Context) (idle error) {
		for k, i := range victims {
			if t.Disk(i).Hit() == hits[k] {
				idle = errors.Join(idle, fmt.Errorf("the disk of %s was not asked for anything that failed", harness.PeerName(i)))
			}
		}
		return idle
	}}
}

// silencing is suffering during which the victims answer nothing; nor does anybody when they are a majority.
func (t *Target) silencing(fault faultfs.Fault, victims ...int) Harm {
	harm := t.suffering(fault, victims...)
	harm.Silenced, harm.Running = victims, nil
	if len(victims) == 1 {
		harm.Running = t.peers(victims...)
	}
	return harm
}

// takeover is how long it may take until another leads after the disk of the leader began to hang: two seconds until it
// lets go, and three election timeouts.
const takeover = 2*time.Second + 3*time.Second

// deposing is silencing of a leader, which another one follows in time.
func (t *Target) deposing(fault faultfs.Fault, leader int) Harm {
	begin := t.Recorder.Now()
	harm := t.silencing(fault, leader)
	harm.Running = nil
	harm.Check = func(context.Context) error {
		n := t.Recorder.OKs(begin + takeover)
		for _, i := range t.peers(leader) {
			if n[i] == 0 {
				return fmt.Errorf("%s answered nothing from %s on", harness.PeerName(i), begin+takeover)
			}
		}
		return nil
	}
	return harm
}

func (t *Target) powerless(some *rand.Rand, victims ...int) (Harm, error) {
	harm := Harm{What: fmt.Sprintf("power lost: %v", names(victims)), Silenced: victims, Undo: func(context.Context) error {
		var failed error
		for _, i := range victims {
			failed = errors.Join(failed, up(t.Peer(i)))
		}
		return failed
	}}
	if len(victims) == 1 {
		harm.Running = t.peers(victims...)
	}
	return harm, t.PowerLoss(some, victims...)
}
