package node_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// Each thing that keeps a peer from having clients.
func TestReadiness(t *testing.T) {
	t.Parallel()
	type facts struct {
		s                           cluster.Status
		draining, sealed, unaudited bool
	}
	for _, c := range []struct {
		want string
		what func(*facts)
	}{
		{"", func(*facts) {}},
		{"", func(f *facts) { f.s.State, f.s.LastContact = cluster.Leads, 0 }},
		{"", func(f *facts) { f.s.Lag = node.ReadyLag }},
		{"not ready: behind", func(f *facts) { f.s.Lag = node.ReadyLag + 1 }},
		{"not ready: no leader", func(f *facts) { f.s.Leader = "" }},
		{"not ready: no leader", func(f *facts) { f.s.State = cluster.Candidate }},
		{"not ready: no word from the leader", func(f *facts) { f.s.LastContact = time.Second + 1 }},
		{"not ready: no word from the leader", func(f *facts) { f.s.LastContact = -1 }},
		{"not ready: forming", func(f *facts) { f.s = cluster.Status{State: cluster.Forming} }},
		{"not ready: removed", func(f *facts) { f.s.State = cluster.Removed }},
		{"not ready: stopped", func(f *facts) { f.s.State = cluster.Stopped }},
		{"not ready: draining", func(f *facts) { f.draining = true }},
		{"not ready: sealed", func(f *facts) { f.sealed = true }},
		{"not ready: no audit", func(f *facts) { f.unaudited = true }},
	} {
		f := facts{s: cluster.Status{State: cluster.Follower, Leader: "a", LastContact: time.Second}}
		c.what(&f)
		got := ""
		if err := node.Readiness(f.s, f.draining, f.sealed, f.unaudited, time.Second); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", f, got, c.want)
		}
	}
}

// A cluster from its cold start to its end, by what the probes say: alive all the
// time, however little works, and ready when clients can be served.
func TestProbes(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, nodetest.Options{Configure: func(i int, cfg *node.Config) {
		withMetrics(i, cfg)
		cfg.AuditFileBytes = 1 // a file each, so that a missing directory shows at once
	}})
	probes := func(what string, i, ready int, why string) {
		t.Helper()
		nodetest.Eventually(t, what, func() error {
			if got, said := fetch(t, c, i, "/livez"); got != http.StatusOK || said != "ok\n" {
				t.Fatalf("%s: not alive: %d %s", what, got, said)
			}
			if got, said := fetch(t, c, i, "/readyz"); got != ready || said != why+"\n" {
				return fmt.Errorf("%d %s", got, said)
			}
			return nil
		})
	}
	c.Leader()
	for i := range 3 {
		probes("without a root key", i, http.StatusServiceUnavailable, "not ready: sealed")
	}
	c.Bootstrap()
	for i := range 3 {
		probes("in service", i, http.StatusOK, "ok")
	}

	// No audit, no answer, no clients; until it can be written again.
	audit := c.DataDir(0) + "/audit"
	if err := os.Rename(audit, audit+".away"); err != nil {
		t.Fatal(err)
	}
	one, short := c.Client(nodetest.Role("superuser"), 0), func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	if _, _, err := one.Get(short(), "a", 0); secret.CodeOf(err) != secret.CodeUnavailable {
		t.Errorf("without an audit log: %v", err)
	}
	probes("without an audit log", 0, http.StatusServiceUnavailable, "not ready: no audit")
	if s := scrape(t, c, 0); s["spike_audit_failed"] != 1 || s["spike_audit_failures_total"] < 1 || s["spike_core_ready"] != 0 {
		t.Errorf("failed %v, failures %v, ready %v", s["spike_audit_failed"], s["spike_audit_failures_total"], s["spike_core_ready"])
	}
	if err := os.Rename(audit+".away", audit); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "it answers again", func() error {
		if _, _, err := one.Get(short(), "a", 0); secret.CodeOf(err) != secret.CodeNotFound {
			return err
		}
		return nil
	})
	probes("with its audit log", 0, http.StatusOK, "ok")

	// Restarted without Keepers it lives, and is of no use.
	for i := range 3 {
		c.StopKeeper(i)
	}
	c.Stop(1)
	c.Start(1)
	probes("without Keepers", 1, http.StatusServiceUnavailable, "not ready: sealed")
	if s := scrape(t, c, 1); s["spike_core_unsealed"] != 0 {
		t.Error("it says that it is unsealed")
	}
	// Alone of three it has no leader: nothing that a restart would better.
	c.Stop(1)
	c.Stop(2)
	probes("without a majority", 0, http.StatusServiceUnavailable, "not ready: no leader")
}

// A peer whose Raft cannot go on is not alive.
func TestLivenessEnds(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Configure: withMetrics})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.Node(0).ProposeNewer(ctx)
	nodetest.Eventually(t, "it is not alive", func() error {
		if got, said := fetch(t, c, 0, "/livez"); got != http.StatusServiceUnavailable || said != "stands still\n" {
			return fmt.Errorf("%d %s", got, said)
		}
		return nil
	})
	if got, said := fetch(t, c, 0, "/readyz"); got != http.StatusServiceUnavailable || said != "not ready: stopped\n" {
		t.Errorf("%d %s", got, said)
	}
}
