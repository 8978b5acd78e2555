package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/spike-ha/spike-ha/snapshot"
	"github.com/spike-ha/spike-ha/snapshot/buckettest"
	"github.com/spike-ha/spike-ha/snapshot/s3"
	"github.com/spike-ha/spike-ha/tests/s3server"
)

func parse(t testing.TB, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func open(t testing.TB, address string) *s3.Bucket {
	t.Helper()
	b, err := s3.Open(t.Context(), parse(t, address))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// quick opens a bucket with little patience: enough for what a store on this machine does when it does anything.
func quick(t testing.TB, address string) *s3.Bucket {
	t.Helper()
	b, err := s3.OpenQuick(t.Context(), parse(t, address), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(ctx context.Context, b snapshot.Bucket, name, content string) error {
	return b.Create(ctx, name, int64(len(content)), strings.NewReader(content))
}

func get(ctx context.Context, b snapshot.Bucket, name string) (string, error) {
	r, _, err := b.Open(ctx, name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return string(content), err
}

func names(t testing.TB, b snapshot.Bucket, prefix string) (list []string) {
	t.Helper()
	for o, err := range b.List(t.Context(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Name)
	}
	return list
}

func TestBucket(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	t.Run("interface", func(t *testing.T) {
		t.Parallel()
		buckettest.Run(t, open(t, s.Bucket(t, "archive")))
	})
	t.Run("large", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "large"))
		content := strings.Repeat("0123456789abcdef", 1<<20)
		if err := put(t.Context(), b, "large", content); err != nil {
			t.Fatal(err)
		}
		if got, err := get(t.Context(), b, "large"); err != nil || got != content {
			t.Error("another content came back", err)
		}
	})
	t.Run("thousands", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "thousands"))
		const count = 1007 // an answer has 1,000 of a list
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := worker; i < count; i += 8 {
					if err := put(t.Context(), b, fmt.Sprintf("p/%05d", i), "x"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		list := names(t, b, "p/")
		if len(list) != count {
			t.Fatalf("%d of %d objects are in the list", len(list), count)
		}
		for i, name := range list {
			if want := fmt.Sprintf("p/%05d", i); name != want {
				t.Fatalf("%s where %s belongs", name, want)
			}
		}
	})
	t.Run("no bucket", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.URL("nowhere"))
		if err := put(t.Context(), b, "x", "x"); !errors.Is(err, snapshot.ErrForbidden) || !strings.Contains(err.Error(), "no bucket") {
			t.Error(err)
		}
	})
	for name, as := range map[string]*s3server.Server{"wrong secret": s.As(t, s.Access, "wrong"), "nobody": s.As(t, "nobody", "nothing")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, as.URL("archive"))
			if err := put(t.Context(), b, "x", "x"); !errors.Is(err, snapshot.ErrForbidden) {
				t.Error(err)
			}
			if _, err := get(t.Context(), b, "a/c/d"); !errors.Is(err, snapshot.ErrForbidden) {
				t.Error(err)
			}
			for _, err := range b.List(t.Context(), "", "") {
				if !errors.Is(err, snapshot.ErrForbidden) {
					t.Error(err)
				}
			}
			if err := b.Delete(t.Context(), "x"); !errors.Is(err, snapshot.ErrForbidden) {
				t.Error(err)
			}
		})
	}
	t.Run("without conditional PUT", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "plain")+"&conditional=false")
		for _, name := range []string{"a-b", "a"} { // the one is a prefix of the other
			if err := put(t.Context(), b, name, name); err != nil {
				t.Fatal(err)
			}
			if err := put(t.Context(), b, name, "other"); !errors.Is(err, snapshot.ErrExists) {
				t.Errorf("%s: %v", name, err)
			}
			if got, err := get(t.Context(), b, name); err != nil || got != name {
				t.Error(got, err)
			}
		}
	})
	t.Run("gigabytes", func(t *testing.T) {
		t.Parallel()
		b := open(t, s.Bucket(t, "gigabytes"))
		if err := b.Create(t.Context(), "x", s3.MaxObject+1, nothing(s3.MaxObject+1)); err == nil || !strings.Contains(err.Error(), "in one piece") {
			t.Error(err)
		}
	})
}

