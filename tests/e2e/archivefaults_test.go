package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// Two clusters archive into one place, in a store that fails at random all the time: nothing was done, or it was and the answer is an
// error or none at all. Leaders are killed and changed meanwhile. When everything of one cluster is lost, what it had shown as archived is there.
func TestLossWithFailingStore(t *testing.T) {
	t.Parallel()
	store := s3server.Start(t)
	direct := store.Bucket(t, "archive")
	proxy := store.Proxy(t, 1)
	address := strings.Replace(proxy.URL("archive"), "s3://archive?", "s3://archive/shared?", 1)
	direct = strings.Replace(direct, "s3://archive?", "s3://archive/shared?", 1)
	options := harness.Options{Voters: 3, Keepers: 3, Args: []string{"--archive", address}}
	other := options
	other.Voters, other.Args = 1, append(other.Args, "--archive-snapshot-every", "4s")
	c, neighbour := broken(t, options), broken(t, other)
	super, beside := c.client(harness.Superuser), neighbour.client(harness.Superuser)
	load, noise := c.load(super), neighbour.load(beside)
	bad := []s3server.Rule{
		{Fault: s3server.SlowDown, Chance: 0.06},
		{Fault: s3server.Internal, Chance: 0.06},
		{Fault: s3server.ResetBefore, Chance: 0.04},
		{Fault: s3server.ResetAfter, Chance: 0.04, Method: "PUT"},
		{Fault: s3server.FailedAfter, Chance: 0.06, Method: "PUT"},
		{Fault: s3server.TakenAfter, Chance: 0.06, Method: "PUT"},
		{Fault: s3server.Conflict, Chance: 0.04, Method: "PUT"},
		{Fault: s3server.Torn, Chance: 0.06, Method: "LIST"},
		{Fault: s3server.StaleList, Chance: 0.1, Method: "LIST"},
	}
	worse := []s3server.Rule{{Fault: s3server.SlowDown, Chance: 0.97, Method: "PUT"}, {Fault: s3server.FailedAfter, Method: "PUT"}}
	proxy.Do(bad...)
	var points []uint64 // in time
	for round := range 3 {
		load.more(80)
		leader := c.leader(super)
		if round%2 == 0 {
			c.Peer(leader).Kill()
			load.more(40)
			c.must(c.Peer(leader).Start())
		} else {
			c.eventually("another leads", func() error { return super.TransferLeadership(ctx, harness.PeerName((leader+1)%3)) })
		}
		if round == 1 { // no number of attempts helps for a while
			proxy.Do(worse...)
			c.eventually("uploads fail", func() error {
				if a, err := shipping(super); err != nil || a.Error != "" {
					return err
				}
				return errors.New("none did")
			})
			load.more(40)
			proxy.Do(bad...)
			failed, err := shipping(super)
			c.must(err)
			c.eventually("and then it goes on", func() error {
				a, err := shipping(super)
				if err == nil && (a.Shipped <= failed.Shipped || a.Error != "") {
					err = fmt.Errorf("%+v", a)
				}
				if err == nil {
					points = append(points, a.Shipped)
				}
				return err
			})
		}
		c.eventually("all peers serve", func() error { return c.Whole(ctx, super) })
		c.eventually("keys are rotated", func() error { return super.RotateKeys(ctx) })
	}
	shares, theirs := c.recoveryFiles(t), neighbour.recoveryFiles(t)
	load.more(100)
	noise.more(20)
	var safe time.Time
	c.eventually("it ships", func() error {
		asked := time.Now()
		a, err := shipping(super)
		if err == nil && (a.Error != "" || a.BehindSeconds > 5) {
			err = fmt.Errorf("%+v", a)
		}
		if err == nil {
			safe = asked.Add(-time.Duration(a.BehindSeconds * float64(time.Second)))
			t.Logf("shown as lacking: %.1f s; error: %q", a.BehindSeconds, a.Error)
		}
		return err
	})
	load.loseEverything()
	noise.loseEverything()
	if hit, seen := proxy.Hits(); hit == 0 {
		t.Error("no request met a fault")
	} else {
		t.Logf("%d of %d requests met a fault at the end", hit, seen)
	}

	ctl := spikectl(t, nil)
	reading := func(address string, k kept) []string {
		return []string{"--archive", address, "--cluster", fmt.Sprintf("%x", k.requests[0].Cluster), "--share", k.files[0], "--share", k.files[1], "--identity", k.key}
	}
	t.Log(ctl(append([]string{"snapshot", "verify"}, reading(direct, theirs)...)...))
	for _, p := range points {
		ctl(append([]string{"snapshot", "verify", "--at", fmt.Sprint(p)}, reading(direct, shares)...)...)
	}
	proxy.Do(s3server.Rule{Fault: s3server.SlowDown, Chance: 0.1}, s3server.Rule{Fault: s3server.ResetBefore, Chance: 0.1}, s3server.Rule{Fault: s3server.Torn, Chance: 0.1, Method: "GET"})
	ctl(append([]string{"snapshot", "restore", "--data-dir", c.DataDir(0), "--id", harness.PeerName(0), "--peer-address", c.PeerAddress(0), "--yes"}, reading(address, shares)...)...)
	first := c.beginAgain(shares.requests[0], shares.requests[1])
	load.check(first, safe)
}
