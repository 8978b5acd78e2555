package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
)

var aSecret = seal.AAD{Kind: "secret", Token: []byte("token"), Version: 7}

func TestInitialiseThenUnsealElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 3)
	sealed, err := w.first.Encrypt(seal.Data, aSecret, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	other := seal.New(seal.Config{Logger: quiet})
	if !other.Sealed() {
		t.Fatal("a new process is unsealed")
	}
	reports, err := other.Unseal(t.Context(), w.now(), w.all())
	if err != nil {
		t.Fatal(err, reports)
	}
	if got, err := other.Decrypt(seal.Data, aSecret, sealed); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	one, id1, err1 := w.first.Token("secret", "a/b")
	two, id2, err2 := other.Token("secret", "a/b")
	if err1 != nil || err2 != nil || one != two || !bytes.Equal(id1, id2) {
		t.Fatal("two processes disagree on a token", err1, err2)
	}
	for _, k := range w.keepers {
		if len(k.settled) == 0 || k.settled[0] != w.now().Committed.ID {
			t.Errorf("%s was not told to settle", k.name)
		}
	}
	if err := w.first.Initialise(t.Context(), w.ledger, seal.Split{Keepers: w.all(), Shares: 5, Threshold: 3}); !errors.Is(err, seal.ErrAlreadyInitialised) {
		t.Fatalf("again: %v", err)
	}
}

func TestLockedProcessDoesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	s := w.first
	sealed, _ := s.Encrypt(seal.Data, aSecret, []byte("x"))
	nonce, wire, _ := s.EncryptWire([]byte("x"))
	st := w.now()
	s.Lock()
	s.Lock()
	_, e1 := s.Encrypt(seal.Data, aSecret, nil)
	_, e2 := s.Decrypt(seal.Data, aSecret, sealed)
	_, _, e3 := s.Token("secret", "x")
	_, e4 := s.Epoch(seal.Data)
	_, e5 := s.HashPath("x")
	_, e6 := s.Fingerprint([]byte("x"))
	_, _, e7 := s.EncryptWire(nil)
	_, e8 := s.DecryptWire(nonce[:], wire)
	_, e9 := s.Recovery(st)
	_, e10 := s.Refill(t.Context(), st, w.all())
	_, e11 := s.DecryptWire(nil, nil)
	for i, err := range []error{e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11} {
		if !errors.Is(err, seal.ErrSealed) {
			t.Errorf("operation %d: %v", i+1, err)
		}
	}
	if !s.Sealed() {
		t.Error("not sealed")
	}
	if _, err := s.Inspect(t.Context(), st, w.all()); err != nil {
		t.Errorf("inspecting needs no key: %v", err)
	}
	if _, err := s.Unseal(t.Context(), st, w.all()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Decrypt(seal.Data, aSecret, sealed); err != nil || string(got) != "x" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestRecordsOpenOnlyInTheirPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	foreign := newWorld(t, 1, 1)
	rapid.Check(t, func(t *rapid.T) {
		a := seal.AAD{
			Kind:    rapid.StringN(0, 20, 40).Draw(t, "kind"),
			Token:   rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "token"),
			Version: rapid.Uint64().Draw(t, "version"),
		}
		plain := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "plain")
		sealed, err := w.first.Encrypt(seal.Data, a, plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != len(plain)+seal.Overhead {
			t.Fatalf("overhead %d", len(sealed)-len(plain))
		}
		if got, err := w.first.Decrypt(seal.Data, a, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatal(got, err)
		}
		refused := func(what string, s *seal.Seal, p seal.Purpose, a seal.AAD, b []byte) {
			t.Helper()
			if _, err := s.Decrypt(p, a, b); err != seal.ErrOpen {
				t.Fatalf("%s: %v", what, err)
			}
		}
		refused("other purpose", w.first, seal.Path, a, sealed)
		refused("other cluster", foreign.first, seal.Data, a, sealed)
		b := a
		b.Version++
		refused("other version", w.first, seal.Data, b, sealed)
		b = a
		b.Kind += "x"
		refused("other kind", w.first, seal.Data, b, sealed)
		b = a
		b.Token = append(bytes.Clone(a.Token), 0)
		refused("other token", w.first, seal.Data, b, sealed)
		if len(a.Token) > 0 { // the border between kind and token is part of the AAD
			b = seal.AAD{Kind: a.Kind + string(a.Token[:1]), Token: a.Token[1:], Version: a.Version}
			refused("moved border", w.first, seal.Data, b, sealed)
		}
		bit := rapid.IntRange(0, 8*len(sealed)-1).Draw(t, "bit")
		flipped := bytes.Clone(sealed)
		flipped[bit/8] ^= 1 << (bit % 8)
		refused("flipped bit", w.first, seal.Data, a, flipped)
		refused("cut", w.first, seal.Data, a, sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")])
		refused("longer", w.first, seal.Data, a, append(sealed, 0))
	})
}

