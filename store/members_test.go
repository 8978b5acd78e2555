package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/audit"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// Members are changed by superusers alone, and only on record: who asked, which
// member, and what became of it.
func TestChangesOfMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, role := range []secret.Role{secret.RoleAdmin, secret.RoleOperator, secret.RoleRecover, secret.RoleRestore, secret.RoleBootstrap, ""} {
		r := store.Request{Caller: secret.Caller{ID: "spiffe://example.org/x", Role: role}}
		wantCode(t, w.ChangeMembers(ctx, r, store.MemberChange{Kind: store.RemoveMember, ID: "n1"}), secret.CodeDenied)
	}
	n := len(w.audit.records)
	for _, c := range []store.MemberChange{
		{Kind: store.AddMember, ID: "n4"},
		{Kind: store.AddMember, Address: "host:1"},
		{Kind: store.PromoteMember},
		{Kind: store.RemoveMember, ID: strings.Repeat("x", 65)},
	} {
		wantCode(t, w.ChangeMembers(ctx, su, c), secret.CodeInvalid)
	}
	if len(w.changes) != 0 {
		t.Fatalf("refused, and made: %v", w.changes)
	}
	for _, r := range w.audit.records[n:] {
		if len(r.Detail) > 80 {
			t.Errorf("a record of the caller's size: %q", r.Detail)
		}
	}
	n = len(w.audit.records)
	good := store.MemberChange{Kind: store.AddMember, ID: "n4", Address: "host:1"}
	wantCode(t, w.ChangeMembers(ctx, su, good), "")
	wantCode(t, w.ChangeMembers(ctx, su, store.MemberChange{Kind: store.TransferLeadership}), "")
	want := []string{"cluster.members.add intent allow", "cluster.members.add outcome allow ok", "cluster.members.transfer intent allow", "cluster.members.transfer outcome allow ok"}
	if got := w.audit.since(n); !slices.Equal(got, want) || w.audit.records[n].Detail != "member n4" {
		t.Errorf("%q, %q", got, w.audit.records[n].Detail)
	}
	if len(w.changes) != 2 || w.changes[0] != good {
		t.Errorf("asked for %v", w.changes)
	}
	n = len(w.audit.records)
	wantCode(t, w.RemoveDead(ctx, store.Request{Caller: secret.Caller{ID: "spiffe://example.org/spike/nexus/n1"}}, "n4", time.Hour), "")
	want = []string{"cluster.members.remove intent allow", "cluster.members.remove outcome allow ok"}
	if got := w.audit.since(n); !slices.Equal(got, want) || w.audit.records[n].By != "setting dead-peer-after" || w.audit.records[n].Detail != "member n4, silent for 1h0m0s" {
		t.Errorf("%q, %+v", got, w.audit.records[n])
	}
	w.changes = w.changes[:2]
	w.audit.fail = func(r audit.Record) error {
		if r.Phase == audit.PhaseIntent {
			return errDisk
		}
		return nil
	}
	wantCode(t, w.ChangeMembers(ctx, su, good), secret.CodeUnavailable)
	if len(w.changes) != 2 {
		t.Error("changed without an intent on record")
	}
}
