package cluster

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A follower does not wait for the answer of a leader that fell silent once
// there is another one: what it forwarded has an unknown outcome then, and what
// comes after it is not held up.
func TestSilentLeaderHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(_ string, cfg *Config) { cfg.Timing.Patience = time.Hour }
	c.startAll()
	old := c.leader()
	hold := make(chan struct{})
	sm := c.sms[old.cfg.ID]
	sm.mu.Lock()
	sm.hold = hold // it orders, and never says that it has
	sm.mu.Unlock()
	defer close(hold)

	follower := c.follower()
	answers := make(chan error, 2*inFlight)
	for range cap(answers) {
		go func() {
			_, err := follower.Propose(context.Background(), []byte("forwarded"))
			answers <- err
		}()
	}
	eventually(t, "the leader has something that it does not answer", func() bool {
		return old.Status().LastIndex > old.Applied() && c.sms[follower.cfg.ID].has("forwarded")
	})
	must(t, old.TransferLeadership(t.Context(), ""))
	for range cap(answers) {
		select {
		case err := <-answers:
			if err != nil && !errors.Is(err, ErrUnknownOutcome) {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a proposal waits for the peer that led")
		}
	}
}
