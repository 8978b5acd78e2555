// Package s3 is a snapshot.Bucket in an S3 store, through the AWS SDK.
//
// It assumes of the store single PUTs that appear whole or not at all, which S3 promises, and lists that may lag. Names are
// never written twice: by a conditional PUT (If-None-Match) where the store has it, which Probe finds out, else by looking first,
// which leaves a moment in which two writers of one name both write. Writers of archives write the same content under
// the same name, so that the second one does no harm.
//
// Checksums beyond what a store asks for are not sent, because many that are not AWS refuse them; the SHA-256 of the body is part
// of the request's signature, and archives authenticate themselves.
package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/spike-ha/spike-ha/snapshot"
)

// MaxObject is the largest object of a single PUT, in bytes.
const MaxObject = 5 << 30

// patience is how long to go on with a store that does not do what it is asked.
type patience struct {
	attempts   int           // of a request, and to go on with one object's reading
	maxBackoff time.Duration // between attempts
	silence    time.Duration // after which an attempt is given up: nothing sent, nothing received
}

// ordinary patience: the last attempt begins some 20 s after the first when the store refuses at once, and 3 minutes when it is silent.
var ordinary = patience{attempts: 6, maxBackoff: 8 * time.Second, silence: 30 * time.Second}

// Bucket implements snapshot.Bucket.
type Bucket struct {
	client   *s3.Client
	bucket   string
	url      string
	plain    bool // the store has no conditional PUT
	patience patience
}

var _ snapshot.Bucket = (*Bucket)(nil)

// Open makes a Bucket of s3://BUCKET?option=…; it asks the store nothing. Options, all of them optional:
//
//	endpoint=https://host:port   of a store that is not AWS
//	region=eu-central-1          else as the SDK finds it; us-east-1 for an endpoint
//	path-style=true              the bucket's name in the path rather than in the host
//	ca=/file                     certificates of authorities to trust besides the system's, in PEM
//	conditional=false            the store has no conditional PUT
//	credentials=/file            credentials in the form of ~/.aws/credentials
//	profile=name                 which of that file's, or of the SDK's shared files'; "default" with credentials
//
// Without the last two, credentials come from the SDK's ordinary chain: environment, shared files, web identity, instance. With them,
// one process can have several identities: one that writes, one that prunes.
func Open(ctx context.Context, u *url.URL) (*Bucket, error) { return open(ctx, u, ordinary) }

func open(ctx context.Context, u *url.URL, p patience) (*Bucket, error) {
	o, err := parse(u)
	if err != nil {
		return nil, err
	}
	transport := awshttp.NewBuildableClient().WithReadTimeout(0).WithTransportOptions(func(t *http.Transport) {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.roots}
		t.DialContext = impatient(t.DialContext, p.silence)
		t.IdleConnTimeout = p.silence / 2
		t.MaxIdleConnsPerHost = 8
	})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(transport),
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(r *retry.StandardOptions) {
				r.MaxAttempts, r.MaxBackoff = p.attempts, p.maxBackoff
				r.Retryables = append(r.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{"ConditionalRequestConflict": {}, "OperationAborted": {}}})
				r.RateLimiter = noLimit{} // of whoever asks, not of the store: a short outage must not use it up
			})
		}),
	}
	if o.region != "" {
		load = append(load, config.WithRegion(o.region))
	}
	if o.credentials != "" {
		load = append(load, config.WithSharedCredentialsFiles([]string{o.credentials}), config.WithSharedConfigFiles([]string{}))
		o.profile = cmp.Or(o.profile, config.DefaultSharedConfigProfile)
	}
	if o.profile != "" {
		load = append(load, config.WithSharedConfigProfile(o.profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("snapshot: the S3 configuration: %w", err)
	}
	client := s3.NewFromConfig(cfg, func(c *s3.Options) {
		if o.endpoint != "" {
			c.BaseEndpoint = aws.String(o.endpoint)
		}
		c.UsePathStyle = o.pathStyle
	})
	return &Bucket{client: client, bucket: o.bucket, url: "s3://" + o.bucket, plain: o.plain, patience: p}, nil
}

type noLimit struct{}

func (noLimit) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}

func (noLimit) AddTokens(uint) error { return nil }

type options struct {
	bucket, endpoint, region string
	credentials, profile     string
	pathStyle, plain         bool
	roots                    *x509.CertPool
}

