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
	c.propose(c.follower(), "before")
	many := make([][]byte, maxBatchCommands+1)
	for i := range many {
		many[i] = []byte("many")
	}
	for name, tc := range map[string]struct {
		scope    func(*peerpb.Scope) *peerpb.Scope
		commands [][]byte
		want     peerpb.Outcome
	}{
		"another cluster": {func(s *peerpb.Scope) *peerpb.Scope {
			s.ClusterId = make([]byte, 16)
			return s
		}, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"another incarnation": {func(s *peerpb.Scope) *peerpb.Scope {
			s.Incarnation++
			return s
		}, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"no cluster": {func(*peerpb.Scope) *peerpb.Scope { return nil }, [][]byte{[]byte("foreign")}, peerpb.Outcome_OUTCOME_NOT_PROPOSED},
		"too large":  {nil, [][]byte{[]byte("small"), make([]byte, c.leader().cfg.MaxCommandBytes+1)}, peerpb.Outcome_OUTCOME_TOO_LARGE},
		"too many":   {nil, many, peerpb.Outcome_OUTCOME_TOO_LARGE},
		"good":       {nil, [][]byte{[]byte("good")}, peerpb.Outcome_OUTCOME_APPLIED},
	} {
		// Whoever is asked must lead from before to after; on a busy machine leaders change.
		eventually(t, name, func() bool {
			l, f := c.leader(), c.follower()
			term := l.Status().Term
			conn, err := f.peers.get(l.cfg.ID)
			must(t, err)
			scope := f.scope()
			if tc.scope != nil {
				scope = tc.scope(scope)
			}
			resp, err := peerpb.NewPeerClient(conn).Propose(context.Background(), &peerpb.ProposeRequest{Scope: scope, Commands: tc.commands})
			if s := l.Status(); s.State != Leads || s.Term != term {
				return false
			}
			if err != nil || len(resp.GetResults()) != len(tc.commands) {
				t.Errorf("%s: %d answers, %v", name, len(resp.GetResults()), err)
				return true
			}
			for _, r := range resp.GetResults() {
				if r.GetOutcome() != tc.want {
					t.Errorf("%s: %v, want %v", name, r.GetOutcome(), tc.want)
				}
			}
			return true
		})
	}
	f := c.follower()
	c.propose(f, "after")
	for _, got := range c.same() {
		if got != "before" && got != "good" && got != "after" {
			t.Errorf("applied %.20q", got)
		}
	}
}
