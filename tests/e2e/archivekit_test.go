package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// archiveLoad writes and purges secrets, and remembers what was acknowledged when.
type archiveLoad struct {
	c    *brokenCluster
	stop chan struct{}
	ctx  context.Context // of the writes
	end  func()          // gives up those under way
	wg   sync.WaitGroup

	mu              sync.Mutex
	written, purged map[string]time.Time
}

func (c *brokenCluster) load(super *client.Client) *archiveLoad {
	l := &archiveLoad{c: c, stop: make(chan struct{}), written: map[string]time.Time{}, purged: map[string]time.Time{}}
	l.ctx, l.end = context.WithCancel(ctx)
	for w := range 3 {
		l.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.write(super, fmt.Sprintf("load/%d/%d", w, n), fmt.Sprintf("load/%d/%d", w, n-2), n%5 == 4)
				time.Sleep(2 * time.Millisecond) // leaves the machine to the others
			}
		})
	}
	return l
}

func (l *archiveLoad) write(super *client.Client, path, old string, purge bool) {
	limit, cancel := context.WithTimeout(l.ctx, 20*time.Second)
	defer cancel()
	if _, err := super.Put(limit, path, map[string]string{"v": path}, nil); err != nil {
		return
	}
	l.mu.Lock()
	l.written[path] = time.Now()
	l.mu.Unlock()
	if !purge {
		return
	}
	if _, err := super.Purge(limit, old); err == nil {
		l.mu.Lock()
		l.purged[old] = time.Now()
		l.mu.Unlock()
	}
}

// more waits for n more writes.
func (l *archiveLoad) more(n int) {
	l.c.t.Helper()
	l.mu.Lock()
	want := len(l.written) + n
	l.mu.Unlock()
	l.c.eventually("writes go on", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.written) < want {
			return fmt.Errorf("%d of %d", len(l.written), want)
		}
		return nil
	})
}

// loseEverything kills all peers and Keepers under load, and removes the peers' disks.
func (l *archiveLoad) loseEverything() (end time.Time) {
	l.c.t.Helper()
	end = time.Now()
	for i := range l.c.Peers() {
		l.c.Peer(i).Kill()
	}
	close(l.stop)
	l.end()
	for i := range 3 {
		l.c.Keeper(i).Kill()
	}
	l.wg.Wait()
	for i := range l.c.Peers() {
		l.c.must(os.RemoveAll(l.c.DataDir(i)))
	}
	return end
}

// check holds what the cluster has now against what was acknowledged before a moment.
func (l *archiveLoad) check(super *client.Client, before time.Time) {
	t := l.c.t
	t.Helper()
	kept, lost := 0, 0
	for path, when := range l.written {
		_, _, err := super.Get(ctx, path, 0)
		purged := l.purged[path]
		switch code := secret.CodeOf(err); {
		case !purged.IsZero():
			if code != secret.CodeNotFound && purged.Before(before) {
				t.Errorf("%s was purged %s before what may be lost, and is back: %v", path, before.Sub(purged), err)
			}
		case err == nil:
			kept++
		case code == secret.CodeNotFound && !when.Before(before):
			lost++
		default:
			t.Errorf("%s, acknowledged %s before what may be lost: %v", path, before.Sub(when), err)
		}
	}
	t.Logf("of %d writes %d are there, %d of the last moments are not, %d had been purged", len(l.written), kept, lost, len(l.purged))
}

// beginAgain starts Keepers without shares and peers, the first of which has restored data; opens it with shares, and has the others join.
func (c *brokenCluster) beginAgain(shares ...client.RestoreRequest) *client.Client {
	c.t.Helper()
	for i := range 3 {
		c.must(c.Keeper(i).Start())
		c.must(c.Peer(i).Start())
	}
	keeper := c.client("/spike/pilot/role/restore", 0)
	for _, share := range shares {
		c.eventually("a share is given back", func() error {
			_, err := keeper.Restore(ctx, share)
			var e *secret.Error
			if errors.As(err, &e) && (e.Reason == "share_given_already" || e.Reason == "not_sealed") {
				return nil
			}
			return err
		})
	}
	first := c.client(harness.Superuser, 0)
	for i := 1; i < 3; i++ {
		c.eventually("a peer joins", func() error { return first.AddMember(ctx, harness.PeerName(i), c.PeerAddress(i)) })
		c.eventually("and has a vote", func() error { return first.PromoteMember(ctx, harness.PeerName(i)) })
	}
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, first) })
	return first
}

// spikectl runs the command, which must succeed, and returns what it printed.
func spikectl(t testing.TB, env []string) func(args ...string) string {
	return func(args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "spikectl"), args...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("spikectl %s: %v\n%s", args[:2], err, out)
		}
		return string(out)
	}
}

// shipping is what the peer says that ships; an error while none does or knows how far it has come.
func shipping(super *client.Client) (*client.ArchiveStatus, error) {
	s, err := status(super)
	if err != nil {
		return nil, err
	}
	for _, p := range s.Peers {
		if a := p.Archive; a != nil && a.Active && a.Shipped > 0 {
			return a, nil
		}
	}
	return nil, errors.New("nobody ships")
}

// kept are a cluster's recovery shares, as one person keeps them.
type kept struct {
	files    []string
	key      string // file of the private key
	requests []client.RestoreRequest
}

func (c *brokenCluster) recoveryFiles(t testing.TB) (k kept) {
	t.Helper()
	dir := t.TempDir()
	identity, err := age.GenerateHybridIdentity()
	c.must(err)
	k.key = filepath.Join(dir, "key")
	c.must(os.WriteFile(k.key, []byte(identity.String()+"\n"), 0o600))
	var files []client.RecoveryFile
	c.eventually("recovery files", func() error {
		files, err = c.client("/spike/pilot/role/recover").Recover(ctx, client.RecoverRequest{Recipients: []string{identity.Recipient().String()}, OneHolder: true})
		return err
	})
	for _, f := range files {
		name := filepath.Join(dir, f.Name)
		c.must(os.WriteFile(name, []byte(f.Content), 0o600))
		file, err := recoveryfile.Parse([]byte(f.Content))
		c.must(err)
		share, err := file.Open(identity)
		c.must(err)
		k.files = append(k.files, name)
		k.requests = append(k.requests, client.RestoreRequest{Index: file.Index, Share: share, Cluster: file.Cluster.ID[:], Set: file.Set[:]})
	}
	return k
}
