package node

import (
	"context"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// levelEvery is how often a leader looks whether the cluster's level can rise.
const levelEvery = 5 * time.Second

// leveling lets the leader raise the cluster's format level to the lowest that
// its members know, learners included. Every member must have said, just now,
// what it knows: one that is down may come back as the build that it was.
// It rises by itself, as soon as the last member was upgraded, and never falls.
func (n *Node) leveling() {
	for n.sleep(levelEvery) {
		if !n.leads() || n.machine.View().Level() >= fsm.Level {
			continue
		}
		ctx, cancel := n.step()
		if err := n.raiseLevel(ctx); err != nil {
			n.log.Warn("the format level could not be raised; it is tried again", "error", err)
		}
		cancel()
	}
}

func (n *Node) raiseLevel(ctx context.Context) error {
	lowest := uint32(fsm.Level)
	for _, p := range n.askPeers(n.cluster.Status().Members) {
		if !p.Reachable || p.State == string(cluster.Forming) {
			return nil
		}
		lowest = min(lowest, max(p.Level, fsm.FirstLevel)) // builds of the first level do not say
	}
	if view := n.machine.View(); !view.Founded() || lowest <= view.Level() {
		return nil
	}
	result, err := n.propose(ctx, &fsmpb.Command{Op: &fsmpb.Command_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: lowest}}})
	if err == nil && result.Code == fsmpb.Code_OK {
		n.log.Info("all members know a newer format level, which is the cluster's now", "level", lowest)
	}
	return err
}
