// How the package fails.

package ca

import (
	"database/sql"
	"errors"
	"fmt"
)

// Kind sorts errors by what the caller can do about them.
type Kind string

// Kinds of Error.
const (
	ProfileViolation Kind = "profile_violation" // the request breaks a rule of the profile: another request may pass
	Conflict         Kind = "conflict"          // the object is not in a state for this; nothing was changed
	NotFound         Kind = "not_found"         // no such CA, profile or certificate
	Invalid          Kind = "invalid"           // what was given cannot be read or makes no sense
	Unavailable      Kind = "unavailable"       // not now: a CA that waits, a key that is away, a database that fails
)

// Error is every error that this package means for its caller.
type Error struct {
	Kind   Kind
	Rule   string // stable word: the reason in answers, logs, metrics and audit
	Detail string // one line, safe to show to the device
	Err    error  // for the log
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Rule, e.Detail, e.Err)
	}
	return e.Rule + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(kind Kind, rule, format string, args ...any) *Error {
	return &Error{Kind: kind, Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// unavailable wraps a failure of storage; an error of this package passes unchanged.
func unavailable(what string, err error) error {
	if err == nil {
		return nil
	}
	var typed *Error
	if errors.As(err, &typed) {
		return err
	}
	return &Error{Kind: Unavailable, Rule: "storage", Detail: "the server cannot store or read its records", Err: fmt.Errorf("%s: %w", what, err)}
}

func isKind(err error, kind Kind) bool {
	var typed *Error
	return errors.As(err, &typed) && typed.Kind == kind
}

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
