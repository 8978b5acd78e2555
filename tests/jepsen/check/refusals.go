package check

import (
	"slices"
	"strings"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// expected are the codes of refusals that an attack explains. An internal error, a record that does not open, a request that is
// invalid and a denial of the superuser, who all clients are but for those of grants (who take a denial for an answer), it does not. That
// the SVID of a connection has ended is not one.
var expected = []secret.Code{secret.CodeNotFound, secret.CodeConflict, secret.CodeSealed, secret.CodeUnavailable, secret.CodeOverloaded,
	secret.CodeUnknown, secret.CodeForgotten, "unidentified"}

// Refusals finds what was refused for a reason that no attack explains.
func Refusals(ops []history.Op) Result {
	r := Result{Checker: "refusals"}
	for _, op := range ops {
		if op.Outcome == history.OK {
			continue
		}
		r.Checked++
		for code := range strings.FieldsSeq(op.Codes) {
			if !slices.Contains(expected, secret.Code(code)) {
				r.violate("%s was refused with %q: %s", show(op), code, op.Error)
			}
		}
	}
	return r
}