// nothing is so many bytes that may not be read.
func nothing(size int64) io.ReadSeeker { return io.NewSectionReader(unreadable{}, 0, size) }

type unreadable struct{}

func (unreadable) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("read although it is too large")
}

func TestLockedBucket(t *testing.T) {
	t.Parallel()
	s := s3server.Start(t)
	b := open(t, s.LockedBucket(t, "locked", 1))
	if err := put(t.Context(), b, "kept", "content"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Client(t).PutObjectRetention(t.Context(), &awss3.PutObjectRetentionInput{Bucket: aws.String("locked"), Key: aws.String("kept"),
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(time.Now().Add(48 * time.Hour))}})
	if err != nil {
		t.Fatal(err)
	}
	// Of the stores that refuse to delete what is locked some say no more than that it is not allowed.
	p := s.Proxy(t, 1, s3server.Rule{Fault: s3server.Denied, Method: "DELETE"})
	if err := open(t, p.URL("locked")).Delete(t.Context(), "kept"); !errors.Is(err, snapshot.ErrRetained) || !strings.Contains(err.Error(), "COMPLIANCE until") {
		t.Error(err)
	}
	why := s.Proxy(t, 1, s3server.Rule{Fault: s3server.Locked, Method: "DELETE"})
	if err := open(t, why.URL("locked")).Delete(t.Context(), "any"); !errors.Is(err, snapshot.ErrRetained) {
		t.Error(err)
	}
	if err := open(t, p.URL("locked")).Delete(t.Context(), "none"); !errors.Is(err, snapshot.ErrForbidden) {
		t.Error(err)
	}
	// Others, as this one, hide it, and its version stays.
	if err := b.Delete(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if _, err := get(t.Context(), b, "kept"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
	if versions := versions(t, s, "locked", "kept"); versions != 1 {
		t.Errorf("%d versions are there", versions)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(empty, []byte("[other]\naws_access_key_id = a\naws_secret_access_key = b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"s3://", "https://bucket", "s3://user:secret@bucket", "s3://b?endpoint=nowhere", "s3://b?endpoint=ftp://x", "s3://b?color=red", "s3://b?region=a&region=b",
		"s3://b?path-style=perhaps", "s3://b?ca=/no/such/file", "s3://b#x", "s3://b?credentials=/no/such/file", "s3://b?credentials=", "s3://b?profile=", "s3://b?credentials=" + empty} {
		if _, err := s3.Open(t.Context(), parse(t, bad)); err == nil {
			t.Errorf("%s is an address", bad)
		} else if strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := s3.Open(t.Context(), parse(t, "s3://b?profile=other&credentials="+empty)); err != nil {
		t.Error(err)
	}
}

// Credentials of the environment are used when the address names none.
func TestEnvironment(t *testing.T) {
	s := s3server.Start(t)
	s.Bucket(t, "archive")
	address := "s3://archive?" + url.Values{"endpoint": {"https://" + s.Address}, "path-style": {"true"}, "ca": {s.CA}}.Encode()
	t.Setenv("AWS_ACCESS_KEY_ID", s.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.Secret)
	if err := put(t.Context(), open(t, address), "x", "x"); err != nil {
		t.Error(err)
	}
	if got, err := get(t.Context(), open(t, s.URL("archive")), "x"); err != nil || got != "x" {
		t.Error(got, err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if err := put(t.Context(), open(t, address), "y", "y"); !errors.Is(err, snapshot.ErrForbidden) {
		t.Error(err)
	}
	if err := put(t.Context(), open(t, s.URL("archive")), "y", "y"); err != nil {
		t.Errorf("those of the address go first: %v", err)
	}
}
