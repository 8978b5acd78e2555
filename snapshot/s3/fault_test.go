package s3_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

// versions is how many versions of an object the store has.
func versions(t testing.TB, s *s3server.Server, bucket, name string) (n int) {
	t.Helper()
	out, err := s.Client(t).ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &name})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range out.Versions {
		if *v.Key == name {
			n++
		}
	}
	return n
}

// Whatever becomes of a PUT, its name has no object or one, whole, once, and Create says which.
func TestCreateUnderFaults(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	s.LockedBucket(t, "archive", 1) // which keeps each version: none is written over unseen
	for _, tc := range []struct {
		fault   s3server.Fault
		times   int
		want    []error // one of them
		persist bool
	}{
		{s3server.SlowDown, 2, []error{nil}, true},
		{s3server.SlowDown, 0, []error{snapshot.ErrUnavailable}, false},
		{s3server.Internal, 2, []error{nil}, true},
		{s3server.Internal, 0, []error{snapshot.ErrUnavailable}, false},
		{s3server.Conflict, 2, []error{nil}, true},
		{s3server.Conflict, 0, []error{snapshot.ErrUnavailable}, false},
		{s3server.ResetBefore, 2, []error{nil}, true},
		{s3server.ResetBefore, 0, []error{snapshot.ErrUnavailable}, false},
		{s3server.ResetAfter, 1, []error{snapshot.ErrExists}, true},
		{s3server.ResetAfter, 0, []error{snapshot.ErrUnavailable}, true},
		{s3server.FailedAfter, 1, []error{snapshot.ErrExists}, true},
		{s3server.FailedAfter, 0, []error{snapshot.ErrUnavailable}, true},
		{s3server.TakenAfter, 1, []error{snapshot.ErrExists}, true},
		{s3server.Skewed, 0, []error{snapshot.ErrForbidden}, false},
		{s3server.Hang, 1, []error{nil}, true},
		{s3server.Hang, 0, []error{snapshot.ErrUnavailable}, false},
		{s3server.HangAfter, 1, []error{snapshot.ErrExists}, true},
		{s3server.HangAfter, 0, []error{snapshot.ErrUnavailable}, true},
	} {
		times := "for ever"
		if tc.times > 0 {
			times = "for a while"
		}
		t.Run(string(tc.fault)+" "+times, func(t *testing.T) {
			t.Parallel()
			p := s.Proxy(t, 1, s3server.Rule{Fault: tc.fault, Method: "PUT", Times: tc.times})
			b, err := s3.OpenQuick(t.Context(), parse(t, p.URL("archive")), silence(tc.fault))
			if err != nil {
				t.Fatal(err)
			}
			name := "create/" + strings.ReplaceAll(strings.Map(func(r rune) rune {
				if r == ' ' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
					return r
				}
				return -1
			}, t.Name()), " ", "-")
			err = put(t.Context(), b, name, "content")
			if !slices.ContainsFunc(tc.want, func(want error) bool { return errors.Is(err, want) }) {
				t.Errorf("%v, want one of %v", err, tc.want)
			}
			if tc.fault == s3server.Skewed && !strings.Contains(err.Error(), "clocks") {
				t.Errorf("it does not speak of clocks: %v", err)
			}
			if hit, _ := p.Hits(); hit == 0 || tc.times == 0 && hit > 4 {
				t.Errorf("%d requests met the fault", hit)
			}
			want := 0
			if tc.persist {
				want = 1
			}
			if got := versions(t, s, "archive", name); got != want {
				t.Errorf("%d versions of the object, want %d", got, want)
			}
			p.Do() // and when the store works again, the same call completes it
			if err := put(t.Context(), b, name, "content"); err != nil && !errors.Is(err, snapshot.ErrExists) {
				t.Error(err)
			}
			if got, err := get(t.Context(), b, name); got != "content" || err != nil || versions(t, s, "archive", name) != 1 {
				t.Errorf("in the end %q, %v, %d versions", got, err, versions(t, s, "archive", name))
			}
		})
	}
}

// silence is how long a request may be silent: short where it is waited for, long where a busy machine alone is silent.
func silence(f s3server.Fault) time.Duration {
	if strings.HasPrefix(string(f), string(s3server.Hang)) || strings.Contains(string(f), "no answer") {
		return 500 * time.Millisecond
	}
	return 5 * time.Second
}

