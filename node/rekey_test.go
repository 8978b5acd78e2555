package node_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// settled waits until every running peer uses the present root key, no key of
// before is in use, and no record is under one.
func settled(t *testing.T, c *nodetest.Cluster, cl *client.Client) (set client.ShareSet) {
	t.Helper()
	nodetest.Eventually(t, "the rekey is over", func() error {
		keys, err := cl.Keys(ctx)
		if err != nil {
			return err
		}
		status, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		for _, p := range status.Peers {
			if p.Reachable && p.ShareSet != keys.ShareSet.ID {
				return fmt.Errorf("%s uses %s: %s", p.ID, p.ShareSet, p.Reason)
			}
		}
		if keys.Inherited || keys.Stale > 0 || keys.Pending != nil {
			return fmt.Errorf("%+v", keys)
		}
		set = *keys.ShareSet
		return nil
	})
	return set
}

// levelled waits until the cluster has the level of rotation.
func levelled(t *testing.T, cl *client.Client) {
	t.Helper()
	nodetest.Eventually(t, "level 2", func() error { return cl.RotateKeys(ctx, "audit-path") })
}

// hammer has each peer read and write without end; a request that is not
// answered with what it asked for is repeated by nobody, and fails the test.
func hammer(t *testing.T, c *nodetest.Cluster) (done *atomic.Int64, stop func()) {
	t.Helper()
	end := make(chan struct{})
	done = new(atomic.Int64)
	var wg sync.WaitGroup
	for i := range c.Addresses() {
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Source(nodetest.Role("superuser")).Client(nodetest.Anyone)}}
		post := func(route string, q, a any) error {
			body, _ := json.Marshal(q)
			response, err := hc.Post(c.Address(i)+route, "application/json", bytes.NewReader(body))
			if err != nil {
				return err
			}
			defer response.Body.Close()
			raw, err := io.ReadAll(response.Body)
			if err != nil {
				return err
			}
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("%d: %s", response.StatusCode, raw)
			}
			return json.Unmarshal(raw, a)
		}
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				path, want := fmt.Sprintf("load/%d", i), fmt.Sprint(n)
				var changed client.ChangeAnswer
				if err := post(client.RouteSecretPut, client.PutRequest{Path: path, Values: map[string]string{"v": want}}, &changed); err != nil {
					t.Errorf("put through peer %d: %v", i+1, err)
					return
				}
				var got struct {
					Values map[string]string `json:"values"`
				}
				if err := post(client.RouteSecretGet, client.PathRequest{Path: path}, &got); err != nil || got.Values["v"] != want {
					t.Errorf("get through peer %d: %v %v, want %s", i+1, got.Values, err, want)
					return
				}
				done.Add(1)
			}
		})
	}
	return done, sync.OnceFunc(func() { close(end); wg.Wait() })
}

