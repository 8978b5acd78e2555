package locked_test

import (
	"bytes"
	"testing"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

func TestBuffer(t *testing.T) {
	for _, n := range []int{1, 32, 4096, 4097, 100_000} {
		b := locked.New(n)
		if len(b.Bytes()) != n || cap(b.Bytes()) != n {
			t.Fatalf("%d bytes: len %d cap %d", n, len(b.Bytes()), cap(b.Bytes()))
		}
		for i := range b.Bytes() {
			b.Bytes()[i] = byte(i)
		}
		b.Destroy()
		b.Destroy()
		if b.Bytes() != nil {
			t.Fatal("usable after Destroy")
		}
	}
	var none *locked.Buffer
	none.Destroy()
}

func TestTakeWipesItsSource(t *testing.T) {
	secret := []byte("0123456789")
	b := locked.Take(secret)
	defer b.Destroy()
	if string(b.Bytes()) != "0123456789" || !bytes.Equal(secret, make([]byte, 10)) {
		t.Fatalf("%q from %q", b.Bytes(), secret)
	}
}