func parse(u *url.URL) (o options, err error) {
	bad := func(what string) (options, error) {
		return o, fmt.Errorf("snapshot: the bucket's address: %s; write s3://BUCKET?endpoint=https://host:port", what)
	}
	if u.Scheme != "s3" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return bad("it has no bucket, or more than that (credentials come from the environment)")
	}
	o.bucket = u.Host
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("its options cannot be read")
	}
	for name, list := range values {
		if len(list) != 1 {
			return bad("the option " + strconv.Quote(name) + " is there twice")
		}
		value, ok := list[0], true
		switch name {
		case "endpoint":
			e, err := url.Parse(value)
			ok = err == nil && (e.Scheme == "https" || e.Scheme == "http") && e.Host != "" && e.User == nil
			o.endpoint = value
		case "region":
			o.region = value
		case "credentials":
			o.credentials, ok = value, value != ""
			if _, err := os.Stat(value); ok && err != nil {
				return o, fmt.Errorf("snapshot: the credentials of the bucket: %w", err)
			}
		case "profile":
			o.profile, ok = value, value != ""
		case "path-style":
			o.pathStyle, err = strconv.ParseBool(value)
			ok = err == nil
		case "conditional":
			var has bool
			has, err = strconv.ParseBool(value)
			o.plain, ok = !has, err == nil
		case "ca":
			pem, err := os.ReadFile(value)
			if err != nil {
				return o, fmt.Errorf("snapshot: the authorities of the bucket: %w", err)
			}
			if o.roots, err = x509.SystemCertPool(); err != nil {
				o.roots = x509.NewCertPool()
			}
			ok = o.roots.AppendCertsFromPEM(pem)
		default:
			return bad("there is no option " + strconv.Quote(name))
		}
		if !ok {
			return bad(fmt.Sprintf("the option %s cannot be %.100q", name, value))
		}
	}
	if o.endpoint != "" && o.region == "" {
		o.region = "us-east-1"
	}
	return o, nil
}

// String implements snapshot.Bucket.
func (b *Bucket) String() string { return b.url }

// Create implements snapshot.Bucket.
func (b *Bucket) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	if err := snapshot.CheckName(name); err != nil {
		return err
	}
	if size > MaxObject {
		return fmt.Errorf("snapshot: an object of %d bytes; S3 takes %d in one piece", size, int64(MaxObject))
	}
	// A shorter body would look like a bad connection, and be tried again and again.
	if n, err := body.Seek(0, io.SeekEnd); err != nil || n != size {
		return errors.Join(fmt.Errorf("snapshot: %s has %d bytes instead of %d", name, n, size), err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in := &s3.PutObjectInput{Bucket: &b.bucket, Key: &name, Body: body, ContentLength: &size, ContentType: aws.String("application/octet-stream")}
	if b.plain {
		switch there, err := b.has(ctx, name); {
		case err != nil:
			return err
		case there:
			return snapshot.ErrExists
		}
	} else {
		in.IfNoneMatch = aws.String("*")
	}
	_, err := b.client.PutObject(ctx, in)
	return b.failure(ctx, err)
}

// has looks for an object in a list, because who may write archives need not be allowed to read them.
func (b *Bucket) has(ctx context.Context, name string) (bool, error) {
	one := int32(1)
	out, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: &name, MaxKeys: &one})
	if err != nil {
		return false, b.failure(ctx, err)
	}
	return len(out.Contents) > 0 && aws.ToString(out.Contents[0].Key) == name, nil
}

// List implements snapshot.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[snapshot.Object, error] {
	return func(yield func(snapshot.Object, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: &prefix}
		if after != "" {
			in.StartAfter = &after
		}
		for pages := s3.NewListObjectsV2Paginator(b.client, in); pages.HasMorePages(); {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(snapshot.Object{}, b.failure(ctx, err))
				return
			}
			for _, o := range page.Contents {
				if !yield(snapshot.Object{Name: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
		}
	}
}

// Delete implements snapshot.Bucket.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	if err := snapshot.CheckName(name); err != nil {
		return err
	}
	_, deleteErr := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &name})
	err := b.failure(ctx, deleteErr)
	switch {
	case errors.Is(err, snapshot.ErrNotFound):
		return nil
	case errors.Is(err, snapshot.ErrForbidden):
		if lockedSays(deleteErr) {
			return snapshot.ErrRetained
		}
		// Others say no more than "access denied".
		r, lockErr := b.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.bucket, Key: &name})
		if lockErr == nil && r.Retention != nil && r.Retention.Mode != "" && aws.ToTime(r.Retention.RetainUntilDate).After(time.Now()) {
			return fmt.Errorf("%w (%s until %s)", snapshot.ErrRetained, r.Retention.Mode, aws.ToTime(r.Retention.RetainUntilDate).Format(time.RFC3339))
		}
	}
	return err
}
