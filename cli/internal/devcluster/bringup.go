package devcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cli/internal/share"
	"github.com/spike-ha/spike-ha/secret"
)

// RolePath is the SPIFFE path of an operator's role.
func RolePath(role string) string { return "/spike/pilot/role/" + role }

// BringUp waits until the cluster serves, having given a new one its root key
// and fed one that was stopped its recovery shares. The status it returns is
// that of a cluster whose peers are all unsealed. ctx bounds it.
func (s *Supervisor) BringUp(ctx context.Context) (client.Status, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.fell:
			cancel(errors.New(s.fall))
		case <-s.down:
			cancel(errors.New("it was asked to stop"))
		case <-ctx.Done():
		}
	}()
	status, err := s.bringUp(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
			err = cause
		}
		return status, fmt.Errorf("the cluster did not come up: %w", err)
	}
	s.mu.Lock()
	s.rising = false
	s.mu.Unlock()
	return status, nil
}

func (s *Supervisor) bringUp(ctx context.Context) (status client.Status, err error) {
	cl, done, err := s.Client(ctx, RolePath("superuser"))
	if err != nil {
		return status, err
	}
	defer done()
	s.options.Say("waiting until the peers have formed a cluster …")
	var all []client.Health
	err = Poll(ctx, func() error {
		all, err = healths(ctx, cl)
		for _, h := range all {
			switch {
			case !h.Formed:
				return fmt.Errorf("%s is not part of a cluster yet", h.Peer)
			case !h.Current:
				return fmt.Errorf("%s has not learnt from a majority of the peers how the cluster stands", h.Peer)
			}
		}
		return err
	})
	if err != nil {
		return status, withReason(ctx, cl, err)
	}
	switch {
	case !all[0].Initialised && !some(all, func(h client.Health) bool { return h.Initialised }):
		s.options.Say("giving it its root key, and the Keepers their shares …")
		// Not to be interrupted: a cluster that has its key and no recovery shares
		// could not be opened again.
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyPatience)
		defer cancel()
		if err := s.initialise(whole); err != nil {
			return status, err
		}
		if err := s.keepShares(whole); err != nil {
			return status, err
		}
	case !some(all, func(h client.Health) bool { return !h.Sealed }):
		s.options.Say("the Keepers have lost their shares, as they do when all stop; opening the cluster with its recovery shares …")
		if err := s.restore(ctx, cl); err != nil {
			return status, err
		}
	}
	s.options.Say("waiting until every peer serves …")
	if status, err = s.Serving(ctx, cl); err != nil {
		return status, err
	}
	if files, _ := share.Files(s.home.path("recovery")); len(files) < status.Shares {
		return status, s.keepShares(ctx) // lost, or cut short by a crash
	}
	return status, nil
}

// withReason adds to the failure of a cluster that had its time what a peer that
// takes no part says of itself.
func withReason(ctx context.Context, cl *client.Client, err error) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	status, _ := cl.Status(ctx)
	for _, p := range status.Peers {
		if p.State == "forming" && p.Reason != "" {
			return fmt.Errorf("%w: %s", err, p.Reason)
		}
	}
	return err
}

// pollEvery is the pause between two looks.
const pollEvery = 50 * time.Millisecond

// keyPatience bounds the making of the key and the export of its shares.
const keyPatience = 30 * time.Second

// Serving waits until all peers that run are unsealed, follow one leader and have the
// Keepers' shares in place.
func (s *Supervisor) Serving(ctx context.Context, cl *client.Client) (status client.Status, err error) {
	err = Poll(ctx, func() error {
		if status, err = cl.Status(ctx); err != nil {
			return err
		}
		if status.Leader == "" {
			return errors.New("it has no leader")
		}
		for _, p := range status.Peers {
			switch {
			case !p.Reachable:
				return fmt.Errorf("%s does not answer", p.ID)
			case p.Sealed:
				return fmt.Errorf("%s is sealed: %s", p.ID, p.Reason)
			}
		}
		for _, k := range status.Keepers {
			if k.Health != "good" {
				return fmt.Errorf("%s: %s", k.Name, k.Health)
			}
		}
		return nil
	})
	return status, err
}

func (s *Supervisor) initialise(ctx context.Context) error {
	cl, done, err := s.Client(ctx, "/spike/bootstrap")
	if err != nil {
		return err
	}
	defer done()
	if err := cl.Init(ctx, client.InitRequest{}); err != nil && secret.CodeOf(err) != secret.CodeConflict {
		return err
	}
	return nil
}

// keepShares exports the recovery shares into the directory.
func (s *Supervisor) keepShares(ctx context.Context) error {
	cl, done, err := s.Client(ctx, RolePath("recover"))
	if err != nil {
		return err
	}
	defer done()
	var answer share.Export
	if err := cl.Wire(ctx, client.WireRecover, "", struct{}{}, &answer); err != nil {
		return err
	}
	for id, shard := range answer.Shards {
		_, err := share.Write(s.home.path("recovery"), id, shard, true)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Supervisor) readShares() (list []share.Share, err error) {
	files, err := share.Files(s.home.path("recovery"))
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		one, err := share.Parse(string(raw))
		clear(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("every peer and Keeper was stopped, and there are no recovery shares in %s: this cluster cannot be opened any more; remove its directory to start anew", s.home.path("recovery"))
	}
	return list, nil
}

// restore feeds the shares back until the cluster is open. The leader collects
// them: should another one take over, all are given again.
func (s *Supervisor) restore(ctx context.Context, operator *client.Client) error {
	shares, err := s.readShares()
	if err != nil {
		return err
	}
	defer clear(shares)
	cl, done, err := s.Client(ctx, RolePath("restore"))
	if err != nil {
		return err
	}
	defer done()
	return Poll(ctx, func() error {
		for _, one := range shares {
			var answer struct {
				Restored bool `json:"restored"`
			}
			err := cl.Wire(ctx, client.WireRestore, "", one, &answer)
			if answer.Restored {
				return nil
			}
			if err != nil && secret.CodeOf(err) != secret.CodeInvalid { // given before, perhaps
				return err
			}
		}
		if all, err := healths(ctx, operator); err == nil && some(all, func(h client.Health) bool { return !h.Sealed }) {
			return nil
		}
		return errors.New("the recovery shares did not open the cluster: are they of another one?")
	})
}

func healths(ctx context.Context, cl *client.Client) (list []client.Health, err error) {
	for i := range cl.Peers() {
		h, err := cl.Health(ctx, i)
		if err != nil {
			return list, err
		}
		list = append(list, h)
	}
	return list, nil
}

func some(list []client.Health, is func(client.Health) bool) bool {
	for _, h := range list {
		if is(h) {
			return true
		}
	}
	return false
}

// Poll tries again until check returns nil or ctx ends; then it returns what
// check said last.
func Poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		err := check()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last
		}
	}
}
