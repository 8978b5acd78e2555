package node

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
)

// Probes, for whoever runs peers. Startup: the port answers. Liveness: starting
// this peer again is the remedy; so it never asks for keys, a leader or other
// peers, else a cold start would kill itself. Readiness: clients should come here.

const (
	// readyLag is how many committed entries a ready peer may have to apply yet.
	readyLag = 1024
	// readyContact is how old the last word of the leader may be, in heartbeats.
	readyContact = 4
)

// probe answers with nothing but a word or two.
func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

var errStuck = errors.New("stands still")

// live is nil unless this peer stands still for good: see cluster.Node.Alive.
func (n *Node) live() error {
	if n.cluster.Alive() != nil {
		return errStuck // the log says what it is
	}
	return nil
}

// ready is nil when this peer should have clients; else a word about why not.
func (n *Node) ready() error {
	leaving, _ := n.Draining()
	return readiness(n.cluster.Status(), leaving, n.store.Sealed(), n.audit.Err() != nil, readyContact*n.cfg.Heartbeat)
}

func readiness(s cluster.Status, draining, sealed, unaudited bool, contact time.Duration) error {
	member := s.State == cluster.Leads || s.State == cluster.Follower
	switch {
	case s.State == cluster.Candidate || member && s.Leader == "":
		return errors.New("not ready: no leader")
	case !member:
		return fmt.Errorf("not ready: %s", s.State)
	case draining:
		return errors.New("not ready: draining")
	case sealed:
		return errors.New("not ready: sealed")
	case unaudited:
		return errors.New("not ready: no audit")
	case s.State == cluster.Follower && (s.LastContact < 0 || s.LastContact > contact):
		return errors.New("not ready: no word from the leader")
	case s.Lag > readyLag:
		return errors.New("not ready: behind")
	}
	return nil
}

// lookEvery is how often the background looks at Keepers and other peers are
// made, and lookAge how long their results hold: a look may take some seconds.
const (
	lookEvery = 5 * time.Second
	lookAge   = 30 * time.Second
)

// look holds what was seen last. Safe for concurrent use.
type look[T any] struct {
	mu sync.Mutex // guards the rest
	at time.Time
	of T
}

func (l *look[T]) set(now time.Time, v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.of = now, v
}

// recent is what was seen within lookAge.
func (l *look[T]) recent(now time.Time) (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of, !l.at.IsZero() && now.Sub(l.at) <= lookAge
}

// keeperSeen is one Keeper at a look.
type keeperSeen struct {
	name string
	good bool
}

// watching keeps the leader's own observation of how many may fail.
func (n *Node) watching() {
	for {
		if tolerance, err := n.cluster.Tolerance(); err == nil {
			n.tolerance.set(n.now(), tolerance)
		} else {
			n.tolerance.set(time.Time{}, 0)
		}
		if !n.sleep(lookEvery) {
			return
		}
	}
}
