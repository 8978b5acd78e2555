package node

import (
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// staleAfter is for how long a staging area may stand still before the leader clears it.
const staleAfter = 5 * time.Minute

// tidying lets the leader clear the staging area of a restore whose peer died.
func (n *Node) tidying() {
	var s stale
	for n.sleep(rpcTimeout) {
		if err := n.clearStale(&s, time.Now()); err != nil {
			n.log.Info("the staging area of a restore that does not go on could not be cleared; it is tried again", "reason", err)
		}
	}
}

// stale is a staging area as it was seen, and since when.
type stale struct {
	seen  fsm.Staged
	since time.Time
}

func (n *Node) clearStale(s *stale, now time.Time) error {
	staged, ok := n.machine.View().Staged()
	if !ok || !n.leads() || staged != s.seen || s.since.IsZero() {
		s.seen, s.since = staged, now
		return nil
	}
	if now.Sub(s.since) < staleAfter {
		return nil
	}
	ctx, cancel := n.step()
	defer cancel()
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_AbandonRestore{AbandonRestore: &fsmpb.AbandonRestore{Id: staged.ID[:]}}})
	if err == nil && result.Code == fsmpb.Code_OK {
		n.log.Warn("a restore into the cluster did not go on; what was staged of it is given up", "records", staged.Records, "of", staged.Expected)
	}
	return err
}
