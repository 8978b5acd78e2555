package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/spike-ha/spike-ha/snapshot"
)

// Open implements snapshot.Bucket. An answer that breaks off is gone on with where it broke off, as long as the store says that the
// object is still the same.
func (b *Bucket) Open(ctx context.Context, name string) (io.ReadCloser, snapshot.Object, error) {
	if err := snapshot.CheckName(name); err != nil {
		return nil, snapshot.Object{}, err
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.bucket, Key: &name})
	if err != nil {
		return nil, snapshot.Object{}, b.failure(ctx, err)
	}
	size := aws.ToInt64(out.ContentLength)
	r := &reader{b: b, ctx: ctx, name: name, etag: aws.ToString(out.ETag), body: out.Body, size: size}
	return r, snapshot.Object{Name: name, Size: size, Modified: aws.ToTime(out.LastModified)}, nil
}

// reader reads one object through as many answers as that takes.
type reader struct {
	b        *Bucket
	ctx      context.Context // of Open, whose caller reads
	name     string
	etag     string
	body     io.ReadCloser
	at, size int64
	broken   int // answers in a row that gave nothing
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		n, err := r.body.Read(p)
		r.at += int64(n)
		switch {
		case n > 0:
			r.broken = 0
			if r.at > r.size {
				return 0, fmt.Errorf("%w: the answer is longer than it said", snapshot.ErrUnavailable)
			}
			return n, nil // an error comes again
		case err == nil:
			return 0, nil
		case r.at == r.size && errors.Is(err, io.EOF):
			return 0, io.EOF
		}
		if err := r.again(err); err != nil {
			return 0, err
		}
	}
}

// again asks for the rest.
func (r *reader) again(because error) error {
	because = fmt.Errorf("%w: the answer broke off after %d of %d bytes", r.b.failure(r.ctx, because), r.at, r.size)
	r.broken++
	if r.ctx.Err() != nil || r.etag == "" || r.broken >= r.b.patience.attempts {
		return because
	}
	select {
	case <-r.ctx.Done():
		return because
	case <-time.After(rand.N(min(r.b.patience.maxBackoff, time.Second<<(r.broken-1))) + 1):
	}
	out, err := r.b.client.GetObject(r.ctx, &s3.GetObjectInput{Bucket: &r.b.bucket, Key: &r.name, IfMatch: &r.etag, Range: aws.String(fmt.Sprintf("bytes=%d-", r.at))})
	if err != nil {
		if err = r.b.failure(r.ctx, err); errors.Is(err, snapshot.ErrExists) { // a precondition failed: that of If-Match
			err = snapshot.ErrNotFound
		}
		return fmt.Errorf("%w; and then: %w", because, err)
	}
	if want := fmt.Sprintf("bytes %d-%d/%d", r.at, r.size-1, r.size); aws.ToString(out.ContentRange) != want {
		out.Body.Close()
		return because
	}
	r.body.Close()
	r.body = out.Body
	return nil
}

func (r *reader) Close() error { return r.body.Close() }
