package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// A key that comes while a value is being encrypted: the command names the key
// that the value may be under, so it is refused and made again.
func TestKeyRotatedDuringAnEncryption(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var named []string
	w.log.before = func(c *fsmpb.Command) {
		named = append(named, string(c.Basis.DataEpoch))
		w.log.before = func(c *fsmpb.Command) { named = append(named, string(c.Basis.DataEpoch)) }
	}
	w.keys.during = func() {
		before := w.log.before // rotating proposes nothing through the hook
		w.rotate("epoch-2")
		w.log.before = before
	}
	if _, err := w.PutSecret(ctx, su, "a", values("1"), nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(named, []string{"epoch-1", "epoch-2"}) {
		t.Fatal("the commands named ", named)
	}
}

func TestRotateKeysIsAuthorisedAndAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.audit.len()
	if err := w.RotateKeys(ctx, su, []string{"data"}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.RotateKeys(ctx, web, nil), secret.CodeDenied)
	wantCode(t, w.RotateKeys(ctx, su, []string{strings.Repeat("x", 1000)}), secret.CodeInvalid)
	wantCode(t, w.RotateKeys(ctx, su, make([]string, 1000)), secret.CodeInvalid)
	_, err := w.Keys(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	if len(w.rotated) != 1 || !slices.Equal(w.rotated[0], []string{"data"}) {
		t.Fatal(w.rotated)
	}
	want := []string{"key.rotate intent allow", "key.rotate outcome allow ok", "key.rotate decision deny",
		"key.rotate intent allow", "key.rotate outcome refuse invalid", "key.rotate intent allow", "key.rotate outcome refuse invalid", "key.status decision deny"}
	if got := w.audit.since(from); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

func TestRekeyIsAuthorisedAndAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := store.Rekeying{ID: [16]byte{1}, Shares: 3, Threshold: 2, Keepers: []string{"keeper-1", "keeper-2", "keeper-3"}, Force: true, AllowSingleShare: true}
	if err := w.Rekey(ctx, su, q); err != nil {
		t.Fatal(err)
	}
	if set, err := w.CancelRekey(ctx, su); err != nil || set != "a set" {
		t.Fatal(set, err)
	}
	wantCode(t, w.Rekey(ctx, web, q), secret.CodeDenied)
	_, err := w.CancelRekey(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	wantCode(t, w.Rekey(ctx, su, store.Rekeying{Keepers: make([]string, 256)}), secret.CodeInvalid)
	wantCode(t, w.Rekey(ctx, su, store.Rekeying{Keepers: []string{strings.Repeat("x", 256)}}), secret.CodeInvalid)
	if len(w.rekeys) != 1 {
		t.Fatal(w.rekeys)
	}
	var lines []string
	for _, r := range w.audit.records {
		if strings.HasPrefix(r.Op, "key.rekey") {
			lines = append(lines, strings.TrimSpace(strings.Join([]string{r.Op, string(r.Phase), string(r.Decision), r.Detail}, " ")))
		}
	}
	about := " shares 3, threshold 2, force, a single share allowed, Keepers keeper-1 keeper-2 keeper-3"
	want := []string{"key.rekey intent allow" + about, "key.rekey outcome allow" + about, "key.rekey.cancel intent allow", "key.rekey.cancel outcome allow"}
	if len(lines) < 4 || !slices.Equal(lines[:4], want) {
		t.Fatalf("%q, want %q", lines, want)
	}
}

func TestPruneKeysIsAuthorisedAndAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := len(w.audit.records)
	before := time.Now().Add(-time.Hour)
	if n, err := w.PruneKeys(ctx, su, before); n != 1 || err != nil || len(w.pruned) != 1 || !w.pruned[0].Equal(before) {
		t.Fatal(n, err, w.pruned)
	}
	_, err := w.PruneKeys(ctx, web, before)
	wantCode(t, err, secret.CodeDenied)
	_, err = w.PruneKeys(ctx, su, time.Now().Add(time.Hour))
	wantCode(t, err, secret.CodeInvalid)
	want := []string{"key.prune intent allow", "key.prune outcome allow ok", "key.prune decision deny", "key.prune intent allow", "key.prune outcome refuse invalid"}
	if got := w.audit.since(from); !slices.Equal(got, want) || len(w.pruned) != 1 {
		t.Fatalf("%q", got)
	}
}
