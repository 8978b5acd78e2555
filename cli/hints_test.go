package cli

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/cluster"
	"github.com/spike-ha/spike-ha/secret"
)

// A hint is about what is wrong, and not about a majority that is there.
func TestHints(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		err  error
		want string
	}{
		{&secret.Error{Code: secret.CodeUnavailable, Reason: client.ReasonDraining}, "drain --undo"},
		{&secret.Error{Code: secret.CodeUnavailable, Cause: fmt.Errorf("get: %w", http.ErrSchemeMismatch)}, "does not speak TLS"},
		{fmt.Errorf("data: %w", cluster.ErrDirInUse), "stop the peer first"},
		{&secret.Error{Code: secret.CodeUnavailable}, "a majority of the peers must be up"},
	} {
		if got := hintFor(x.err); !strings.Contains(got, x.want) {
			t.Errorf("%v: %q", x.err, got)
		}
	}
}
