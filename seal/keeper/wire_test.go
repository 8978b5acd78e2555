package keeper

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
)

var someSlot = seal.Slot{Cluster: seal.ClusterRef{ID: [16]byte{1, 2}, Incarnation: 3}, Set: [16]byte{4}, Index: 5}

func TestPlaceRequestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := seal.Slot{
			Cluster: seal.ClusterRef{ID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "cluster")), Incarnation: rapid.Uint64Min(1).Draw(t, "incarnation")},
			Set:     [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "set")),
			Index:   rapid.IntRange(1, seal.MaxShares).Draw(t, "index"),
		}
		s.Cluster.ID[0] |= 1
		s.Set[0] |= 1
		share := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "share")
		share[31] |= 1
		got, back, err := parseSlot(placeRequest(s, share), placeFields)
		if err != nil || got != s || !bytes.Equal(back, share) {
			t.Fatal(got, back, err)
		}
	})
}

func TestParseSlotIsStrict(t *testing.T) {
	t.Parallel()
	good := string(placeRequest(someSlot, bytes.Repeat([]byte{7}, 32)))
	if _, _, err := parseSlot([]byte(good), placeFields); err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) string {
		out := strings.Replace(good, old, new, 1)
		if out == good {
			t.Fatalf("%q is not in the request", old)
		}
		return out
	}
	for name, body := range map[string]string{
		"unknown field":      change(`{`, `{"x":1,`),
		"another case":       change(`"index"`, `"Index"`),
		"twice":              change(`"index":5`, `"index":5,"index":5`),
		"twice, by case":     change(`"index":5`, `"index":5,"INDEX":5`),
		"missing":            change(`"index":5,`, ``),
		"index 0":            change(`"index":5`, `"index":0`),
		"index 256":          change(`"index":5`, `"index":256`),
		"negative index":     change(`"index":5`, `"index":-1`),
		"half an index":      change(`"index":5`, `"index":1.5`),
		"incarnation 0":      change(`"incarnation":3`, `"incarnation":0`),
		"huge incarnation":   change(`"incarnation":3`, `"incarnation":18446744073709551616`),
		"null":               change(`"incarnation":3`, `"incarnation":null`),
		"no base64":          change(`"set":"B`, `"set":"!`),
		"empty set":          change(`"set":"BAAAAAAAAAAAAAAAAAAAAA=="`, `"set":""`),
		"zero set":           change(`"set":"BA`, `"set":"AA`),
		"trailing":           good + `{}`,
		"trailing bracket":   good + `]`,
		"an array around it": `[` + good + `]`,
		"nested":             change(`"index":5`, `"index":[[[[[5]]]]]`),
		"short share":        change(`Bwc=`, `BwcH`),
		"empty":              ``,
		"null body":          `null`,
		"a string":           `"cluster"`,
		"unterminated":       good[:len(good)-1],
	} {
		if slot, share, err := parseSlot([]byte(body), placeFields); err == nil {
			t.Errorf("%s: accepted as %+v %x", name, slot, share)
		}
	}
	zero := string(placeRequest(someSlot, make([]byte, 32)))
	if _, _, err := parseSlot([]byte(zero), placeFields); err == nil {
		t.Error("a share of zeros was accepted")
	}
}

// The errors of parsing must not quote what was parsed.
func TestParserErrorsQuoteNothing(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"shard":"CANARY"}`, `{"shard":[CANARY]}`, `CANARY`, `{"share":CANARY}`} {
		_, e1 := parseContribution([]byte(body))
		_, _, e2 := parseSlot([]byte(body), placeFields)
		e3 := parseEmpty([]byte(body), true)
		for _, err := range []error{e1, e2, e3} {
			if err != nil && strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
}

func TestVaultForgetsAndRemembers(t *testing.T) {
	t.Parallel()
	v := newVault([16]byte{})
	if err := v.place(someSlot, bytes.Repeat([]byte{1}, 32)); err != nil {
		t.Fatal(err)
	}
	v.contribute(bytes.Repeat([]byte{2}, 32))
	v.wipe()
	if len(v.slots()) != 0 || v.contribution(func([]byte) {}) {
		t.Error("a share survived the wipe")
	}
	for i := range 3 * maxRetired { // one set after the other, as rekeying does
		s := someSlot
		s.Set = [16]byte{1, byte(i), byte(i >> 8)}
		if err := v.place(s, bytes.Repeat([]byte{1}, 32)); err != nil {
			t.Fatal(err)
		}
		if err := v.settle(s.Cluster, s.Set, 0); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.shares) != 1 || len(v.retired) != maxRetired {
		t.Errorf("%d shares, %d retired", len(v.shares), len(v.retired))
	}
}

func FuzzRequests(f *testing.F) {
	f.Add(placeRequest(someSlot, bytes.Repeat([]byte{7}, 32)))
	f.Add([]byte(`{"shard":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32]}`))
	f.Add([]byte(`{"a":{"b":[1,{"c":null}]},"A":1}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if slot, share, err := parseSlot(b, placeFields); err == nil {
			again, back, err := parseSlot(placeRequest(slot, share), placeFields)
			if err != nil || again != slot || !bytes.Equal(back, share) {
				t.Fatal("what was accepted does not survive a round trip", err)
			}
		}
		if share, err := parseContribution(b); err == nil {
			back, err := parseContribution(bytes.Replace(shardAnswer(nil, share), []byte(`"Err":""`), []byte(`"x":""`), 1))
			if err != nil || !bytes.Equal(back, share) {
				t.Fatal("a contribution does not survive a round trip", err)
			}
		}
		if err := parseEmpty(b, false); err == nil && !json.Valid(b) {
			t.Fatal("accepted what is not JSON")
		}
	})
}

