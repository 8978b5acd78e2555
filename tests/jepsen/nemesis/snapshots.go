package nemesis

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
)

// snapshots are taken every second or so, while a peer is cut off until only a snapshot can bring it up again. The old leader has
// entries that nobody else has: what it is sent goes on top of another past.
func snapshots() []Nemesis {
	often := func(o *harness.Options) {
		o.Args = append(o.Args, "--snapshot-bytes", "65536")
		o.Supervise = true // a peer that is sent a snapshot of before ends, and goes on after a restart
	}
	cut := func(who func(t *Target, leader int) int) func(context.Context, *Target) (Harm, error) {
		return led(func(ctx context.Context, t *Target, leader int) (Harm, error) {
			victim := who(t, leader)
			before, err := t.installed(ctx, victim)
			if err != nil {
				return Harm{}, err
			}
			t.Links.Partition([]int{victim}, t.peers(victim))
			return Harm{What: "cut off until it needs a snapshot: " + harness.PeerName(victim), Silenced: []int{victim}, Running: t.peers(victim), Undo: t.heal, Bit: func(ctx context.Context) error {
				return harness.Poll(ctx, func() error {
					if n, err := t.installed(ctx, victim); err != nil || n <= before {
						return fmt.Errorf("%s installed %d snapshots before, and %d now: %v", harness.PeerName(victim), before, n, err)
					}
					return nil
				})
			}}, nil
		})
	}
	return []Nemesis{
		{Name: "snapshot-follower", About: "snapshots every second, and a follower cut off until it needs one", Hold: 8 * time.Second, Prepare: often,
			Do: cut(func(t *Target, leader int) int { return t.voters(leader)[0] })},
		{Name: "snapshot-leader", About: "snapshots every second, and the leader, with entries of its own, cut off until it needs one", Hold: 8 * time.Second, Prepare: often,
			Do: cut(func(_ *Target, leader int) int { return leader })},
	}
}

// installed is how many snapshots of a leader a peer has installed since it started.
func (t *Target) installed(ctx context.Context, peer int) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Metrics(peer)+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), `spike_raft_snapshots_total{kind="installed"} `); found {
			_, err := fmt.Sscan(value, &n)
			return n, err
		}
	}
	return 0, fmt.Errorf("%s says nothing of snapshots", harness.PeerName(peer))
}
