package nemesis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

// links are slow, lossy or narrow, or cut for good in one direction; and peers move.
func links() []Nemesis {
	return []Nemesis{
		{Name: "links-slow", About: "everything between peers takes 75 ms more, or 50 less or more than that", Hold: 6 * time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			all := pairs(t.peers(), t.peers())
			for _, p := range all {
				t.Links.Slow(p[0], p[1], 75*time.Millisecond, 50*time.Millisecond)
			}
			return Harm{What: "all links are slow", Running: t.peers()}.through(t, all, func(n harness.Traffic) error {
				if n.Slowed == 0 || n.Waited/time.Duration(n.Slowed) < 25*time.Millisecond {
					return fmt.Errorf("%d packets waited %s together", n.Slowed, n.Waited)
				}
				return nil
			}), nil
		}},
		{Name: "links-lossy", About: "half of the packets from and to a voter are lost", Hold: 6 * time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			victim := t.voters()[0]
			both := slices.Concat(pairs([]int{victim}, t.peers()), pairs(t.peers(), []int{victim}))
			for _, p := range both {
				t.Links.Lose(p[0], p[1], 50)
			}
			return Harm{What: "half is lost: " + harness.PeerName(victim)}.through(t, both, func(n harness.Traffic) error {
				if n.Lost == 0 {
					return errors.New("nothing was lost")
				}
				return nil
			}), nil
		}},
		{Name: "links-narrow", About: "a follower that lacks what the others have compacted gets 1 Mbit/s", Hold: 8 * time.Second,
			Prepare: func(o *harness.Options) { o.Args = append(o.Args, "--snapshot-bytes", "65536") },
			Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
				victim := t.voters(leader)[0]
				to := pairs(t.peers(victim), []int{victim})
				if err := down(t.Peer(victim)); err != nil {
					return Harm{}, err
				}
				select { // as long as it takes to compact more than once
				case <-ctx.Done():
				case <-time.After(4 * time.Second):
				}
				for _, p := range to {
					t.Links.Narrow(p[0], p[1], 1_000_000/8)
				}
				harm := Harm{What: "narrow: " + harness.PeerName(victim), Running: t.peers(victim)}
				return harm.through(t, pairs([]int{leader}, []int{victim}), func(n harness.Traffic) error {
					if n.Slowed == 0 {
						return errors.New("nothing had to wait")
					}
					return nil
				}), up(t.Peer(victim))
			})},
		{Name: "mute-forever", About: "a follower hears, and cannot send, all the time; the others keep their pace", Hold: coreHold, Do: core(func(t *Target, victim, other int) { t.Links.Cut(victim, other) })},
		{Name: "deaf-forever", About: "a follower sends, and hears nobody, all the time; the others keep their pace", Hold: coreHold, Do: core(func(t *Target, victim, other int) { t.Links.Cut(other, victim) })},
		{Name: "readdress", About: "all peers stop, and come back at other addresses", Hold: time.Second, Do: func(_ context.Context, t *Target) (Harm, error) {
			for _, i := range t.peers() {
				if err := down(t.Peer(i)); err != nil {
					return Harm{}, err
				}
			}
			if err := t.Readdress(); err != nil {
				return Harm{}, err
			}
			for _, i := range t.peers() {
				if err := up(t.Peer(i)); err != nil {
					return Harm{}, err
				}
			}
			return Harm{What: "all peers at other addresses", Check: func(ctx context.Context) error {
				limit, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				if _, err := t.Leader(limit); err != nil {
					return fmt.Errorf("within a minute nobody leads: %w", err)
				}
				return nil
			}}, nil
		}},
		{Name: "transfer-kill", About: "leadership goes to a voter that is killed on the way", Do: led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			target := t.voters(leader)[0]
			over := make(chan struct{})
			limit, cancel := context.WithTimeout(ctx, 10*time.Second)
			go func() {
				defer close(over)
				defer cancel()
				_ = t.Operator.TransferLeadership(limit, harness.PeerName(target)) // it may be done before, or fail
			}()
			select { // a round or two of messages
			case <-over:
			case <-time.After(time.Duration(t.Random.IntN(20)) * time.Millisecond):
			}
			err := down(t.Peer(target))
			return Harm{What: "killed on the way to lead: " + harness.PeerName(target), Silenced: []int{target}, Running: t.peers(target), Undo: func(context.Context) error {
				<-over
				return up(t.Peer(target))
			}}, err
		})},
	}
}

