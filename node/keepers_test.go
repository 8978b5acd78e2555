package node_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

func verified(cl *client.Client, good int) error {
	a, err := cl.VerifyKeepers(ctx)
	if err == nil && a.Good != good {
		err = fmt.Errorf("%d are good: %+v", a.Good, a.Keepers)
	}
	return err
}

// Each unsealed peer has the Keepers prove their shares, and a sealed one says that it cannot; all tell who asked.
func TestKeepersAreProven(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	for i := range 3 {
		cl := c.Client(nodetest.Role("operator"), i)
		nodetest.Eventually(t, "all are proven", func() error { return verified(cl, 3) })
	}
	if err := verified(c.Client("/workload/web"), 3); secret.CodeOf(err) != secret.CodeDenied {
		t.Errorf("a workload: %v", err)
	}
	c.StopKeeper(2)
	cl := c.Client(nodetest.Role("admin"))
	a, err := cl.VerifyKeepers(ctx)
	if err != nil || a.Good != 2 || a.Keepers[2].Health != "unreachable" || a.Keepers[2].LastContact == nil || a.Keepers[2].LastContact.IsZero() {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err = cl.Keepers(ctx); err != nil || len(a.ShareSet) != 32 || a.Shares != 3 || a.Threshold != 2 {
		t.Fatalf("%+v, %v", a, err)
	}
	for _, k := range a.Keepers[:2] {
		asked := map[string]bool{}
		for _, q := range k.Askers {
			asked[strings.TrimPrefix(q.Peer, "spiffe://"+nodetest.Domain+"/spike/nexus/")+" "+q.Op] = q.Count > 0
		}
		if k.Started == nil || k.Version == "" || len(k.Holds) != 1 || k.Holds[0].Set != a.ShareSet || !k.Holds[0].Current || !asked["nexus-1 prove"] || !asked["nexus-2 prove"] || !asked["nexus-3 prove"] {
			t.Errorf("%+v", k)
		}
	}
	c.StartKeeper(2)
	nodetest.Eventually(t, "all are proven", func() error { return verified(cl, 3) })
}

// A peer without keys cannot have anything proven: it says so, and shows what the Keepers say.
func TestSealedPeerCannotHaveKeepersProven(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	cl := c.Client(nodetest.Role("superuser"))
	nodetest.Eventually(t, "all are proven", func() error { return verified(cl, 3) })
	if err := cl.Seal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	_, err := cl.VerifyKeepers(ctx)
	if secret.CodeOf(err) != secret.CodeSealed || !strings.Contains(err.Error(), "unsealed") {
		t.Errorf("verify: %v", err)
	}
	a, err := cl.Keepers(ctx)
	if err != nil || a.Good != 0 || a.Keepers[0].Health != "held" {
		t.Errorf("%+v, %v", a, err)
	}
	if s := c.Node(0).Status(ctx); len(s.Alarms) != 0 || s.Keepers[0].Health != "held" {
		t.Errorf("all say that they hold their shares: %+v", s)
	}
}

// Fewer good Keepers than the threshold and one more are an alarm, from when it begins until it is over.
func TestAlarmForFewKeepers(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	alarm := func(words string) func() error {
		return func() error {
			s := c.Node(0).Status(ctx)
			switch {
			case words == "" && len(s.Alarms) == 0:
				return nil
			case words != "" && len(s.Alarms) == 1 && s.Alarms[0].Kind == "keepers-few" && strings.Contains(s.Alarms[0].Detail, words) && !s.Alarms[0].Since.IsZero():
				return nil
			}
			return fmt.Errorf("%+v", s.Alarms)
		}
	}
	nodetest.Eventually(t, "no alarm while all are good", alarm(""))
	c.StopKeeper(0)
	nodetest.Eventually(t, "an alarm", alarm("with one less, a peer that restarts stays sealed"))
	since := c.Node(0).Status(ctx).Alarms[0].Since
	c.StopKeeper(1)
	nodetest.Eventually(t, "a worse one", alarm("a peer that restarts stays sealed; restart none"))
	if again := c.Node(0).Status(ctx).Alarms[0].Since; !again.Equal(since) {
		t.Errorf("it began at %s, and then at %s", since, again)
	}
	c.StartKeeper(0)
	c.StartKeeper(1)
	nodetest.Eventually(t, "its end", alarm(""))
}

// Where every share is needed the alarm says that it stays.
func TestAlarmWhereEveryShareIsNeeded(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Keepers: 1})
	nodetest.Eventually(t, "the alarm", func() error {
		if s := c.Node(0).Status(ctx); len(s.Alarms) != 1 || !strings.Contains(s.Alarms[0].Detail, "every share is needed") {
			return fmt.Errorf("%+v", s.Alarms)
		}
		return nil
	})
}

// However often the status is asked for, the Keepers are not asked so often that they refuse.
func TestStatusDoesNotTireKeepers(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1})
	cl := c.Client(nodetest.Role("superuser"))
	nodetest.Eventually(t, "all are proven", func() error { return verified(cl, 3) })
	for range 300 {
		for _, k := range c.Node(0).Status(ctx).Keepers {
			if k.Health != "good" {
				t.Fatalf("%+v", k)
			}
		}
	}
	a, err := cl.Keepers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range a.Keepers {
		for _, q := range k.Askers {
			if q.Refused > 0 || q.Op == "prove" && q.Count > 150 {
				err = errors.Join(err, fmt.Errorf("%s: %+v", k.Name, q))
			}
		}
	}
	if err != nil {
		t.Error(err)
	}
}
