package seal

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
	"github.com/spike-ha/spike-ha/seal/internal/sealpb"
)

// The formats that outlive a process are pinned by testdata/format-1.golden: a list of vectors, each of which says
// what must come out, or which error. A vector that fails means that existing clusters or archives could
// not be read; change the format number, not the file. -update writes it anew, with fresh nonces.
var update = flag.Bool("update", false, "write testdata/format-1.golden anew")

const golden = "testdata/format-1.golden"

type vector map[string]string

var failures = map[string]error{"ok": nil, "ErrOpen": ErrOpen, "ErrKeyring": ErrKeyring}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v vector) num(t testing.TB, key string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(v[key], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (v vector) cluster(t testing.TB) ClusterRef {
	return ClusterRef{ID: [16]byte(unhex(t, v["cluster"])), Incarnation: v.num(t, "incarnation")}
}

// unsealed is a Seal with the keys of the vector's root and keyring.
func (v vector) unsealed(t testing.TB) (*Seal, error) {
	t.Helper()
	root := locked.Take(unhex(t, v["root"]))
	st := State{Cluster: v.cluster(t), Keyring: unhex(t, v["keyring"]),
		Committed: &ShareSet{ID: [16]byte(unhex(t, v["set"])), Shares: 1, Threshold: 1, Fingerprints: make([][32]byte, 1), Keepers: []string{"k"}}}
	k, err := newKeys(root, st, maxEncryptions)
	if err != nil {
		return nil, err
	}
	s := quietSeal(Config{})
	t.Cleanup(s.Lock)
	return s, s.install(k, 0)
}

// check runs one vector.
func (v vector) check(t *testing.T) {
	want, known := failures[v["expect"]]
	if !known {
		t.Fatalf("unknown expectation %q", v["expect"])
	}
	switch v["vector"] {
	case "shares":
		set := [16]byte(unhex(t, v["set"]))
		shares, err := split(unhex(t, v["root"]), set, int(v.num(t, "n")), int(v.num(t, "t")))
		if err != nil {
			t.Fatal(err)
		}
		defer destroy(shares)
		for i, s := range shares {
			f := fingerprint(set, i+1, s.Bytes())
			if got := hex.EncodeToString(s.Bytes()); got != v[fmt.Sprintf("share-%d", i+1)] {
				t.Errorf("share %d is %s", i+1, got)
			}
			if got := hex.EncodeToString(f[:]); got != v[fmt.Sprintf("fingerprint-%d", i+1)] {
				t.Errorf("fingerprint %d is %s", i+1, got)
			}
		}
		return
	case "proof":
		slot := Slot{v.cluster(t), [16]byte(unhex(t, v["set"])), int(v.num(t, "index"))}
		proof := Proof(unhex(t, v["share"]), slot, v["keeper"], [32]byte(unhex(t, v["nonce"])))
		if got := hex.EncodeToString(proof[:]); got != v["proof"] {
			t.Errorf("the proof is %s", got)
		}
		return
	case "keyring":
		ring, err := openKeyring(unhex(t, v["root"]), v.cluster(t), [16]byte(unhex(t, v["set"])), unhex(t, v["keyring"]))
		if !errors.Is(err, want) {
			t.Fatalf("got %v", err)
		}
		if err == nil {
			if plain, err := encodeKeyring(ring); err != nil || hex.EncodeToString(plain) != v["plain"] {
				t.Errorf("keyring is %x, %v", plain, err)
			}
		}
		return
	}
	s, err := v.unsealed(t)
	if err != nil {
		t.Fatal(err)
	}
	switch v["vector"] {
	case "record":
		got, err := s.Decrypt(Purpose(v["purpose"]), v.aad(t), unhex(t, v["sealed"]))
		if !errors.Is(err, want) || string(got) != v["plain"] {
			t.Errorf("got %q, %v", got, err)
		}
	case "wire":
		got, err := s.DecryptWire(unhex(t, v["nonce"]), unhex(t, v["ciphertext"]))
		if !errors.Is(err, want) || string(got) != v["plain"] {
			t.Errorf("got %q, %v", got, err)
		}
	case "token":
		token, id, err := s.Token(v["kind"], v["name"])
		if err != nil || hex.EncodeToString(token[:]) != v["token"] || hex.EncodeToString(id) != v["key-id"] {
			t.Errorf("got %x under %x, %v", token, id, err)
		}
	case "audit-path":
		if got, err := s.HashPath(v["name"]); err != nil || got != v["hash"] {
			t.Errorf("got %s, %v", got, err)
		}
	case "fingerprint":
		if got, err := s.Fingerprint([]byte(v["part-1"]), []byte(v["part-2"])); err != nil || hex.EncodeToString(got[:]) != v["mac"] {
			t.Errorf("got %x, %v", got, err)
		}
	default:
		t.Fatalf("unknown vector %q", v["vector"])
	}
}

func (v vector) aad(t testing.TB) AAD {
	return AAD{Kind: v["kind"], Token: unhex(t, v["token"]), Version: v.num(t, "version")}
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	n := 0
	for _, v := range readVectors(t, golden) {
		t.Run(v["vector"]+"/"+v["about"], v.check)
		n++
	}
	if n < 15 {
		t.Fatalf("only %d vectors", n)
	}
}

// readVectors reads a file of vectors.
func readVectors(t *testing.T, file string) (list []vector) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := vector{}
	flush := func() {
		if len(v) > 0 {
			list = append(list, v)
		}
		v = vector{}
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch line := lines.Text(); {
		case line == "":
			flush()
		case !strings.HasPrefix(line, "#"):
			key, value, ok := strings.Cut(line, ": ")
			if !ok {
				t.Fatalf("line %q", line)
			}
			v[key] = value
		}
	}
	flush()
	return list
}

// writeVectors makes the file from the code as it is.
func writeVectors(t *testing.T) {
	var out bytes.Buffer
	fmt.Fprint(&out, "# Format 1 of shares, fingerprints, proofs, keyring, records and MACs. Bytes are in hex.\n")
	emit := func(pairs ...string) {
		out.WriteString("\n")
		for i := 0; i < len(pairs); i += 2 {
			fmt.Fprintf(&out, "%s: %s\n", pairs[i], pairs[i+1])
		}
	}
	root := bytes.Repeat([]byte{0x5a}, 32)
	set := [16]byte(bytes.Repeat([]byte{0x01}, 16))
	cluster := ClusterRef{ID: [16]byte(bytes.Repeat([]byte{0xc1}, 16)), Incarnation: 3}
	h := func(b []byte) string { return hex.EncodeToString(b) }

	for _, c := range [][2]int{{1, 1}, {3, 2}, {5, 5}} {
		pairs := []string{"vector", "shares", "about", fmt.Sprintf("%d of %d", c[1], c[0]), "expect", "ok",
			"root", h(root), "set", h(set[:]), "n", strconv.Itoa(c[0]), "t", strconv.Itoa(c[1])}
		shares, err := split(root, set, c[0], c[1])
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range shares {
			f := fingerprint(set, i+1, s.Bytes())
			pairs = append(pairs, fmt.Sprintf("share-%d", i+1), h(s.Bytes()), fmt.Sprintf("fingerprint-%d", i+1), h(f[:]))
		}
		emit(pairs...)
	}

	share, asked := bytes.Repeat([]byte{0x33}, 32), bytes.Repeat([]byte{0x44}, 32)
	for _, c := range []Slot{{cluster, set, 1}, {cluster, set, 255}, {ClusterRef{cluster.ID, 4}, set, 1}} {
		proof := Proof(share, c, "keeper-1", [32]byte(asked))
		emit("vector", "proof", "about", fmt.Sprintf("of share %d in incarnation %d", c.Index, c.Cluster.Incarnation), "expect", "ok", "share", h(share), "nonce", h(asked),
			"cluster", h(c.Cluster.ID[:]), "incarnation", strconv.FormatUint(c.Cluster.Incarnation, 10), "set", h(c.Set[:]), "index", strconv.Itoa(c.Index),
			"keeper", "keeper-1", "proof", h(proof[:]))
	}

	ring := &sealpb.Keyring{}
	for i, p := range purposes {
		r := &sealpb.Ring{Purpose: string(p)}
		for e := 2; e > 0; e-- { // two epochs each, newest first
			r.Epochs = append(r.Epochs, &sealpb.Epoch{Id: bytes.Repeat([]byte{byte(16*i + e)}, 8),
				Key: bytes.Repeat([]byte{byte(128 + 16*i + e)}, 32), CreatedUnixNano: int64(e) * 1_000_000_000})
		}
		ring.Rings = append(ring.Rings, r)
	}
	plain, err := encodeKeyring(ring)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealKeyring(root, cluster, set, ring)
	if err != nil {
		t.Fatal(err)
	}
	keyring := func(about, expect string, root []byte, c ClusterRef, set, sealed []byte) {
		emit("vector", "keyring", "about", about, "expect", expect, "root", h(root), "cluster", h(c.ID[:]),
			"incarnation", strconv.FormatUint(c.Incarnation, 10), "set", h(set), "plain", h(plain), "keyring", h(sealed))
	}
	alter := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	next := cluster
	next.Incarnation++
	foreign := cluster
	foreign.ID[0]++
	keyring("opens", "ok", root, cluster, set[:], sealed)
	afterRekey := func(about, expect string, from []byte) {
		ring.InheritedFrom = from
		defer func(present []byte) { ring.InheritedFrom, plain = nil, present }(plain)
		if plain, err = encodeKeyring(ring); err != nil {
			t.Fatal(err)
		}
		sealed, err := sealKeyring(root, cluster, set, ring)
		if err != nil {
			t.Fatal(err)
		}
		keyring(about, expect, root, cluster, set[:], sealed)
	}
	afterRekey("opens after a rekey", "ok", alter(set[:], 0))
	afterRekey("after a rekey from what is no share set", "ErrKeyring", set[:8])
	keyring("another root key", "ErrKeyring", alter(root, 31), cluster, set[:], sealed)
	keyring("another incarnation", "ErrKeyring", root, next, set[:], sealed)
	keyring("another cluster", "ErrKeyring", root, foreign, set[:], sealed)
	keyring("another share set", "ErrKeyring", root, cluster, alter(set[:], 3), sealed)
	keyring("altered", "ErrKeyring", root, cluster, set[:], alter(sealed, 100))
	keyring("cut", "ErrKeyring", root, cluster, set[:], sealed[:20])
	keyring("an unknown format", "ErrKeyring", root, cluster, set[:], append([]byte{2}, sealed[1:]...))

	base := []string{"root", h(root), "cluster", h(cluster.ID[:]), "incarnation", "3", "set", h(set[:]), "keyring", h(sealed)}
	v := vector{}
	for i := 0; i < len(base); i += 2 {
		v[base[i]] = base[i+1]
	}
	s, err := v.unsealed(t)
	if err != nil {
		t.Fatal(err)
	}
	with := func(pairs ...string) { emit(append(pairs, base...)...) }
	a := AAD{Kind: "secret", Token: []byte{1, 2, 3}, Version: 9}
	record := func(about, expect string, p Purpose, a AAD, plain string, blob []byte) {
		pairs := []string{"vector", "record", "about", about, "expect", expect, "purpose", string(p), "kind", a.Kind,
			"token", h(a.Token), "version", strconv.FormatUint(a.Version, 10), "sealed", h(blob)}
		if plain != "" {
			pairs = append(pairs, "plain", plain)
		}
		with(pairs...)
	}
	blob, err := s.Encrypt(Data, a, []byte("attack at dawn"))
	if err != nil {
		t.Fatal(err)
	}
	record("opens", "ok", Data, a, "attack at dawn", blob)
	record("another purpose", "ErrOpen", Path, a, "", blob)
	record("another kind", "ErrOpen", Data, AAD{"policy", a.Token, 9}, "", blob)
	record("another token", "ErrOpen", Data, AAD{a.Kind, []byte{1, 2, 4}, 9}, "", blob)
	record("another version", "ErrOpen", Data, AAD{a.Kind, a.Token, 8}, "", blob)
	record("an unknown format", "ErrOpen", Data, a, "", append([]byte{2}, blob[1:]...))
	record("an unknown epoch", "ErrOpen", Data, a, "", alter(blob, 4))
	record("another process", "ErrOpen", Data, a, "", alter(blob, 20))
	record("another nonce", "ErrOpen", Data, a, "", alter(blob, 30))
	record("an altered tag", "ErrOpen", Data, a, "", alter(blob, len(blob)-1))
	record("cut", "ErrOpen", Data, a, "", blob[:40])

	nonce, ct, err := s.EncryptWire([]byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	with("vector", "wire", "about", "opens", "expect", "ok", "nonce", h(nonce[:]), "ciphertext", h(ct), "plain", "hello")
	with("vector", "wire", "about", "another key id", "expect", "ErrOpen", "nonce", h(nonce[:]), "ciphertext", h(alter(ct, 0)))

	token, id, _ := s.Token("secret", "tenants/acme/db")
	with("vector", "token", "about", "of a secret", "expect", "ok", "kind", "secret", "name", "tenants/acme/db", "token", h(token[:]), "key-id", h(id))
	hash, _ := s.HashPath("tenants/acme/db")
	with("vector", "audit-path", "about", "of a path", "expect", "ok", "name", "tenants/acme/db", "hash", hash)
	mac, _ := s.Fingerprint([]byte("put"), []byte("body"))
	with("vector", "fingerprint", "about", "of two parts", "expect", "ok", "part-1", "put", "part-2", "body", "mac", h(mac[:]))

	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
