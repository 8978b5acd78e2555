package node_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// rotate waits until the cluster's level has risen and rotates.
func rotate(t *testing.T, cl *client.Client, purposes ...string) {
	t.Helper()
	nodetest.Eventually(t, "a rotation", func() error { return cl.RotateKeys(ctx, purposes...) })
}

// keysOf are the statuses of a purpose's keys, newest first.
func keysOf(t *testing.T, cl *client.Client, purpose string) (list []string, answer client.KeysAnswer) {
	t.Helper()
	answer, err := cl.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range answer.Epochs {
		if e.Purpose == purpose {
			list = append(list, e.Status)
		}
	}
	return list, answer
}

// archived waits until no record is under a retired key and that key is archived.
func archived(t *testing.T, cl *client.Client, rotations int) {
	t.Helper()
	nodetest.Eventually(t, "retired keys are archived", func() error {
		list, answer := keysOf(t, cl, "data")
		want := "current" + strings.Repeat(" archived", rotations)
		if got := strings.Join(list, " "); got != want || answer.Stale != 0 {
			return fmt.Errorf("%s, %d of %d stale", got, answer.Stale, answer.Records)
		}
		return nil
	})
}

// Rotations under load, each followed by the loss of the leader in the middle
// of re-encrypting: no request fails, no record is ever damaged, and in the end
// all is under the newest key.
func TestInvariant10RotationUnderLoad(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	const records = 300
	var fill sync.WaitGroup
	for w := range 8 {
		fill.Go(func() {
			for i := w; i < records; i += 8 {
				for v := range 1 + i%3 {
					if _, err := su.Put(ctx, fmt.Sprintf("kept/%d", i), map[string]string{"v": fmt.Sprint(i, ".", v)}, nil); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	fill.Wait()
	if _, err := su.Delete(ctx, "kept/2", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := su.Destroy(ctx, "kept/5", 1); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := su.PutPolicy(ctx, client.Policy{Name: fmt.Sprint("p", i), SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: "spiffe://example.org/app"},
			Path: secret.Pattern{Kind: secret.Prefix, Text: "kept/"}, Permissions: []string{"read"}}); err != nil {
			t.Fatal(err)
		}
	}
	var outside struct {
		Nonce      []byte `json:"nonce"`
		Ciphertext []byte `json:"ciphertext"`
	}
	if err := su.Wire(ctx, client.WireEncrypt, "", map[string][]byte{"plaintext": []byte("outside")}, &outside); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var done atomic.Int64
	var load sync.WaitGroup
	for w := range 3 {
		writer := c.Client(nodetest.Role("superuser"), w, (w+1)%3, (w+2)%3)
		reader := c.Client(nodetest.Role("superuser"), (w+1)%3, (w+2)%3, w)
		load.Go(func() {
			path := fmt.Sprintf("load/%d", w)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprint(n)
				if _, err := writer.Put(ctx, path, map[string]string{"v": want}, nil); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if got, _, err := reader.Get(ctx, path, 0); err != nil || got["v"] != want {
					t.Errorf("get: %v %v, want %s", got, err, want)
					return
				}
				i := n % records
				if got, _, err := reader.Get(ctx, fmt.Sprintf("kept/%d", i), 0); err != nil || !strings.HasPrefix(got["v"], fmt.Sprint(i, ".")) {
					t.Errorf("get kept/%d: %v %v", i, got, err)
					return
				}
				if _, err := writer.PutPolicy(ctx, client.Policy{Name: fmt.Sprint("load", w), SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: "spiffe://example.org/app"},
					Path: secret.Pattern{Kind: secret.Prefix, Text: path}, Permissions: []string{"read"}}); err != nil {
					t.Errorf("put policy: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	unharmed := func(i int) {
		t.Helper()
		if d := c.Node(i).Damaged(); d != 0 {
			t.Errorf("peer %d has had %d damaged records", i+1, d)
		}
	}
	lag := func(i int) {
		c.Node(i).KeysLag(func() { t.Errorf("peer %d showed an entry before it used the key of that time", i+1) })
	}
	for i := range 3 {
		lag(i)
	}
	const rotations = 3
	for r := range rotations {
		rotate(t, c.Client(nodetest.Role("superuser"), r%3)) // by each peer, leader or not
		leader := c.Leader()
		unharmed(leader)
		c.Stop(leader)
		before := done.Load()
		nodetest.Eventually(t, "the load goes on", func() error {
			if done.Load() < before+5 && !t.Failed() {
				return errors.New("not yet")
			}
			return nil
		})
		c.Start(leader)
		lag(leader)
		c.Ready()
	}
	archived(t, su, rotations)
	close(stop)
	load.Wait()
	for i := range 3 {
		unharmed(i)
	}
	if list, _ := keysOf(t, su, "cipher"); strings.Join(list, " ") != "current retired retired retired" {
		t.Error("cipher keys: ", list)
	}
	if list, _ := keysOf(t, su, "path"); len(list) != 1 {
		t.Error("path keys: ", list)
	}

	// What starts now has nothing but the live keys.
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		c.Start(i)
	}
	c.Ready()
	for i := range 3 {
		cl := c.Client(nodetest.Role("superuser"), i)
		for k := range records {
			path := fmt.Sprintf("kept/%d", k)
			if got, answer, err := cl.Get(ctx, path, 0); err != nil || got["v"] != fmt.Sprint(k, ".", k%3) && k != 2 || int(answer.Version) != 1+k%3 && k != 2 {
				t.Fatalf("%s through peer %d: %v version %d, %v", path, i+1, got, answer.Version, err)
			}
		}
		if list, err := cl.ListPolicies(ctx); err != nil || len(list) < 3 {
			t.Fatal(list, err)
		}
		var inside struct {
			Plaintext []byte `json:"plaintext"`
		}
		if err := cl.Wire(ctx, client.WireDecrypt, "", map[string]any{"version": 1, "nonce": outside.Nonce, "ciphertext": outside.Ciphertext}, &inside); err != nil || string(inside.Plaintext) != "outside" {
			t.Fatal("an old output of the cipher: ", err)
		}
		unharmed(i)
	}
}

// A peer that is sealed while keys are rotated, and one that has been away,
// serve the new keys when they come.
func TestRotationWhileAPeerIsAway(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.SnapshotBytes = 1 << 20 }})
	su := c.Client(nodetest.Role("superuser"))
	if _, err := su.Put(ctx, "a", map[string]string{"v": "1"}, nil); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "level 2", func() error { return su.RotateKeys(ctx, "audit-path") })
	away := (c.Leader() + 1) % 3
	c.Stop(away)
	rotate(t, su, "data")
	archived(t, su, 1)
	if _, err := su.Put(ctx, "b", map[string]string{"v": "2"}, nil); err != nil {
		t.Fatal(err)
	}
	c.Start(away)
	c.Ready()
	back := c.Client(nodetest.Role("superuser"), away)
	for path, want := range map[string]string{"a": "1", "b": "2"} {
		if got, _, err := back.Get(ctx, path, 0); err != nil || got["v"] != want {
			t.Fatal(path, got, err)
		}
	}
	if d := c.Node(away).Damaged(); d != 0 {
		t.Fatal(d)
	}
}

func TestRotationRefusals(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	down := (c.Leader() + 1) % 3
	c.Stop(down) // before the level has risen, so it does not
	var e *secret.Error
	if err := su.RotateKeys(ctx); errors.As(err, &e) && e.Code == secret.CodeConflict {
		if e.Reason != "level_too_low" || !strings.Contains(e.Message, fmt.Sprintf("nexus-%d", down+1)) {
			t.Fatal(e.Reason, e.Message)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	c.Start(down)
	rotate(t, su, "data")
	for _, purpose := range []string{"path", "token-mac", "nonsense", strings.Repeat("x", 100)} {
		if err := su.RotateKeys(ctx, purpose); secret.CodeOf(err) != secret.CodeInvalid {
			t.Errorf("%.20s: %v", purpose, err)
		}
	}
	for _, role := range []string{"admin", "operator", "recover"} {
		if err := c.Client(nodetest.Role(role)).RotateKeys(ctx); secret.CodeOf(err) != secret.CodeDenied {
			t.Error(role, err)
		}
	}
	if _, err := c.Client("/app").Keys(ctx); secret.CodeOf(err) != secret.CodeDenied {
		t.Error(err)
	}
}

// Keys that are too old are rotated by the leader itself, on record.
func TestRotationByAge(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: func(_ int, cfg *node.Config) { cfg.KeyMaxAge = time.Hour }})
	su := c.Client(nodetest.Role("superuser"))
	list, _ := keysOf(t, su, "data")
	if len(list) != 1 {
		t.Fatal("new keys were rotated")
	}
	node := c.Node(c.Leader())
	nodetest.Eventually(t, "a rotation", func() error { // once the level has risen
		if err := node.RotateByAge(time.Now()); err != nil { // nothing is too old
			return err
		}
		return node.RotateByAge(time.Now().Add(2 * time.Hour))
	})
	archived(t, su, 1)
}
