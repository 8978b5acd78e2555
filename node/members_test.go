package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// The life of a member as its operators see it: a peer waits, is let in, serves
// as a learner, gets a vote, and is removed while it leads.
func TestLifeOfAMember(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	su := c.Client(nodetest.Role("superuser"), 0, 1, 2)
	if _, err := su.Put(ctx, "a/b", map[string]string{"k": "before"}, nil); err != nil {
		t.Fatal(err)
	}

	at, id, address := c.Join()
	nodetest.Eventually(t, "the joiner waits", func() error {
		if h := c.Node(at).Health(); h.Formed || !h.Sealed {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	if err := c.Client(nodetest.Role("admin"), 0).AddMember(ctx, id, address); secret.CodeOf(err) != secret.CodeDenied {
		t.Errorf("added by an admin: %v", err)
	}
	if err := su.AddMember(ctx, id, "no address"); secret.CodeOf(err) != secret.CodeInvalid {
		t.Errorf("added without an address: %v", err)
	}
	if err := su.PromoteMember(ctx, id); secret.CodeOf(err) != secret.CodeNotFound {
		t.Errorf("promoted before it was added: %v", err)
	}
	if err := su.AddMember(ctx, id, address); err != nil {
		t.Fatal(err)
	}
	c.Ready() // it unseals itself like any other

	// What it is asked is as new as anywhere, and it takes writes.
	learner := c.Client(nodetest.Role("superuser"), at)
	for i := range 10 {
		if _, err := su.Put(ctx, "a/b", map[string]string{"k": fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
		if values, _, err := learner.Get(ctx, "a/b", 0); err != nil || values["k"] != fmt.Sprint(i) {
			t.Fatalf("a learner's read of write %d: %v, %v", i, values, err)
		}
	}
	if _, err := learner.Put(ctx, "a/c", map[string]string{"k": "by the learner"}, nil); err != nil {
		t.Fatal(err)
	}
	status, err := su.Status(ctx)
	if err != nil || len(status.Peers) != 4 || status.Peers[3].Voter || status.Tolerance != 1 {
		t.Errorf("with a learner: %+v, %v", status, err)
	}
	nodetest.Eventually(t, "the learner is promoted", func() error { return su.PromoteMember(ctx, id) })
	if err := su.TransferLeadership(ctx, id); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "it leads", func() error {
		if !c.Node(at).Health().Leader {
			return fmt.Errorf("not yet")
		}
		return nil
	})

	// It is asked to remove itself; it says so afterwards, and serves nothing.
	if err := learner.RemoveMember(ctx, id); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the removed peer says so", func() error {
		h, err := learner.Health(ctx, 0)
		if err != nil || !h.Removed || !h.Sealed {
			return fmt.Errorf("%+v, %v", h, err)
		}
		return nil
	})
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var e *secret.Error
	if _, _, err := learner.Get(short, "a/b", 0); !errors.As(err, &e) || e.Code != secret.CodeUnavailable || e.Reason != client.ReasonRemoved {
		t.Errorf("a removed peer answered %v", err)
	}
	if s, err := learner.StatusOf(ctx, 0); err != nil || !slices.ContainsFunc(s.Peers, func(p client.PeerStatus) bool { return p.ID == s.AskedPeer && p.State == "removed" }) {
		t.Errorf("the status of a removed peer: %+v, %v", s, err)
	}
	if values, _, err := su.Get(ctx, "a/c", 0); err != nil || values["k"] != "by the learner" {
		t.Errorf("the others: %v, %v", values, err)
	}
	status, err = su.Status(ctx)
	if err != nil || len(status.Peers) != 3 {
		t.Errorf("after the removal: %+v, %v", status, err)
	}

	// Every change is on record, by whom it was asked, as intent and outcome; also the refused one.
	found := map[string]int{}
	for i := range 4 {
		dir := c.DataDir(i) + "/audit"
		c.Stop(i)
		if _, err := audit.Verify(dir, nil); err != nil {
			t.Fatal(err)
		}
		for _, r := range readRecords(t, dir) {
			if strings.HasPrefix(r.Op, "cluster.members.") {
				found[r.Op+" "+r.Phase+" "+r.Decision+" "+r.Detail+" "+r.Result]++
			}
		}
	}
	for _, want := range []string{
		"cluster.members.add decision deny  ", "cluster.members.add intent allow member " + id + " ", "cluster.members.add outcome allow member " + id + " ok",
		"cluster.members.remove intent allow member " + id + " ", "cluster.members.remove outcome allow member " + id + " ok",
		"cluster.members.transfer outcome allow member " + id + " ok",
	} {
		if found[want] == 0 {
			t.Errorf("no record %q; there are %v", want, found)
		}
	}
}

// A voter that lost its data stays out until it is removed and added; then it
// serves and votes again. Its audit log goes on when it was kept, and when it was
// lost, too, that shows.
func TestWipedPeerComesBack(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]string{"raft": "raft", "all": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wipedPeerComesBack(t, lost)
		})
	}
}

func wipedPeerComesBack(t *testing.T, lost string) {
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	wiped := (c.Leader() + 1) % 3
	other := (wiped + 1) % 3
	su := c.Client(nodetest.Role("superuser"), other)
	if _, err := su.Put(ctx, "a/b", map[string]string{"k": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	status, err := su.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id, address := status.Peers[wiped].ID, status.Peers[wiped].Address
	nodetest.Eventually(t, "its audit log is anchored", func() error {
		if status, err = su.Status(ctx); err == nil && status.Peers[wiped].AuditAnchor == "" {
			err = errors.New("no anchor")
		}
		return err
	})
	c.Stop(wiped)
	if err := os.RemoveAll(filepath.Join(c.DataDir(wiped), lost)); err != nil {
		t.Fatal(err)
	}
	c.Start(wiped)
	if err := su.AddMember(ctx, id, address); secret.CodeOf(err) != secret.CodeConflict {
		t.Fatalf("added while it is a voter: %v", err)
	}
	if err := su.RemoveMember(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := su.AddMember(ctx, id, address); err != nil {
		t.Fatal(err)
	}
	c.Ready()
	if values, _, err := c.Client(nodetest.Role("superuser"), wiped).Get(ctx, "a/b", 0); err != nil || values["k"] != "v" {
		t.Fatal(values, err)
	}
	nodetest.Eventually(t, "it votes again", func() error { return su.PromoteMember(ctx, id) })
	fault := c.Node(wiped).Status(ctx).Peers[wiped].AuditFault
	c.Stop(wiped)
	report, err := audit.Verify(filepath.Join(c.DataDir(wiped), "audit"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if kept := lost != ""; kept != (fault == "") || kept != (len(report.Findings) == 0) || !kept && !strings.Contains(fault, "is not here") {
		t.Errorf("fault %q, findings %v", fault, report.Findings)
	}
}
