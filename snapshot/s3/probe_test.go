package s3_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

func TestProbe(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	all := s3.Capabilities{Create: s3.Yes, Read: s3.Yes, List: s3.Yes, Delete: s3.Yes, Conditional: s3.Yes, Fresh: s3.Yes, Versioning: s3.No, Lock: s3.No}
	same := func(t *testing.T, got, want s3.Capabilities) {
		t.Helper()
		got.Clock = 0
		if got.Left != nil || got.String() != want.String() {
			t.Errorf("\n%vinstead of\n%v", got, want)
		}
	}
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "plain"))
		if err := put(t.Context(), b, "p/other", "x"); err != nil {
			t.Fatal(err)
		}
		got, err := b.Probe(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, all)
		if left := names(t, b, ""); !slices.Equal(left, []string{"p/other"}) {
			t.Errorf("in the bucket: %q", left)
		}
	})
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.LockedBucket(t, "locked", 30))
		got, err := b.Probe(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		got.Left, got.Delete = nil, s3.Yes // whether a locked object can be hidden is the store's affair
		want := all
		want.Versioning, want.Lock, want.LockMode, want.LockFor = s3.Yes, s3.Yes, "COMPLIANCE", 30*24*time.Hour
		same(t, got, want)
	})
	t.Run("a store that ignores conditions", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "ignorant"))
		p := s.Proxy(t, 1)
		p.IgnoreConditions(t)
		got, err := open(t, p.URL("ignorant")).Probe(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		want := all
		want.Conditional = s3.No
		same(t, got, want)
		if err := open(t, p.URL("ignorant")).Exclusive(t.Context(), "p"); !errors.Is(err, snapshot.ErrNotExclusive) {
			t.Errorf("exclusive: %v", err)
		}
		if err := open(t, s.Bucket(t, "exclusive")).Exclusive(t.Context(), "p"); err != nil {
			t.Errorf("not exclusive: %v", err)
		}
		if err := open(t, s.Bucket(t, "unconditional")+"&conditional=false").Exclusive(t.Context(), "p"); !errors.Is(err, snapshot.ErrNotExclusive) {
			t.Errorf("exclusive without conditions: %v", err)
		}
		if !strings.Contains(got.String(), "conditional=false") {
			t.Errorf("no advice:\n%v", got)
		}
		if left := names(t, b, ""); left != nil {
			t.Errorf("in the bucket: %q", left)
		}
	})
	t.Run("a store that does not know conditions", func(t *testing.T) {
		t.Parallel()
		s.Bucket(t, "unknowing")
		p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.NotImplemented, Header: "If-None-Match"})
		b := open(t, p.URL("unknowing"))
		got, err := b.Probe(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		want := all
		want.Conditional = s3.No
		same(t, got, want)
		if err := put(t.Context(), b, "x", "x"); err == nil || !strings.Contains(err.Error(), "conditional=false") {
			t.Errorf("no advice: %v", err)
		}
		if err := put(t.Context(), open(t, p.URL("unknowing")+"&conditional=false"), "x", "x"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a store that is down", func(t *testing.T) {
		t.Parallel()
		s.Bucket(t, "down")
		p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.SlowDown})
		if _, err := quick(t, p.URL("down")).Probe(t.Context(), "p"); !errors.Is(err, snapshot.ErrUnavailable) {
			t.Error(err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		if got, err := open(t, s.As(t, s.Access, "wrong").URL("nowhere")).Probe(t.Context(), "p"); !errors.Is(err, snapshot.ErrForbidden) {
			t.Errorf("%v\n%v", err, got)
		}
		if got, err := open(t, s.URL("nowhere")).Probe(t.Context(), "p"); !errors.Is(err, snapshot.ErrForbidden) || !strings.Contains(err.Error(), "no bucket") {
			t.Errorf("%v\n%v", err, got)
		}
	})
	t.Run("versioned", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "versioned"))
		_, err := s.Client(t).PutBucketVersioning(t.Context(), &awss3.PutBucketVersioningInput{Bucket: aws.String("versioned"), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.Probe(t.Context(), "p")
		if err != nil {
			t.Fatal(err)
		}
		want := all
		want.Versioning = s3.Yes
		same(t, got, want)
		out, err := s.Client(t).ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: aws.String("versioned")})
		if err != nil || len(out.Versions)+len(out.DeleteMarkers) > 0 {
			t.Errorf("%d versions and %d markers are left: %v", len(out.Versions), len(out.DeleteMarkers), err)
		}
	})
}
