package fsm_test

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// A renewed state has the secrets and policies that it had, and nothing of the
// cluster before; it is one that a snapshot carries on.
func TestRenew(t *testing.T) {
	t.Parallel()
	m := full(t)
	want(t, do(t, m, with(99, m.View().Index(), put("renewed", 0, 1, "x"))), fsmpb.Code_OK)
	do(t, m, anchor("n1", 40))
	do(t, m, setSeal(true, m.View().Seal().Generation))
	before := m.View()
	data, _ := before.Hashes()
	seal := proto.Clone(before.Seal()).(*fsmpb.SealState)
	seal.Keyring, seal.Pending = []byte("another keyring"), seal.Committed
	if err := m.Renew(seal, 44); err != nil {
		t.Fatal(err)
	}
	v := m.View()
	if now, _ := v.Hashes(); now != data || v.SecretCount() != before.SecretCount() || v.PolicyCount() != before.PolicyCount() {
		t.Error("secrets or policies changed")
	}
	if s := v.Seal(); s.Sealed || s.Pending != nil || string(s.Keyring) != "another keyring" || s.Generation <= before.Seal().Generation {
		t.Errorf("%v", s)
	}
	if id, incarnation := v.Cluster(); incarnation != 44 || !bytes.Equal(id, mustID(before)) {
		t.Errorf("cluster %x, incarnation %d", id, incarnation)
	}
	if _, there := v.Anchor("n1"); there {
		t.Error("an anchor of an audit log of before is there")
	}
	restored := fsm.New(fsm.Options{})
	if err := restored.Restore(bytes.NewReader(snapshot(t, v))); err != nil {
		t.Fatal(err)
	}
	equal(t, v, restored.View())
	want(t, do(t, restored, with(99, before.Index()-2, put("renewed", 0, 1, "x"))), fsmpb.Code_WINDOW_EXPIRED)
	want(t, do(t, restored, put("renewed", secret(restored, "renewed").Revision, 2, "y")), fsmpb.Code_OK)
}

func mustID(v *fsm.View) []byte {
	id, _ := v.Cluster()
	return id
}

func TestRenewRefusesWhatNobodyCouldOpen(t *testing.T) {
	t.Parallel()
	if err := fsm.New(fsm.Options{}).Renew(full(t).View().Seal(), 1); !errors.Is(err, fsm.ErrNotRenewable) {
		t.Errorf("an empty machine: %v", err)
	}
	m := full(t)
	_, incarnation := m.View().Cluster()
	good := m.View().Seal()
	for what, seal := range map[string]*fsmpb.SealState{
		"nothing": nil, "no share set": {Keyring: []byte("k")}, "no keyring": {Committed: good.Committed, Epochs: good.Epochs},
	} {
		if err := m.Renew(seal, incarnation); !errors.Is(err, fsm.ErrNotRenewable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := m.Renew(good, incarnation-1); !errors.Is(err, fsm.ErrNotRenewable) {
		t.Errorf("a lower incarnation: %v", err)
	}
}
