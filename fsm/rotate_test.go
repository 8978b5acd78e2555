package fsm_test

import (
	"testing"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// A reseal is no change that anybody is told of: no act, and nothing that a
// writer decided on moves.
func TestResealIsNoChange(t *testing.T) {
	t.Parallel()
	m, a, _, p := ready(t)
	want(t, do(t, m, raise(2)), fsmpb.Code_OK)
	var last fsm.Delta
	_, stop := m.Observe(changed(func(d fsm.Delta) { last = d }))
	defer stop()
	policies := m.View().PolicyRevision()
	data, _ := m.View().Hashes()

	if r := do(t, m, reseal(resealed("a", a, 2, "sealed anew"))); r.Code != fsmpb.Code_OK || r.Resealed != 1 {
		t.Fatal(r)
	}
	if len(last.Acts) != 0 || len(last.Secrets) != 1 || last.Secrets[0].New.Revision != a {
		t.Fatal("told: ", last)
	}
	if r := do(t, m, resealPolicy("p", p, "body anew")); r.Code != fsmpb.Code_OK || r.Resealed != 1 {
		t.Fatal(r)
	}
	if m.View().PolicyRevision() != policies {
		t.Fatal("the policies moved")
	}
	if after, _ := m.View().Hashes(); after == data {
		t.Fatal("other ciphertexts, and the same hash")
	}
	want(t, do(t, m, put("a", a, 3, "three")), fsmpb.Code_OK) // decided before
	// What moved since is left alone, and not only what was named first.
	if r := do(t, m, reseal(resealed("a", a, 2, "late"), resealed("a", secret(m, "a").Revision, 3, "THREE"))); r.Resealed != 1 {
		t.Fatal(r)
	}
	if v := secret(m, "a").Versions; string(v[len(v)-2].Value) != "sealed anew" || string(v[len(v)-1].Value) != "THREE" {
		t.Fatal(v)
	}
	want(t, do(t, m, setSeal(true, m.View().Seal().Generation)), fsmpb.Code_OK)
	want(t, do(t, m, reseal(resealed("a", a, 1, "x"))), fsmpb.Code_SEALED)
	want(t, do(t, m, replace(1, "sealed keyring", "x", 2)), fsmpb.Code_SEALED)
}
