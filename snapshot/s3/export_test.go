package s3

import (
	"context"
	"net/url"
	"time"
)

// OpenQuick is Open with little patience.
func OpenQuick(ctx context.Context, u *url.URL, silence time.Duration) (*Bucket, error) {
	return open(ctx, u, patience{attempts: 4, maxBackoff: 10 * time.Millisecond, silence: silence})
}
