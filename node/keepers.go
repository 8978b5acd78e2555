package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/keeper"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

const (
	// keepersEvery is how often the peer that looks after the Keepers does so: it
	// costs each of them one proof, and a restarted one has its share again that soon.
	keepersEvery = 2 * time.Second
	// keeperLookTimeout bounds a look at all Keepers; of one that hangs it says so.
	keeperLookTimeout = 2 * time.Second
	// keeperLookFresh is how old a look may be that is shown to whoever asks for the
	// status: those who ask often must not use up what Keepers grant this peer.
	keeperLookFresh = time.Second
)

// keeperLooks are this peer's looks at the Keepers, which all who want one share.
// Safe for concurrent use.
type keeperLooks struct {
	mu      sync.Mutex // guards the rest
	running *keeperLook
	last    *keeperLook          // that has come to its end
	contact map[string]time.Time // when each Keeper answered last
	few     time.Time            // since when too few are good; zero: enough are
}

// keeperLook is what became of one look; its results are there once done is closed.
type keeperLook struct {
	began   time.Time
	done    chan struct{}
	set     seal.ShareSet
	sealed  bool // this peer had no keys to have anything proven with
	reports []seal.KeeperReport
	err     error
}

// good is how many Keepers certainly hold their share, or while this peer is
// sealed, how many say so.
func (l *keeperLook) good() int {
	good := seal.Count(l.reports)
	for _, r := range l.reports {
		if r.Health == seal.Held {
			good++
		}
	}
	return good
}

// stands says whether l is of the share set and the keys that are now.
func (n *Node) stands(l *keeperLook) bool {
	set := sealState(n.machine.View()).Committed
	return l.err == nil && set != nil && set.ID == l.set.ID && l.sealed == n.seal.Sealed()
}

