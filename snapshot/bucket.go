package snapshot

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// What a bucket can answer, to be tested with errors.Is.
var (
	// ErrExists: an object of that name is there, whole; nothing was changed.
	ErrExists = errors.New("snapshot: an object of that name exists already")
	// ErrNotFound: there is no object of that name.
	ErrNotFound = errors.New("snapshot: there is no such object")
	// ErrRetained: a retention rule or lock of the store keeps the object.
	ErrRetained = errors.New("snapshot: the store's retention keeps the object")
	// ErrUnavailable: the store did not answer, or said that it cannot now. It may have done what was asked.
	ErrUnavailable = errors.New("snapshot: the store is not available")
	// ErrForbidden: the credentials do not allow it.
	ErrForbidden = errors.New("snapshot: the store does not allow it; check the credentials and their policy")
)

// Object is what a bucket says of an object.
type Object struct {
	Name     string
	Size     int64
	Modified time.Time // by the store's clock
}

// Bucket is a place for immutable objects. Names are segments of letters, digits and .-_ joined by slashes.
// Implementations are safe for concurrent use, heed the context, retry what the store asks to be retried, and never
// leave a part of an object under its name. Errors besides those named wrap ErrUnavailable or ErrForbidden.
type Bucket interface {
	// Create stores size bytes of body under a name that is free. ErrExists: it is not, or the answer to an earlier
	// attempt of this call was lost; whoever needs to know reads the object.
	Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error
	// Open reads an object; the caller closes it. Bytes that were damaged on the way end in an error. ErrNotFound.
	Open(ctx context.Context, name string) (io.ReadCloser, Object, error)
	// List goes through all objects whose names begin with prefix, in the order of their names, after the name after.
	List(ctx context.Context, prefix, after string) iter.Seq2[Object, error]
	// Delete removes an object; one that is not there is no error. ErrRetained.
	Delete(ctx context.Context, name string) error
	// String is the bucket's URL without credentials, for people.
	String() string
}
