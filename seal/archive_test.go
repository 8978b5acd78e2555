package seal_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/spike-ha/spike-ha/seal"
)

// An archive stream opens on every peer, under every archive key there was, and only as what it was made for.
func TestArchiveStreams(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	other := w.peer(t)
	plain := random(3*seal.StreamChunk + 5)
	var out bytes.Buffer
	stream, err := w.first.ArchiveStream(&out, []byte("context"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.first.Rotate(ctx, w.ledger, seal.Rotatable); err != nil {
		t.Fatal(err)
	}
	if err := other.Follow(w.now()); err != nil {
		t.Fatal(err)
	}
	open := func(context string, sealed []byte) ([]byte, error) {
		r, err := other.OpenArchive(bytes.NewReader(sealed), []byte(context))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	if got, err := open("context", out.Bytes()); err != nil || !bytes.Equal(got, plain) {
		t.Fatal(err)
	}
	for _, context := range []string{"", "another", "context and more"} {
		if _, err := open(context, out.Bytes()); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("with the context %q: %v", context, err)
		}
	}
	if _, err := openStream(w.first, out.Bytes()); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("as a stream of the cipher API: %v", err)
	}
	asArchive := sealStream(t, w.first, plain)
	asArchive[0] = out.Bytes()[0]
	if _, err := open("", asArchive); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("a stream of the cipher API as an archive: %v", err)
	}
	w.first.Lock()
	if _, err := w.first.OpenArchive(&out, nil); !errors.Is(err, seal.ErrSealed) {
		t.Error(err)
	}
}

// Records of an older state open again, although their key has left the live peers.
func TestReinstate(t *testing.T) {
	t.Parallel()
	ctx, w := t.Context(), newWorld(t, 3, 2)
	aad := seal.AAD{Kind: "value", Version: 1}
	var records [][]byte
	for range 3 {
		record, err := w.first.Encrypt(seal.Data, aad, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, record)
		if err := w.first.Rotate(ctx, w.ledger, seal.Rotatable); err != nil {
			t.Fatal(err)
		}
		if err := w.first.Follow(w.now()); err != nil {
			t.Fatal(err)
		}
		retired, err := w.first.RetiredEpochs(seal.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.first.Archive(ctx, w.ledger, seal.Data, retired); err != nil {
			t.Fatal(err)
		}
	}
	peer := w.peer(t) // has never had the archived keys
	for _, r := range records {
		if _, err := peer.Decrypt(seal.Data, aad, r); !errors.Is(err, seal.ErrOpen) {
			t.Fatal("an archived key is live:", err)
		}
	}
	st := w.now()
	keyring, epochs, err := peer.Reinstate(st)
	if err != nil {
		t.Fatal(err)
	}
	current, err := peer.Epoch(seal.Data)
	if err != nil {
		t.Fatal(err)
	}
	// In a Seal of its own, they open beside the live keys, and go with them.
	other := w.peer(t)
	reader, with, err := other.Reinstated(st)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if _, err := reader.Decrypt(seal.Data, aad, r); err != nil {
			t.Error(err)
		}
		if _, err := other.Decrypt(seal.Data, aad, r); !errors.Is(err, seal.ErrOpen) {
			t.Error("an archived key is live:", err)
		}
	}
	if len(with.Epochs) != len(st.Epochs) || bytes.Equal(with.Keyring, st.Keyring) {
		t.Error("not the state with another keyring")
	}
	if other.Lock(); !reader.Sealed() {
		t.Error("a seal left the keys of a restore")
	}
	st.Keyring, st.Epochs = keyring, epochs
	if err := peer.Follow(st); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if _, err := peer.Decrypt(seal.Data, aad, r); err != nil {
			t.Error(err)
		}
	}
	if now, err := peer.Epoch(seal.Data); err != nil || !bytes.Equal(now, current) {
		t.Error("another key is current", err)
	}
	if retired, err := peer.RetiredEpochs(seal.Data); err != nil || len(retired) != 3 {
		t.Errorf("%d retired keys, %v", len(retired), err)
	}
	peer.Lock()
	if _, _, err := peer.Reinstate(st); !errors.Is(err, seal.ErrSealed) {
		t.Error(err)
	}
}
