package forged

import (
	"errors"
	"testing"
)

// The library's handler lets a frozen leader forge entries, which the suite
// notices; the product's does not. The first happens in most tries, so that
// forty without it are as good as impossible.
func TestFrozenLeader(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		handler Handler
		tries   int
		forges  bool
	}{{Stock, 40, true}, {Ours, 3, false}} {
		t.Run(string(tc.handler), func(t *testing.T) {
			t.Parallel()
			for try := 0; try < tc.tries; {
				violations, err := Try(t.Context(), Frozen, tc.handler)
				switch {
				case errors.Is(err, ErrVoid): // a busy machine elects somebody else
					t.Log(err)
					continue
				case err != nil:
					t.Fatal(err)
				case len(violations) > 0 && tc.forges:
					return
				case len(violations) > 0:
					t.Fatal(violations)
				}
				try++
			}
			if tc.forges {
				t.Errorf("%d tries found nothing: the reproducer cannot fail", tc.tries)
			}
		})
	}
}