func FuzzTrust(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("spike.ist")
	trust := Trust{Nexus: []spiffeid.TrustDomain{td}, Bootstrap: []spiffeid.TrustDomain{td}}
	for _, seed := range []string{"/spike/nexus", "/spike/nexus/a", "/spike/nexus/a/b", "/spike/nexusx", "/spike/bootstrap/a/b", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		id, err := spiffeid.FromPath(td, path)
		if err != nil {
			return
		}
		segments := strings.Split(path, "/")
		role := strings.Join(segments[:min(len(segments), 3)], "/")
		want := role == "/spike/nexus" && len(segments) <= 4 || role == "/spike/bootstrap"
		if got := trust.admits(id) == nil; got != want {
			t.Fatalf("%q: admitted %v", path, got)
		}
	})
}

func FuzzProveRequest(f *testing.F) {
	w := wireSlot(someSlot)
	w.Nonce = bytes.Repeat([]byte{9}, nonceSize)
	f.Add(mustJSON(w))
	f.Add(placeRequest(someSlot, bytes.Repeat([]byte{7}, 32)))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		slot, nonce, err := parseSlot(b, proveFields)
		if err != nil {
			return
		}
		w := wireSlot(slot)
		w.Nonce = nonce
		again, back, err := parseSlot(mustJSON(w), proveFields)
		if err != nil || again != slot || !bytes.Equal(back, nonce) || len(nonce) != nonceSize {
			t.Fatal("what was accepted does not survive a round trip", err)
		}
	})
}

// A Keeper's answers are read as if it lied.
func FuzzAnswers(f *testing.F) {
	f.Add(proofAnswer([32]byte{1}))
	f.Add(statusAnswer(Status{Version: "v1", Started: time.Unix(1, 0).UTC(), Slots: []HeldSlot{{someSlot, true}},
		Askers: []Asking{{Peer: "spiffe://spike.ist/spike/nexus/n", Op: "fetch", Count: 3, Refused: 1, Last: time.Unix(2, 0).UTC()}}}))
	f.Add([]byte(`{"slots":[{}]}`))
	f.Add([]byte("{\"version\":\"\\u001b[2J\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if proof, err := parseProof(b); err == nil {
			if again, err := parseProof(proofAnswer(proof)); err != nil || again != proof {
				t.Fatal("a proof does not survive a round trip", err)
			}
		}
		s, err := parseStatus(b)
		if err != nil {
			return
		}
		if len(s.Slots) > maxSlots || len(s.Askers) > maxAskers || len(s.Version) > 256 {
			t.Fatal("an answer without bounds")
		}
		for _, a := range append(s.Askers, Asking{Peer: s.Version}) {
			if strings.ContainsAny(a.Peer+a.Op, "\x00\x07\x1b\n\r\t") {
				t.Fatalf("%+q could do something to a terminal", a.Peer+a.Op)
			}
		}
		if _, err := parseStatus(statusAnswer(s)); err != nil {
			t.Fatal("a status does not survive a round trip", err)
		}
	})
}

func TestProveRequestIsStrict(t *testing.T) {
	t.Parallel()
	w := wireSlot(someSlot)
	for n, want := range map[int]bool{32: true, 31: false, 33: false, 0: false} {
		w.Nonce = bytes.Repeat([]byte{1}, n)
		if _, _, err := parseSlot(mustJSON(w), proveFields); (err == nil) != want {
			t.Errorf("a nonce of %d bytes: %v", n, err)
		}
	}
	w.Nonce = bytes.Repeat([]byte{1}, 32)
	w.Share = bytes.Repeat([]byte{1}, 32)
	if _, _, err := parseSlot(mustJSON(w), proveFields); err == nil {
		t.Error("a share in a challenge was accepted")
	}
	if _, _, err := parseSlot(mustJSON(w), placeFields); err == nil {
		t.Error("a nonce beside a share was accepted")
	}
}
