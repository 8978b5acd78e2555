package secret

import (
	"errors"
	"fmt"
)

// Code says what kind of thing went wrong; the surfaces map it to a status.
type Code string

// The codes. CodeUnavailable means "certainly not done, try again or another
// peer"; CodeUnknown means "may or may not have been done".
const (
	CodeInvalid     Code = "invalid"       // the request can never succeed as it is
	CodeTooLarge    Code = "too_large"     // a limit on size was passed
	CodeDenied      Code = "denied"        // the caller may not do this
	CodeNotFound    Code = "not_found"     // no such secret, version or policy
	CodeConflict    Code = "conflict"      // compare-and-set: the thing has moved on
	CodeSealed      Code = "sealed"        // this peer has no keys
	CodeUnavailable Code = "unavailable"   // no leader, no quorum, not ready
	CodeOverloaded  Code = "overloaded"    // refused early, try again later
	CodeUnknown     Code = "unknown"       // outcome unknown: read before writing again
	CodeFull        Code = "full"          // the cluster's state has reached its limit
	CodeUndecrypted Code = "not_decrypted" // a ciphertext given by the caller did not open
	// CodeIndexRequired: an idempotency key came without the index that makes it safe.
	CodeIndexRequired Code = "index_required"
	// CodeForeignToken: an index token that this cluster did not make, as it is now.
	CodeForeignToken Code = "foreign_token"
	// CodeForgotten: the changes after the index of a watch are not kept any more.
	CodeForgotten Code = "forgotten"
	CodeInternal  Code = "internal" // a defect or damaged data
)

// Error is a failure with its code. Its text is for people and never holds a
// value, a key or another caller's names; Cause is for logs only.
type Error struct {
	Code    Code
	Subject string // which argument or thing: "path", "policy", …
	Message string
	// Reason is a fixed word for programs, where one code has several causes.
	Reason string
	// Current is, for CodeConflict, the version the secret has now.
	Current Version
	// Operation is which operation of a transaction could not be, from 1; 0 when
	// it is not because of one.
	Operation int
	Cause     error
}

func (e *Error) Error() string {
	if e.Subject == "" {
		return e.Message
	}
	return e.Subject + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error without a subject.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes a CodeInvalid error about the argument subject.
func Invalid(subject, message string) *Error {
	return &Error{Code: CodeInvalid, Subject: subject, Message: message}
}

// CodeOf gives err's code: CodeInternal for one that has none, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
