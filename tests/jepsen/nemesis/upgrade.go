package nemesis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/internal/process"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// upgrades replace the version before by this one, once in a run: not for soaks, in which other nemeses count on what the version
// before has not.
func upgrades() []Nemesis {
	return []Nemesis{{Name: "upgrade", About: "peers and Keepers of the version before are replaced one by one by this version, each version leading the other", Faults: 1, Do: upgrade,
		Prepare: func(o *harness.Options) {
			o.Versions = map[string]string{}
			for i := range o.Voters + o.Learners {
				o.Versions[harness.PeerName(i)] = filepath.Join(o.Binaries, "previous")
			}
			for i := range o.Keepers {
				o.Versions[harness.KeeperName(i)] = filepath.Join(o.Binaries, "previous")
			}
		}}}
}

// upgrade returns once the format level has risen, which no peer allows before all are upgraded.
func upgrade(ctx context.Context, t *Target) (Harm, error) {
	s, err := t.Operator.Status(ctx)
	if err != nil {
		return Harm{}, err
	}
	if s.Level >= fsm.Level {
		return Harm{}, fmt.Errorf("the format level is %d already: this is not the version before", s.Level)
	}
	for i := range t.Peers() {
		if err := replace(t.Peer(i)); err != nil {
			return Harm{}, err
		}
		if err := t.serving(ctx); err != nil {
			return Harm{}, err
		}
		// The new ones lead the old ones, then the last old voter the new ones.
		leader := i
		if i == t.Voters-2 {
			leader = t.Voters - 1
		}
		if leader < t.Voters {
			if err := t.leads(ctx, leader); err != nil {
				return Harm{}, err
			}
		}
		s, err := t.Operator.Status(ctx)
		if err != nil {
			return Harm{}, err
		}
		if i < t.Peers()-1 && s.Level >= fsm.Level {
			return Harm{}, fmt.Errorf("the format level is %d, with %s not upgraded", s.Level, harness.PeerName(t.Peers()-1))
		}
	}
	for i := range t.Keepers() {
		if err := replace(t.Keeper(i)); err != nil {
			return Harm{}, err
		}
		if err := t.shared(ctx); err != nil {
			return Harm{}, err
		}
	}
	return Harm{What: fmt.Sprintf("all upgraded, from format level %d", s.Level), Running: t.peers()}, harness.Poll(ctx, func() error {
		s, err := t.Operator.Status(ctx)
		if err == nil && s.Level != fsm.Level {
			err = fmt.Errorf("all are upgraded, and the format level is %d", s.Level)
		}
		return err
	})
}

// replace stops a process of the version before, and starts this version of it.
func replace(p *process.Child) error {
	if err := p.Stop(nil); err != nil {
		return err
	}
	p.Binary = filepath.Join(filepath.Dir(filepath.Dir(p.Binary)), filepath.Base(p.Binary))
	return p.Start()
}

// serving waits until all peers serve.
func (t *Target) serving(ctx context.Context) error {
	return harness.Poll(ctx, func() error {
		limit, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s, err := t.Operator.Status(limit)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if !p.Reachable || p.Sealed {
				return fmt.Errorf("%s is %s, sealed %v: %s", p.ID, p.State, p.Sealed, p.Reason)
			}
		}
		return nil
	})
}

// leads has a voter lead.
func (t *Target) leads(ctx context.Context, want int) error {
	return harness.Poll(ctx, func() error {
		leader, err := t.Leader(ctx)
		if err != nil || leader == want {
			return err
		}
		limit, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return errors.Join(fmt.Errorf("%s leads, not %s", harness.PeerName(leader), harness.PeerName(want)), t.Operator.TransferLeadership(limit, harness.PeerName(want)))
	})
}

// shared waits until all Keepers have their shares. It looks once a second: Keepers do not give shares away at any pace.
func (t *Target) shared(ctx context.Context) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	return harness.Poll(ctx, func() error {
		<-look.C
		s, err := t.Operator.Status(ctx)
		if err != nil {
			return err
		}
		for _, k := range s.Keepers {
			if k.Health != "good" {
				return fmt.Errorf("%s: %s", k.Name, k.Health)
			}
		}
		return nil
	})
}