func TestWireCiphertext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	other := seal.New(seal.Config{Logger: quiet})
	if _, err := other.Unseal(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err)
	}
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("spike"), 1000)} {
		nonce, ct, err := w.first.EncryptWire(plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(ct) != len(plain)+seal.WireOverhead {
			t.Fatalf("overhead %d", len(ct)-len(plain))
		}
		if got, err := other.DecryptWire(nonce[:], ct); err != nil || !bytes.Equal(got, plain) {
			t.Fatal(got, err)
		}
		for i := range ct {
			bad := bytes.Clone(ct)
			bad[i] ^= 0x80
			if _, err := other.DecryptWire(nonce[:], bad); err != seal.ErrOpen {
				t.Fatalf("byte %d altered: %v", i, err)
			}
			if len(plain) > 10 && i > 60 {
				break
			}
		}
		nonce[3]++
		if _, err := other.DecryptWire(nonce[:], ct); err != seal.ErrOpen {
			t.Fatalf("other nonce: %v", err)
		}
	}
	nonce, ct, _ := w.first.EncryptWire([]byte("x"))
	for name, err := range map[string]error{
		"short nonce": second(other.DecryptWire(nonce[:11], ct)),
		"no nonce":    second(other.DecryptWire(nil, ct)),
		"short":       second(other.DecryptWire(nonce[:], ct[:seal.WireOverhead-1])),
	} {
		if err != seal.ErrOpen {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ []byte, err error) error { return err }

func TestMACsAreSeparate(t *testing.T) {
	t.Parallel()
	s := newWorld(t, 1, 1).first
	a, id, _ := s.Token("secret", "x")
	b, _, _ := s.Token("policy", "x")
	c, _, _ := s.Token("secre", "tx")
	d, _ := s.Fingerprint([]byte("secret"), []byte("x"))
	e, _ := s.Fingerprint([]byte("secretx"))
	f, _ := s.Fingerprint([]byte("secret"), []byte("x"), nil)
	seen := make(map[[32]byte]int)
	for i, m := range [][32]byte{a, b, c, d, e, f} {
		if j, ok := seen[m]; ok {
			t.Errorf("%d and %d collide", i, j)
		}
		seen[m] = i
	}
	if under, err := s.TokenUnder(id, "secret", "x"); err != nil || under != a {
		t.Errorf("TokenUnder: %v", err)
	}
	if _, err := s.TokenUnder(make([]byte, 8), "secret", "x"); !errors.Is(err, seal.ErrPurpose) {
		t.Errorf("TokenUnder an unknown key: %v", err)
	}
	h1, _ := s.HashPath("a/b")
	h2, _ := s.HashPath("a/b")
	h3, _ := s.HashPath("a/c")
	if h1 != h2 || h1 == h3 || len(h1) != 16+1+32 {
		t.Errorf("HashPath: %q %q %q", h1, h2, h3)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := newWorld(t, 1, 1).first
	long := string(make([]byte, 10_000))
	_, e1 := s.Encrypt(seal.Data, seal.AAD{Kind: long}, nil)
	_, _, e2 := s.Token("k", long)
	_, e3 := s.HashPath(long)
	_, e4 := s.Encrypt(seal.Data, aSecret, make([]byte, seal.MaxPlaintext+1))
	for i, err := range []error{e1, e2, e3, e4} {
		if !errors.Is(err, seal.ErrTooLarge) {
			t.Errorf("%d: %v", i+1, err)
		}
	}
	if _, err := s.Encrypt("no such purpose", aSecret, nil); !errors.Is(err, seal.ErrPurpose) {
		t.Error(err)
	}
	if _, err := s.Epoch("no such purpose"); !errors.Is(err, seal.ErrPurpose) {
		t.Error(err)
	}
}

func TestLockAmongOperations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	s := w.first
	sealed, err := s.Encrypt(seal.Data, aSecret, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := s.Decrypt(seal.Data, aSecret, sealed)
				if err == nil && string(got) != "hello" || err != nil && !errors.Is(err, seal.ErrSealed) {
					t.Errorf("%q, %v", got, err)
					return
				}
				if _, err := s.Fingerprint([]byte("x")); err != nil && !errors.Is(err, seal.ErrSealed) {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 30 {
		s.Lock()
		if _, err := s.Unseal(t.Context(), w.now(), w.all()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

// A Lock that comes while an unsealing waits for Keepers must win.
func TestLockBeatsUnsealUnderWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, 1)
	s := seal.New(seal.Config{Logger: quiet})
	gate := &gatedKeeper{Keeper: w.keepers[0], asked: make(chan struct{}), go_: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		_, err := s.Unseal(context.Background(), w.now(), []seal.Keeper{gate})
		done <- err
	}()
	<-gate.asked
	s.Lock()
	close(gate.go_)
	if err := <-done; !errors.Is(err, seal.ErrSealed) || !s.Sealed() {
		t.Fatalf("err %v, sealed %v", err, s.Sealed())
	}
}

type gatedKeeper struct {
	seal.Keeper
	asked, go_ chan struct{}
}

func (k *gatedKeeper) Fetch(ctx context.Context, s seal.Slot) ([]byte, error) {
	close(k.asked)
	<-k.go_
	return k.Keeper.Fetch(ctx, s)
}

func BenchmarkEncryptDecrypt256(b *testing.B) {
	s := newWorld(b, 1, 1).first
	plain := make([]byte, 256)
	b.ReportAllocs()
	for b.Loop() {
		sealed, err := s.Encrypt(seal.Data, aSecret, plain)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Decrypt(seal.Data, aSecret, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToken(b *testing.B) {
	s := newWorld(b, 1, 1).first
	for b.Loop() {
		if _, _, err := s.Token("secret", "tenants/acme/db/creds"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	for _, c := range [][2]int{{5, 3}, {9, 5}} {
		b.Run(fmt.Sprintf("%d of %d", c[1], c[0]), func(b *testing.B) {
			w := newWorld(b, c[0], c[1])
			s := seal.New(seal.Config{Logger: quiet, KeeperTimeout: time.Second})
			for b.Loop() {
				if _, err := s.Unseal(context.Background(), w.now(), w.all()); err != nil {
					b.Fatal(err)
				}
				s.Lock()
			}
		})
	}
}
