package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/spike-ha/spike-ha/snapshot"
)

// denied is a store's refusal for reasons of rights.
type denied struct{ code string }

func (e denied) Error() string { return fmt.Sprintf("%v (%s)", snapshot.ErrForbidden, e.code) }
func (e denied) Unwrap() error { return snapshot.ErrForbidden }

// accessDenied says whether it is this request that is not allowed, rather than whoever asks that is not known.
func accessDenied(err error) bool {
	var d denied
	return errors.As(err, &d) && (d.code == "AccessDenied" || d.code == "AllAccessDisabled" || d.code == "Forbidden")
}

// lockedSays says whether a store refused because of a lock and said so, in the words of AWS.
func lockedSays(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && strings.Contains(strings.ToLower(api.ErrorMessage()), "object lock")
}

// unknownRequest says whether a store does not know what it was asked.
func unknownRequest(err error) bool {
	var api smithy.APIError
	var response *awshttp.ResponseError
	return errors.As(err, &api) && api.ErrorCode() == "NotImplemented" || errors.As(err, &response) && response.HTTPStatusCode() == http.StatusNotImplemented
}

// failure says what the SDK's error means here.
func (b *Bucket) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", snapshot.ErrUnavailable, context.Cause(ctx))
	}
	var api smithy.APIError
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	status := 0
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	var missing *types.NoSuchKey
	switch {
	case code == "NoSuchBucket":
		return fmt.Errorf("%w: there is no bucket %s", snapshot.ErrForbidden, b.url)
	case errors.As(err, &missing), code == "NotFound", code == "NoSuchKey", status == http.StatusNotFound:
		return snapshot.ErrNotFound
	case code == "PreconditionFailed", status == http.StatusPreconditionFailed:
		return snapshot.ErrExists
	case code == "RequestTimeTooSkewed":
		return fmt.Errorf("%w: the clocks of the store and of this machine differ by more than it accepts", snapshot.ErrForbidden)
	case unknownRequest(err):
		return fmt.Errorf("%w: the store does not know this request; try conditional=false in the bucket's address", snapshot.ErrForbidden)
	case status == http.StatusForbidden, status == http.StatusUnauthorized, strings.Contains(err.Error(), "failed to refresh cached credentials"), strings.Contains(err.Error(), "get credentials"):
		if code == "" {
			code = "no credentials"
		}
		return denied{code}
	}
	return fmt.Errorf("%w: %w", snapshot.ErrUnavailable, err)
}
