//go:build !planted

package planted

// Is says whether this program has the defect: this build has none.
func Is(Defect) bool { return false }
