// Package buckettest holds implementations of snapshot.Bucket to what the interface says.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spike-ha/spike-ha/snapshot"
)

func names(t testing.TB, b snapshot.Bucket, prefix, after string) (list []string) {
	t.Helper()
	for o, err := range b.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Name)
	}
	return list
}

// Run tests b, which is empty.
func Run(t *testing.T, b snapshot.Bucket) {
	t.Helper()
	ctx := t.Context()
	put := func(name, content string) error {
		return b.Create(ctx, name, int64(len(content)), strings.NewReader(content))
	}
	for _, name := range []string{"a/b", "a/c/d", "a/b-1", "b"} {
		if err := put(name, "content of "+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("a/b", "other"); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	r, o, err := b.Open(ctx, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(r); err != nil || string(content) != "content of a/b" || o.Size != int64(len(content)) || o.Name != "a/b" {
		t.Errorf("%q, %+v, %v", content, o, err)
	}
	r.Close()
	if _, _, err := b.Open(ctx, "a/none"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}
	for _, tc := range []struct {
		prefix, after string
		want          []string
	}{
		{"", "", []string{"a/b", "a/b-1", "a/c/d", "b"}}, {"a/", "", []string{"a/b", "a/b-1", "a/c/d"}}, {"a/b", "", []string{"a/b", "a/b-1"}},
		{"a/", "a/b", []string{"a/b-1", "a/c/d"}}, {"none/", "", nil}, {"", "a/c/d", []string{"b"}},
	} {
		if got := names(t, b, tc.prefix, tc.after); !slices.Equal(got, tc.want) {
			t.Errorf("prefix %q after %q: %q, want %q", tc.prefix, tc.after, got, tc.want)
		}
	}
	for range 2 {
		if err := b.Delete(ctx, "a/b"); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, b, "a/", ""); !slices.Equal(got, []string{"a/b-1", "a/c/d"}) {
		t.Errorf("after deleting: %q", got)
	}
	// Of many who create one name, one does.
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			switch err := put("race", strings.Repeat("x", 1000+i)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, snapshot.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d created one name", won.Load())
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Create(ended, "late", 4, strings.NewReader("late")); err == nil || errors.Is(err, snapshot.ErrExists) {
		t.Errorf("with a context that ended: %v", err)
	}
	if _, _, err := b.Open(ctx, "late"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("what was not created is there: %v", err)
	}
	if err := b.Create(ctx, "torn", 10, io.NewSectionReader(bytes.NewReader([]byte("torn")), 0, 4)); err == nil {
		t.Error("an object of fewer bytes than announced")
	}
	if got := names(t, b, "torn", ""); got != nil {
		t.Errorf("a part of an object is there: %q", got)
	}
	for _, bad := range []string{"", "/", "/a", "a/", "a//b", "../x", "a/../b", "a/.", ".hidden", "a/.b", "a b", "a\x00", "a\n", "ä", "a?b", "a%2fb", "a\\b", strings.Repeat("a", 1025)} {
		_, _, openErr := b.Open(ctx, bad)
		for what, err := range map[string]error{"created": put(bad, "x"), "opened": openErr, "deleted": b.Delete(ctx, bad)} {
			if !errors.Is(err, snapshot.ErrName) {
				t.Errorf("%.20q is %s: %v", bad, what, err)
			}
		}
	}
}
