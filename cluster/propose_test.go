package cluster

import (
	"context"
	"testing"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

// What another peer hands over for the log is checked like one's own: its
// cluster, its size, its number. Nothing of a message that is refused is proposed.
func TestForwardedProposalsAreChecked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	l, f := c.leader(), c.follower()
	c.propose(f, "before")
	conn, err := f.peers.get(l.cfg.ID)
	must(t, err)
	foreign, other := f.scope(), f.scope()
	foreign.ClusterId = make([]byte, 16)
	other.Incarnation++
	many := make([][]byte, maxBatchCommands+1)
	for i := range many {
		many[i] = []byte("many")
	}
	for name, tc := range map[string]struct {
		scope    *peerpb.Scope
		commands [][]byte
		want     peerpb.Outcome
	}{
		"another cluster":     {foreign, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"another incarnation": {other, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"no cluster":          {nil, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"too large":           {f.scope(), [][]byte{[]byte("small"), make([]byte, l.cfg.MaxCommandBytes+1)}, peerpb.Outcome_OUTCOME_TOO_LARGE},
		"too many":            {f.scope(), many, peerpb.Outcome_OUTCOME_TOO_LARGE},
		"good":                {f.scope(), [][]byte{[]byte("good")}, peerpb.Outcome_OUTCOME_APPLIED},
	} {
		resp, err := peerpb.NewPeerClient(conn).Propose(context.Background(), &peerpb.ProposeRequest{Scope: tc.scope, Commands: tc.commands})
		if err != nil || len(resp.GetResults()) != len(tc.commands) {
			t.Errorf("%s: %d answers, %v", name, len(resp.GetResults()), err)
			continue
		}
		for _, r := range resp.GetResults() {
			if r.GetOutcome() != tc.want {
				t.Errorf("%s: %v, want %v", name, r.GetOutcome(), tc.want)
			}
		}
	}
	c.propose(f, "after")
	for _, got := range c.same() {
		if got != "before" && got != "good" && got != "after" {
			t.Errorf("applied %.20q", got)
		}
	}
}