// Root keys are replaced one after the other, by each peer, with other numbers
// and other Keepers, and not one request fails. What starts afterwards unseals
// from the new shares alone.
func TestInvariant10RekeyUnderLoad(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Keepers: 5})
	su := c.Client(nodetest.Role("superuser"))
	for i := range 40 {
		if _, err := su.Put(ctx, fmt.Sprintf("kept/%d", i), map[string]string{"v": fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	levelled(t, su)
	done, stop := hammer(t, c)
	defer stop()
	leader := c.Leader()
	sets := map[string]bool{}
	for r, q := range []client.RekeyRequest{
		{Shares: 4, Threshold: 3, Keepers: []string{"keeper-2", "keeper-3", "keeper-4", "keeper-5"}},
		{Shares: 3, Threshold: 2, Keepers: []string{"keeper-3", "keeper-1", "keeper-2"}},
		{},
	} {
		before := done.Load()
		if err := c.Client(nodetest.Role("superuser"), (leader+r)%3).Rekey(ctx, q); err != nil {
			t.Fatal(err)
		}
		set := settled(t, c, su)
		if sets[set.ID] || q.Shares > 0 && (set.Shares != q.Shares || set.Threshold != q.Threshold || strings.Join(set.Keepers, " ") != strings.Join(q.Keepers, " ")) {
			t.Fatalf("%+v became %+v", q, set)
		}
		sets[set.ID] = true
		if list, _ := keysOf(t, su, "data"); list[0] != "current" || len(list) != r+2 {
			t.Error("the data key was not rotated once with each rekey: ", list)
		}
		nodetest.Eventually(t, "the load goes on", func() error {
			if done.Load() < before+5 && !t.Failed() {
				return errors.New("not yet")
			}
			return nil
		})
	}
	stop()
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		c.Start(i)
	}
	c.Ready()
	for i := range 3 {
		cl := c.Client(nodetest.Role("superuser"), i)
		for k := range 40 {
			if got, _, err := cl.Get(ctx, fmt.Sprintf("kept/%d", k), 0); err != nil || got["v"] != fmt.Sprint(k) {
				t.Fatal(got, err)
			}
		}
	}
}

// gate is a way to a Keeper that can be cut.
type gate struct {
	net.Listener
	to string

	mu    sync.Mutex // guards what follows
	cut   bool
	held  chan struct{} // not nil: connections go on when it is closed
	conns []net.Conn
}

func newGate(t *testing.T, to string) *gate {
	g := &gate{Listener: nodetest.Listen(t, "127.0.0.1:0"), to: to}
	t.Cleanup(func() { g.close(true); g.Close() })
	go func() {
		for {
			in, err := g.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			cut, held := g.cut, g.held
			g.conns = append(g.conns, in)
			g.mu.Unlock()
			go func() {
				defer in.Close()
				if held != nil {
					<-held
				}
				out, err := net.Dial("tcp", g.to)
				if cut || err != nil {
					return
				}
				go func() { io.Copy(out, in); out.Close() }()
				io.Copy(in, out)
			}()
		}
	}()
	return g
}

// hold has every connection wait until it is released.
func (g *gate) hold() (release func()) {
	g.close(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	held := make(chan struct{})
	g.cut, g.held = false, held
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.held = nil
		close(held)
	})
}

// gated has one peer reach its Keepers through gates.
func gated(t *testing.T, peer int, gates *[]*gate) func(int, *node.Config) {
	return func(i int, cfg *node.Config) {
		if i != peer {
			return
		}
		var list []string
		for _, k := range strings.Split(cfg.Keepers, ",") {
			name, url, _ := strings.Cut(k, "=")
			g := newGate(t, strings.TrimPrefix(url, "https://"))
			*gates = append(*gates, g)
			list = append(list, name+"=https://"+g.Addr().String())
		}
		cfg.Keepers = strings.Join(list, ",")
	}
}

func (g *gate) close(cut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cut = cut; cut {
		for _, c := range g.conns {
			c.Close()
		}
		g.conns = nil
	}
}

// A peer that cannot get the new root key serves on with the keys it has, says
// so, and keeps trying; no key is rotated from under it, for a while.
func TestRekeyWithoutKeepersForOnePeer(t *testing.T) {
	t.Parallel()
	for name, leads := range map[string]int{"a follower": 0, "the leader": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rekeyWithoutKeepersForOnePeer(t, leads)
		})
	}
}