// What is read is what was written, or an error; and one broken answer does not end a long read.
func TestOpenUnderFaults(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	direct := open(t, s.Bucket(t, "archive"))
	content := strings.Repeat("an archive of some length ", 40_000)
	if err := put(t.Context(), direct, "object", content); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		fault s3server.Fault
		times int
		want  error
	}{
		{s3server.SlowDown, 2, nil}, {s3server.SlowDown, 0, snapshot.ErrUnavailable},
		{s3server.Internal, 2, nil}, {s3server.Internal, 0, snapshot.ErrUnavailable},
		{s3server.ResetBefore, 2, nil}, {s3server.ResetBefore, 0, snapshot.ErrUnavailable},
		{s3server.Torn, 7, nil}, {s3server.HangInBody, 1, nil}, // each a step forward
		{s3server.Hang, 1, nil}, {s3server.Hang, 0, snapshot.ErrUnavailable},
		{s3server.Skewed, 0, snapshot.ErrForbidden},
	} {
		times := "for ever"
		if tc.times > 0 {
			times = "for a while"
		}
		t.Run(string(tc.fault)+" "+times, func(t *testing.T) {
			t.Parallel()
			p := s.Proxy(t, 1, s3server.Rule{Fault: tc.fault, Method: "GET", Name: "object", Times: tc.times})
			b, err := s3.OpenQuick(t.Context(), parse(t, p.URL("archive")), silence(tc.fault))
			if err != nil {
				t.Fatal(err)
			}
			got, err := get(t.Context(), b, "object")
			if !errors.Is(err, tc.want) || tc.want == nil && got != content {
				t.Errorf("%d bytes, %v, want %v", len(got), err, tc.want)
			}
			if hit, _ := p.Hits(); hit == 0 || hit > max(4, tc.times) {
				t.Errorf("%d requests met the fault", hit)
			}
		})
	}
	t.Run("the rest is short, too", func(t *testing.T) {
		t.Parallel()
		p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.Torn, Method: "GET", Times: 1}, s3server.Rule{Fault: s3server.Short, Method: "GET", Times: 1})
		if got, err := get(t.Context(), quick(t, p.URL("archive")), "object"); err != nil || got != content {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("the object became another meanwhile", func(t *testing.T) {
		t.Parallel()
		p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.Torn, Method: "GET"})
		b := quick(t, p.URL("archive"))
		if err := put(t.Context(), direct, "other", content); err != nil {
			t.Fatal(err)
		}
		r, _, err := b.Open(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p.Do()
		if err := direct.Delete(t.Context(), "other"); err != nil {
			t.Fatal(err)
		}
		if err := put(t.Context(), direct, "other", strings.ToUpper(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err == nil || !strings.HasPrefix(content, string(got)) {
			t.Errorf("%d bytes of two objects, %v", len(got), err)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		t.Parallel()
		p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.HangInBody, Method: "GET"})
		ctx, cancel := context.WithCancel(t.Context())
		b := open(t, p.URL("archive")) // whose patience is longer than the test
		r, _, err := b.Open(ctx, "object")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(r); !errors.Is(err, snapshot.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestListAndDeleteUnderFaults(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	direct := open(t, s.Bucket(t, "archive"))
	for _, name := range []string{"l/a", "l/b"} {
		if err := put(t.Context(), direct, name, "x"); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"l/a", "l/b"}
	for _, fault := range []s3server.Fault{s3server.SlowDown, s3server.Internal, s3server.ResetBefore, s3server.ResetAfter, s3server.FailedAfter, s3server.Hang, s3server.HangAfter} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			p := s.Proxy(t, 1, s3server.Rule{Fault: fault, Times: 2})
			b, err := s3.OpenQuick(t.Context(), parse(t, p.URL("archive")), silence(fault))
			if err != nil {
				t.Fatal(err)
			}
			if got := names(t, b, "l/"); !slices.Equal(got, want) {
				t.Errorf("a list under faults: %q", got)
			}
			p.Do(s3server.Rule{Fault: fault})
			for o, err := range b.List(t.Context(), "l/", "") {
				if !errors.Is(err, snapshot.ErrUnavailable) || o.Name != "" {
					t.Errorf("%+v, %v", o, err)
				}
			}
			if err := b.Delete(t.Context(), "none"); !errors.Is(err, snapshot.ErrUnavailable) {
				t.Errorf("deleting: %v", err)
			}
			p.Do(s3server.Rule{Fault: fault, Times: 2})
			if err := b.Delete(t.Context(), "none"); err != nil {
				t.Errorf("deleting under faults: %v", err)
			}
		})
	}
	// Half a list is an error, not a shorter list.
	for _, fault := range []s3server.Fault{s3server.Torn, s3server.Short, s3server.HangInBody} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			p := s.Proxy(t, 1, s3server.Rule{Fault: fault, Method: "LIST"})
			b, err := s3.OpenQuick(t.Context(), parse(t, p.URL("archive")), 500*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			var last error
			for _, err := range b.List(t.Context(), "l/", "") {
				last = err
			}
			if !errors.Is(last, snapshot.ErrUnavailable) {
				t.Errorf("half a list: %v", last)
			}
		})
	}
}

// A long outage does not use up the patience for what comes after it.
func TestAfterAnOutage(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	s.Bucket(t, "archive")
	p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.SlowDown})
	b := quick(t, p.URL("archive"))
	for range 40 {
		if err := put(t.Context(), b, "x", "x"); !errors.Is(err, snapshot.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	p.Do(s3server.Rule{Fault: s3server.SlowDown, Times: 3})
	if err := put(t.Context(), b, "x", "x"); err != nil {
		t.Error(err)
	}
}
