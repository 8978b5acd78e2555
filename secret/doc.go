// Package secret is the vocabulary of SPIKE HA: paths, versions, callers,
// permissions, patterns, policies and error codes.
//
// Every other package of ours that speaks of secrets imports it; it imports
// none of ours and does no I/O. A value of one of its types that came from a
// Parse function is canonical: two equal names are equal byte for byte, and no
// later layer normalises, folds or unescapes anything. That is what keeps a
// policy and the storage below it from ever disagreeing about a name (the
// class of CVE-2026-3605 and CVE-2025-64761 in other stores).
package secret
