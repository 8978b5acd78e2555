//go:build planted

package planted

import "os"

var present = Defect(os.Getenv("SPIKE_PLANTED"))

// Is says whether this program has the defect.
func Is(d Defect) bool { return d == present }
