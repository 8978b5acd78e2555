package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
	"github.com/spike-ha/spike-ha/secret"
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
