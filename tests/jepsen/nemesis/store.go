package nemesis

import (
	"context"
	"fmt"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// stores are what an S3 store does to those who archive in it. Writes go on without it; once it is well, all must be there.
func stores() []Nemesis {
	sick := func(name, about string, rules ...s3server.Rule) Nemesis {
		return Nemesis{Name: name, About: about, Hold: 6 * time.Second,
			Prepare: func(o *harness.Options) {
				o.Store = true
				o.Args = append(o.Args, "--archive-snapshot-every", "5s")
			},
			Do: func(_ context.Context, t *Target) (Harm, error) { return t.sicken(about, rules), nil }}
	}
	return []Nemesis{
		sick("store-down", "nobody gets through to the store", s3server.Rule{Fault: s3server.ResetBefore}),
		sick("store-slow", "the store answers late, or never, also when it was done",
			s3server.Rule{Fault: s3server.Hang, Chance: 0.1},
			s3server.Rule{Fault: s3server.HangAfter, Chance: 0.1},
			s3server.Rule{Fault: s3server.Late}),
		sick("store-fails", "the store answers with errors or not at all, also when it was done",
			s3server.Rule{Fault: s3server.SlowDown, Chance: 0.1},
			s3server.Rule{Fault: s3server.Internal, Chance: 0.1},
			s3server.Rule{Fault: s3server.ResetBefore, Chance: 0.1},
			s3server.Rule{Fault: s3server.ResetAfter, Chance: 0.2},
			s3server.Rule{Fault: s3server.FailedAfter, Chance: 0.3},
			s3server.Rule{Fault: s3server.Conflict, Chance: 0.2, Method: "PUT"},
			s3server.Rule{Fault: s3server.TakenAfter, Chance: 0.4, Method: "PUT"}),
		sick("store-lies", "what is read from the store is not what is there, and its lists are old",
			s3server.Rule{Fault: s3server.StaleList, Chance: 0.5, Method: "LIST"},
			s3server.Rule{Fault: s3server.Short, Chance: 0.3, Method: "LIST"},
			s3server.Rule{Fault: s3server.Flipped, Chance: 0.4, Method: "GET"},
			s3server.Rule{Fault: s3server.Short, Chance: 0.4, Method: "GET"},
			s3server.Rule{Fault: s3server.Torn, Chance: 0.4, Method: "GET"}),
	}
}

// sicken has the store do what rules say. Few requests go there, and most of them write: meanwhile leadership moves, so that
// shippers begin, and drills are asked for, which may fail.
func (t *Target) sicken(what string, rules []s3server.Rule) Harm {
	end, hit := t.Store.Add(t.Random.Uint64(), rules...)
	harm := t.again(what, 0, 3*time.Second, func(ctx context.Context, i int) bool {
		if i%4 == 0 {
			_ = t.Operator.TransferLeadership(ctx, harness.PeerName(i/4%t.Voters))
		} else {
			_, _ = t.Operator.DrillArchive(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		return true
	})
	quiet := harm.Undo
	harm.Undo = func(ctx context.Context) error {
		end()
		return quiet(ctx)
	}
	harm.Running = t.peers()
	harm.Bit = func(context.Context) error {
		if n := hit(); n < 3 {
			return fmt.Errorf("%s: only %d requests met that", what, n)
		}
		return nil
	}
	harm.After = t.archived
	return harm
}

// archived waits until all that any peer has applied now is said to be in the archive, and has the cluster prove that it is.
func (t *Target) archived(ctx context.Context) error {
	want := uint64(0)
	if err := harness.Poll(ctx, func() error {
		s, err := t.Operator.Status(ctx)
		if err != nil {
			return err
		}
		if want == 0 {
			for _, p := range s.Peers {
				want = max(want, p.AppliedIndex)
			}
		}
		return shipped(s, want)
	}); err != nil {
		return err
	}
	var drill client.DrillAnswer
	if err := harness.Poll(ctx, func() (err error) { drill, err = t.Operator.DrillArchive(ctx); return err }); err != nil {
		return fmt.Errorf("a drill of the archive could not be done: %w", err)
	}
	if !drill.OK || drill.Index < want {
		return fmt.Errorf("the archive is said to go up to index %d, and a drill on %s came from a snapshot at %d to %d: %s", want, drill.Peer, drill.Snapshot, drill.Index, drill.Reason)
	}
	return nil
}

// shipped is nil when a peer ships without an error, and says that all up to an index is in the archive.
func shipped(s client.Status, index uint64) error {
	failed := fmt.Errorf("nobody ships to the archive")
	for _, p := range s.Peers {
		if a := p.Archive; a != nil && a.Active {
			if a.Error == "" && a.Shipped >= index {
				return nil
			}
			failed = fmt.Errorf("%s has shipped up to index %d of %d: %s", p.ID, a.Shipped, index, a.Error)
		}
	}
	return failed
}