// lookAtKeepers returns a look that began at or after since: the last one if it
// still stands, the one under way, or a new one.
func (n *Node) lookAtKeepers(ctx context.Context, since time.Time) (*keeperLook, error) {
	for {
		n.looks.mu.Lock()
		if l := n.looks.last; l != nil && !l.began.Before(since) && n.stands(l) {
			n.looks.mu.Unlock()
			return l, l.err
		}
		l := n.looks.running
		if l == nil {
			l = &keeperLook{began: n.now(), done: make(chan struct{})}
			n.looks.running = l
			go n.look(l)
		}
		n.looks.mu.Unlock()
		select {
		case <-l.done:
			if !l.began.Before(since) {
				return l, l.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// look makes one.
func (n *Node) look(l *keeperLook) {
	ctx, cancel := context.WithTimeout(n.ctx, keeperLookTimeout)
	defer cancel()
	st := sealState(n.machine.View())
	if st.Committed != nil {
		l.set = *st.Committed
	}
	l.sealed = n.seal.Sealed()
	l.reports, l.err = n.seal.Inspect(ctx, st, n.keepers)
	if n.ctx.Err() != nil { // this peer stops, and asked nobody
		l.err = n.ctx.Err()
	}
	n.looked(l)
}

// looked publishes a look, also one that a refill was.
func (n *Node) looked(l *keeperLook) {
	n.looks.mu.Lock()
	defer n.looks.mu.Unlock()
	for _, r := range l.reports {
		if r.Health != seal.Unreachable && r.Health != seal.Unknown {
			n.looks.contact[r.Name] = n.now()
		}
	}
	if l.err == nil {
		n.noteFewKeepers(l)
	}
	if last := n.looks.last; last == nil || !l.began.Before(last.began) {
		n.looks.last = l
	}
	if n.looks.running == l {
		n.looks.running = nil
	}
	close(l.done)
}

// noteFewKeepers says so when the alarm goes on and when it ends. The caller holds
// the looks' mutex.
func (n *Node) noteFewKeepers(l *keeperLook) {
	switch few := l.good() <= l.set.Threshold; {
	case few && n.looks.few.IsZero():
		n.looks.few = n.now()
		n.log.Warn("alarm", "kind", alarmKeepers, "detail", fewKeepers(l))
	case !few && !n.looks.few.IsZero():
		n.looks.few = time.Time{}
		n.log.Info("the alarm is over", "kind", alarmKeepers, "good", l.good(), "threshold", l.set.Threshold)
	}
}

// alarmKeepers is on while the loss of one more Keeper, or none, keeps peers
// that restart from unsealing.
const alarmKeepers = "keepers-few"

// fewKeepers says what the alarm means now.
func fewKeepers(l *keeperLook) string {
	good, t := l.good(), l.set.Threshold
	text := fmt.Sprintf("%d of %d Keepers are good and %d are needed: ", good, l.set.Shares, t)
	switch {
	case good < t && l.sealed: // those that restarted are empty, and this peer cannot fill them
		text += "a peer that has its keys fills Keepers that are empty; when no peer has, only recovery shares open the cluster ('spikectl operator restore')"
	case good < t:
		text += "a peer that restarts stays sealed; restart none, and bring Keepers back ('spikectl keeper list')"
	case t == l.set.Shares:
		text += "every share is needed, so the loss of any Keeper keeps peers that restart sealed, always; only more shares than the threshold end this alarm"
	default:
		text += "with one less, a peer that restarts stays sealed; bring the others back ('spikectl keeper list')"
	}
	return text
}

// alarms are those of the cluster as a look shows them.
func (n *Node) keeperAlarms(l *keeperLook) []client.Alarm {
	n.looks.mu.Lock()
	defer n.looks.mu.Unlock()
	if l.err != nil || l.good() > l.set.Threshold {
		return nil
	}
	since := n.looks.few
	if since.IsZero() { // over by now
		since = l.began
	}
	return []client.Alarm{{Kind: alarmKeepers, Detail: fewKeepers(l), Since: since}}
}

func (n *Node) keeperContact(name string) *time.Time {
	n.looks.mu.Lock()
	defer n.looks.mu.Unlock()
	if at, ok := n.looks.contact[name]; ok {
		return &at
	}
	return nil
}

// Keepers is everything that is known of the Keepers, with what each says of
// itself. With prove, they are asked for proofs now, which takes an unsealed peer;
// else a look of a moment ago will do.
func (o operator) Keepers(ctx context.Context, prove bool) (store.KeeperList, error) {
	n := o.n
	since := n.now()
	if prove && n.seal.Sealed() {
		return store.KeeperList{}, errSealedProof()
	}
	if !prove {
		since = since.Add(-keeperLookFresh)
	}
	l, err := n.lookAtKeepers(ctx, since)
	switch {
	case errors.Is(err, seal.ErrNotInitialised):
		return store.KeeperList{}, secret.Errorf(secret.CodeUnavailable, "the cluster has no root key yet, and the Keepers no shares")
	case err != nil && ctx.Err() != nil:
		return store.KeeperList{}, secret.Errorf(secret.CodeUnavailable, "the Keepers were not all asked in time")
	case err != nil:
		return store.KeeperList{}, err
	case prove && l.sealed:
		return store.KeeperList{}, errSealedProof()
	}
	list := store.KeeperList{Set: hex.EncodeToString(l.set.ID[:]), Shares: l.set.Shares, Threshold: l.set.Threshold, Good: seal.Count(l.reports),
		Keepers: make([]store.KeeperState, len(l.reports))}
	if pending := sealState(n.machine.View()).Pending; pending != nil {
		list.Pending = hex.EncodeToString(pending.ID[:])
	}
	clients := make(map[string]*keeper.Client, len(n.keepers))
	for _, k := range n.keepers {
		clients[k.Name()] = k.(*keeper.Client)
	}
	ctx, cancel := context.WithTimeout(ctx, keeperLookTimeout)
	defer cancel()
	var wait sync.WaitGroup
	for i, r := range l.reports {
		wait.Go(func() { list.Keepers[i] = n.keeperState(ctx, clients[r.Name], r) })
	}
	wait.Wait()
	return list, nil
}

func errSealedProof() error {
	return secret.Errorf(secret.CodeSealed, "only an unsealed peer can tell a right proof from a wrong one, and this one has no keys: ask another")
}

// keeperState adds to a report what the Keeper says of itself.
func (n *Node) keeperState(ctx context.Context, k *keeper.Client, r seal.KeeperReport) store.KeeperState {
	state := store.KeeperState{Name: r.Name, Index: r.Index, Health: string(r.Health), Detail: r.Detail, Fetched: r.Fetched, Contact: n.keeperContact(r.Name)}
	if k == nil || r.Health == seal.Unreachable {
		return state
	}
	said, err := k.Status(ctx)
	if err != nil {
		state.Silence = err.Error()
		return state
	}
	state.Version, state.Started = said.Version, &said.Started
	for _, s := range said.Slots {
		state.Holds = append(state.Holds, store.KeeperSlot{Set: hex.EncodeToString(s.Set[:]), Index: s.Index, Current: s.Current})
	}
	for _, a := range said.Askers {
		state.Askers = append(state.Askers, store.KeeperAsker(a))
	}
	return state
}