// pairs are all links from some peers to others.
func pairs(from, to []int) (list [][2]int) {
	for _, f := range from {
		for _, t := range to {
			if f != t {
				list = append(list, [2]int{f, t})
			}
		}
	}
	return list
}

// through has a harm undone by healing all links, after what else undoes it. It bit if it shows in what came over some of them since now, taken together.
func (h Harm) through(t *Target, links [][2]int, shows func(harness.Traffic) error) Harm {
	sum := func() (n harness.Traffic, failed error) {
		for _, p := range links {
			one, err := t.Links.Traffic(p[0], p[1])
			failed = errors.Join(failed, err)
			n.Stopped, n.Slowed, n.Lost = n.Stopped+one.Stopped, n.Slowed+one.Slowed, n.Lost+one.Lost
			n.Bytes, n.Waited = n.Bytes+one.Bytes, n.Waited+one.Waited
		}
		return n, failed
	}
	before, failed := sum()
	var since harness.Traffic
	rest := h
	h.Undo = func(ctx context.Context) error {
		now, err := sum()
		since.Stopped, since.Slowed, since.Lost = now.Stopped-before.Stopped, now.Slowed-before.Slowed, now.Lost-before.Lost
		since.Bytes, since.Waited = now.Bytes-before.Bytes, now.Waited-before.Waited
		return errors.Join(failed, err, rest.undo(ctx), t.heal(ctx))
	}
	h.Bit = func(context.Context) error { return shows(since) }
	return h
}

// coreHold is how long a healthy core is measured, and coreBefore how long before.
const (
	coreHold   = 10 * time.Second
	coreBefore = 5 * time.Second
	coreTerms  = 5 // that may pass meanwhile
)

// core cuts one direction of every link of a follower, and holds the others to the pace that they had before, or have afterwards, since the
// machine may have other things to do: nine tenths of it at least; and no election after another. What clients of those peers did counts.
func core(cut func(t *Target, victim, other int)) func(context.Context, *Target) (Harm, error) {
	return led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
		victim := t.voters(leader)[0]
		rest := t.peers(victim)
		pace := func(since time.Duration) float64 {
			n, done := t.Recorder.OKs(since), 0
			for _, i := range rest {
				done += n[i]
			}
			return float64(done) / (t.Recorder.Now() - since).Seconds()
		}
		term := func(ctx context.Context) (highest uint64, err error) {
			limit, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			status, err := t.Operator.Status(limit)
			for _, p := range status.Peers {
				highest = max(highest, p.Term)
			}
			return highest, err
		}
		usual := func(ctx context.Context) (float64, error) {
			begin := t.Recorder.Now()
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(coreBefore):
				return pace(begin), nil
			}
		}
		before, err := usual(ctx)
		if err != nil {
			return Harm{}, err
		}
		was, err := term(ctx)
		if err != nil {
			return Harm{}, err
		}
		for _, i := range rest {
			cut(t, victim, i)
		}
		since := t.Recorder.Now()
		what := "one way for good: " + harness.PeerName(victim)
		var during float64 // 0: another harm was done on top of it
		return Harm{What: what, Silenced: []int{victim}, Running: rest,
			Check: func(ctx context.Context) error {
				during = pace(since)
				is, err := term(ctx)
				if err == nil && is > was+coreTerms {
					err = fmt.Errorf("%s: terms went from %d to %d", what, was, is)
				}
				return err
			},
			After: func(ctx context.Context) error {
				if during == 0 {
					return nil
				}
				after, err := usual(ctx)
				if err == nil && during < 0.9*min(before, after) {
					err = fmt.Errorf("%s: the others answered %.0f operations a second, %.0f before and %.0f after", what, during, before, after)
				}
				return err
			},
		}.through(t, slices.Concat(pairs([]int{victim}, rest), pairs(rest, []int{victim})), stopped), nil
	})
}