// leads is the leader; the third peer has no Keepers.
func rekeyWithoutKeepersForOnePeer(t *testing.T, leads int) {
	var gates []*gate
	c := nodetest.New(t, nodetest.Options{Configure: gated(t, 2, &gates)})
	c.Bootstrap()
	c.Ready()
	su := c.Client(nodetest.Role("superuser"), 0, 1)
	levelled(t, su)
	lead := func() {
		t.Helper()
		nodetest.Eventually(t, "the right one leads", func() error {
			leader := c.Leader()
			if leader == leads {
				return nil
			}
			return cmp.Or(c.Node(leader).HandTo(ctx, fmt.Sprint("nexus-", leads+1)), errors.New("not seen yet"))
		})
	}
	lead()
	cut := func(closed bool) {
		for _, g := range gates {
			g.close(closed)
		}
	}
	done, stop := hammer(t, c)
	defer stop()
	cut(true)
	if err := su.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "it says that it serves on", func() error {
		status, err := su.Status(ctx)
		if err != nil {
			return err
		}
		keys, err := su.Keys(ctx)
		if err != nil {
			return err
		}
		for _, p := range status.Peers {
			if old := p.ShareSet != keys.ShareSet.ID; p.Sealed || old != (p.ID == "nexus-3") || old && !strings.Contains(p.Reason, "serves with the keys that it has") {
				return fmt.Errorf("%s: sealed %v, set %s, %s", p.ID, p.Sealed, p.ShareSet, p.Reason)
			}
		}
		if !keys.Inherited {
			t.Fatal("rotated from under it")
		}
		return nil
	})
	if err := c.Node(c.Leader()).RotateInherited(time.Now()); err != nil { // looked at now, whenever it does by itself
		t.Fatal(err)
	}
	if keys, err := su.Keys(ctx); err != nil || !keys.Inherited {
		t.Fatal("rotated from under it: ", err)
	}
	var e *secret.Error
	if err := su.RotateKeys(ctx); !errors.As(err, &e) || e.Reason != "rekey_unfinished" || !strings.Contains(e.Message, "nexus-3") {
		t.Fatal(err)
	}
	before := done.Load()
	nodetest.Eventually(t, "the load goes on", func() error {
		if done.Load() < before+5 && !t.Failed() {
			return errors.New("not yet")
		}
		return nil
	})
	cut(false)
	settled(t, c, su)
	stop()

	// Once more: it is waited for, but not for ever. A leader then makes room for one that has the keys.
	lead()
	cut(true)
	if err := su.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the wait is over", func() error {
		if err := c.Node(c.Leader()).RotateInherited(time.Now().Add(-time.Hour)); err != nil {
			return err
		}
		if !c.Node(2).Health().Sealed {
			return errors.New("it has not noticed")
		}
		return nil
	})
	cut(false)
	settled(t, c, su)
}

// An operator seals while a rekey goes on: it comes to nothing, whatever it had
// done by then. Rotations wait for it, and a cancellation ends it, too.
func TestRekeyInterrupted(t *testing.T) {
	t.Parallel()
	var gates []*gate
	c := nodetest.New(t, nodetest.Options{Configure: gated(t, 2, &gates)})
	c.Bootstrap()
	c.Ready()
	su, slow := c.Client(nodetest.Role("superuser"), 0, 1), c.Client(nodetest.Role("superuser"), 2)
	levelled(t, su)
	before, err := su.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, interrupt := range []struct {
		reason string
		by     func() error
	}{
		{"superseded", func() error { _, err := su.CancelRekey(ctx); return err }},
		{"sealed_by_operator", func() error { return su.Seal(ctx, "") }},
	} {
		release := gates[1].hold() // it has placed all shares but one
		defer release()
		outcome := make(chan error, 1)
		go func() { outcome <- slow.Rekey(ctx, client.RekeyRequest{}) }()
		nodetest.Eventually(t, "a rekey under way", func() error {
			keys, err := su.Keys(ctx)
			if err == nil && keys.Pending == nil {
				err = errors.New("none is pending")
			}
			return err
		})
		var e *secret.Error
		if err := su.RotateKeys(ctx); !errors.As(err, &e) || e.Reason != "share_set_pending" {
			t.Error("a rotation during a rekey: ", err)
		}
		if err := interrupt.by(); err != nil {
			t.Fatal(err)
		}
		release()
		if err := <-outcome; !errors.As(err, &e) || e.Reason != interrupt.reason {
			t.Errorf("%s: %v", interrupt.reason, err)
		}
		if err := su.Unseal(ctx, ""); err != nil {
			t.Fatal(err)
		}
		c.Ready()
		nodetest.Eventually(t, "nothing has changed", func() error {
			keys, err := su.Keys(ctx)
			if err == nil && (keys.Pending != nil || keys.Inherited || keys.ShareSet.ID != before.ShareSet.ID) {
				t.Fatalf("%+v", keys)
			}
			return err
		})
	}
	if err := slow.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	settled(t, c, su)
}

