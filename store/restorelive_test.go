package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// A plan is a decision on record; carrying it out is an intent and an outcome. Only superusers may do either.
func TestRestoreLiveIsAuthorisedAndAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.audit.len()
	_, err := w.PlanRestore(ctx, su, store.RestoreTarget{}, nil)
	wantCode(t, err, "")
	_, err = w.PlanRestore(ctx, web, store.RestoreTarget{}, nil)
	wantCode(t, err, secret.CodeDenied)
	_, err = w.RestoreLive(ctx, su, store.RestoreTarget{}, "1-2-ab", nil)
	wantCode(t, err, "")
	_, err = w.RestoreLive(ctx, web, store.RestoreTarget{}, "1-2-ab", nil)
	wantCode(t, err, secret.CodeDenied)
	_, err = w.RestoreLive(ctx, su, store.RestoreTarget{}, strings.Repeat("x", 1000), nil)
	wantCode(t, err, secret.CodeInvalid)
	want := []string{"snapshot.plan decision allow", "snapshot.plan decision deny", "snapshot.restore intent allow", "snapshot.restore outcome allow ok",
		"snapshot.restore decision deny", "snapshot.restore intent allow", "snapshot.restore outcome refuse invalid"}
	if got := w.audit.since(from); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}
