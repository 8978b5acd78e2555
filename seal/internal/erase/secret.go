//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package erase

import "runtime/secret"

// Enabled says whether Do erases.
const Enabled = true

// Do calls f; see the package comment.
func Do(f func()) { secret.Do(f) }