func TestRekeyRefusals(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Keepers: 4})
	leader := c.Leader()
	su := c.Client(nodetest.Role("superuser"), leader)
	levelled(t, su)
	keys, err := su.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name string, code secret.Code, reason, says string, q client.RekeyRequest) {
		t.Helper()
		err := su.Rekey(ctx, q)
		var e *secret.Error
		if !errors.As(err, &e) || e.Code != code || e.Reason != reason || !strings.Contains(e.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
		now, err := su.Keys(ctx)
		if err != nil || now.Pending != nil || now.ShareSet.ID != keys.ShareSet.ID || now.Inherited {
			t.Errorf("%s: something changed: %+v, %v", name, now, err)
		}
	}
	refused("threshold above n", secret.CodeInvalid, "", "threshold of 5", client.RekeyRequest{Shares: 4, Threshold: 5})
	refused("too many shares", secret.CodeInvalid, "", "256", client.RekeyRequest{Shares: 256, Threshold: 2})
	refused("not the number of Keepers", secret.CodeInvalid, "", "as many Keepers", client.RekeyRequest{Shares: 3, Threshold: 2})
	refused("threshold 1", secret.CodeInvalid, "", "threshold of 1", client.RekeyRequest{Threshold: 1})
	refused("an unknown Keeper", secret.CodeInvalid, "", `"keeper-9"`, client.RekeyRequest{Keepers: []string{"keeper-1", "keeper-9"}})
	refused("a Keeper twice", secret.CodeInvalid, "", `"keeper-1" has two`, client.RekeyRequest{Keepers: []string{"keeper-1", "keeper-1", "keeper-2"}, Threshold: 2})
	refused("a name too long", secret.CodeInvalid, "", "", client.RekeyRequest{Keepers: []string{strings.Repeat("k", 300)}})
	refused("no id", secret.CodeInvalid, "", "id", client.RekeyRequest{ID: "abc"})
	c.StopKeeper(3)
	refused("a Keeper down", secret.CodeConflict, "keepers_missing", "keeper-4 is unreachable", client.RekeyRequest{})
	for _, role := range []string{"admin", "operator", "recover", "restore"} {
		cl := c.Client(nodetest.Role(role))
		if err := cl.Rekey(ctx, client.RekeyRequest{}); secret.CodeOf(err) != secret.CodeDenied {
			t.Error(role, err)
		}
		if _, err := cl.CancelRekey(ctx); secret.CodeOf(err) != secret.CodeDenied {
			t.Error(role, err)
		}
	}
	if set, err := su.CancelRekey(ctx); err != nil || set != "" {
		t.Error(set, err)
	}

	// A peer that would not find the new Keepers, and one that cannot say.
	other := (leader + 1) % 3
	three := client.RekeyRequest{Keepers: []string{"keeper-1", "keeper-2", "keeper-4"}}
	c.StartKeeper(3)
	c.Stop(other)
	name := fmt.Sprintf("nexus-%d", other+1)
	refused("a peer is down", secret.CodeConflict, "peer_unreachable", name, three)
	c.Configure(other, func(cfg *node.Config) { cfg.Keepers = cfg.Keepers[:strings.LastIndex(cfg.Keepers, ",keeper-4")] })
	c.Start(other)
	c.Ready()
	refused("a peer does not know a Keeper", secret.CodeConflict, "keeper_unknown", name+` knows no Keeper "keeper-4"`, three)
	c.Stop(other)
	three.Force = true
	if err := su.Rekey(ctx, three); err != nil {
		t.Fatal(err)
	}
	c.Start(other) // two of three will do
	c.Ready()
	settled(t, c, su)

	// Sealed by an operator: nothing has keys, and nothing changes.
	if err := su.Seal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	var e *secret.Error
	if err := su.Rekey(ctx, client.RekeyRequest{Keepers: three.Keepers, Force: true}); !errors.As(err, &e) || e.Reason != "sealed_by_operator" {
		t.Error("rekeyed while sealed: ", err)
	}
	if err := su.Unseal(ctx, ""); err != nil {
		t.Fatal(err)
	}
	c.Ready()
}

