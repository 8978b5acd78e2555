package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
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
	// ErrName: an object cannot have that name.
	ErrName = errors.New("snapshot: this cannot be the name of an object")
)

// maxName is what S3 allows.
const maxName = 1024

var nameOfObject = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$`)

// CheckName returns an ErrName for what no object of any bucket can be called.
func CheckName(name string) error {
	if len(name) > maxName || !nameOfObject.MatchString(name) {
		return fmt.Errorf("%w: %.100q", ErrName, name)
	}
	return nil
}

// Object is what a bucket says of an object.
type Object struct {
	Name     string
	Size     int64
	Modified time.Time // by the store's clock
}

// Bucket is a place for immutable objects. Names are segments of letters, digits and .-_ joined by slashes, none of which begins with
// a dot; others end in ErrName.
// Implementations are safe for concurrent use, heed the context, retry what the store asks to be retried, and never
// leave a part of an object under its name. Errors besides those named wrap ErrUnavailable or ErrForbidden.
type Bucket interface {
	// Create stores size bytes of body under a name that is free. ErrExists: it is not, or the answer to an earlier
	// attempt of this call was lost; whoever needs to know reads the object.
	Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error
	// Open reads an object; the caller closes it. Bytes that were lost on the way end in an error; bytes that a store gives
	// otherwise than it got them need not: an Archive finds those. ErrNotFound.
	Open(ctx context.Context, name string) (io.ReadCloser, Object, error)
	// List goes through all objects whose names begin with prefix, in the order of their names, after the name after.
	List(ctx context.Context, prefix, after string) iter.Seq2[Object, error]
	// Delete removes an object; one that is not there is no error. A store that keeps versions hides it. ErrRetained.
	Delete(ctx context.Context, name string) error
	// String is the bucket's URL without credentials, for people.
	String() string
}
