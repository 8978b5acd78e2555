package s3_test

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/buckettest"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

var ctx = context.Background()

func TestMain(m *testing.M) { os.Exit(s3server.Run(m)) }

func open(t testing.TB, address string) *s3.Bucket {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3.Open(ctx, u)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBucket(t *testing.T) {
	s := s3server.Start(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.Secret)
	buckettest.Run(t, open(t, s.Bucket(t, "archive")))

	t.Run("large", func(t *testing.T) {
		b := open(t, s.Bucket(t, "large"))
		content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
		if err := b.Create(ctx, "large", int64(len(content)), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		r, o, err := b.Open(ctx, "large")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var got bytes.Buffer
		if _, err := got.ReadFrom(r); err != nil || !bytes.Equal(got.Bytes(), content) || o.Size != int64(len(content)) {
			t.Error("another content came back", err)
		}
	})
	t.Run("no bucket", func(t *testing.T) {
		b := open(t, s.URL("nowhere"))
		if err := b.Create(ctx, "x", 1, strings.NewReader("x")); !errors.Is(err, snapshot.ErrForbidden) || !strings.Contains(err.Error(), "no bucket") {
			t.Error(err)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
		b := open(t, s.URL("archive"))
		if err := b.Create(ctx, "x", 1, strings.NewReader("x")); !errors.Is(err, snapshot.ErrForbidden) {
			t.Error(err)
		}
		if _, _, err := b.Open(ctx, "a/c/d"); !errors.Is(err, snapshot.ErrForbidden) {
			t.Error(err)
		}
		for _, err := range b.List(ctx, "", "") {
			if !errors.Is(err, snapshot.ErrForbidden) {
				t.Error(err)
			}
		}
	})
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"s3://", "https://bucket", "s3://user:secret@bucket", "s3://b?endpoint=nowhere", "s3://b?endpoint=ftp://x", "s3://b?color=red", "s3://b?region=a&region=b",
		"s3://b?path-style=perhaps", "s3://b?ca=/no/such/file", "s3://b#x"} {
		u, err := url.Parse(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s3.Open(ctx, u); err == nil {
			t.Errorf("%s is an address", bad)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
