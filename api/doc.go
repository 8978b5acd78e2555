// Package api serves HTTP over mTLS: the SPIKE protocol, unchanged for existing
// applications, and the native routes, on every peer.
//
// It decodes, asks package store and encodes; it decides nothing. The caller's
// identity is that of the verified chain of the current connection, looked at
// for each request, and of nothing else: no header is believed, nothing is
// forwarded on somebody's behalf. Bodies are limited before they are read,
// structure (depth, duplicate keys) before they are decoded.
//
// One table (errors.go) maps error codes to status and body, for both protocols.
package api