// A cluster that was recovered from one peer moves its keys to its incarnation
// with a rekey. Peers of before, which may be a majority of before, then get
// nothing from the Keepers.
func TestRekeyAfterRecovery(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	levelled(t, su)
	if _, err := su.Put(ctx, "kept", map[string]string{"v": "1"}, nil); err != nil {
		t.Fatal(err)
	}
	status, err := su.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	leader := c.Leader()
	address := ""
	for _, p := range status.Peers {
		if p.ID == fmt.Sprintf("nexus-%d", leader+1) {
			address = p.Address
		}
	}
	for i := range 3 {
		c.Stop(i)
	}
	if _, _, err := node.Recover(ctx, node.Recovery{DataDir: c.DataDir(leader), Address: address, Force: true}); err != nil {
		t.Fatal(err)
	}
	c.Start(leader)
	c.Ready()
	alone := c.Client(nodetest.Role("superuser"), leader)
	if err := alone.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	settled(t, c, alone)
	// It starts from the new shares, for its new incarnation.
	c.Stop(leader)
	c.Start(leader)
	c.Ready()
	if got, _, err := alone.Get(ctx, "kept", 0); err != nil || got["v"] != "1" {
		t.Fatal(got, err)
	}
	c.Stop(leader)
	before := []int{(leader + 1) % 3, (leader + 2) % 3}
	for _, i := range before {
		c.Start(i)
	}
	old := c.Client(nodetest.Role("superuser"), before...)
	nodetest.Eventually(t, "the Keepers refuse the peers of before", func() error {
		status, err := old.Status(ctx)
		if err != nil {
			return err
		}
		for _, k := range status.Keepers {
			if k.Health != "stale" {
				return fmt.Errorf("%+v", k)
			}
		}
		for _, p := range status.Peers {
			if p.Reachable && (!p.Sealed || !strings.Contains(p.Reason, "incarnation")) {
				return fmt.Errorf("%s: sealed %v, %s", p.ID, p.Sealed, p.Reason)
			}
		}
		if len(status.Keepers) == 0 {
			return errors.New("no Keeper was asked")
		}
		return nil
	})
}

// When nobody has the new root key any more, and nobody can get it, the peers serve on with the keys they have, however
// long that takes: a leader that sealed itself would make room for nobody.
func TestRekeyWithoutAnybodyAhead(t *testing.T) {
	t.Parallel()
	var gates []*gate
	c := nodetest.New(t, nodetest.Options{Configure: func(i int, cfg *node.Config) { gated(t, i, &gates)(i, cfg) }})
	c.Bootstrap()
	c.Ready()
	levelled(t, c.Client(nodetest.Role("superuser"), 0, 1, 2))
	su := c.Client(nodetest.Role("superuser"), 0)
	for _, g := range gates[3:] { // three Keepers each
		g.close(true)
	}
	if err := su.Rekey(ctx, client.RekeyRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := su.Seal(ctx, "nexus-1"); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 3; i++ { // as whoever leads would
		if err := c.Node(i).RotateInherited(time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		if c.Node(i).Health().Sealed {
			t.Fatal("it sealed itself, and nobody can take its place")
		}
	}
	for _, g := range gates {
		g.close(false)
	}
	if err := su.Unseal(ctx, "nexus-1"); err != nil {
		t.Fatal(err)
	}
	settled(t, c, su)
}
