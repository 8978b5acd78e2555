package store_test

import (
	"slices"
	"testing"

	"github.com/spike-ha/spike-ha/secret"
)

func TestKeepersAreAuthorisedAndAudited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	from := w.audit.len()
	list, err := w.ListKeepers(ctx, su)
	if err != nil || list.Good != 1 {
		t.Fatal(list, err)
	}
	if list, err = w.VerifyKeepers(ctx, su); err != nil || list.Good != 2 {
		t.Fatal(list, err)
	}
	_, err = w.ListKeepers(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	_, err = w.VerifyKeepers(ctx, web)
	wantCode(t, err, secret.CodeDenied)
	want := []string{"keeper.list decision allow", "keeper.verify decision allow", "keeper.list decision deny", "keeper.verify decision deny"}
	if got := w.audit.since(from); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}
