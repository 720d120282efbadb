package service

import (
	"errors"
	"strings"
)

// Outcome says in which of the ways that users can rely on a command ended.
type Outcome int

// The outcomes; their numbers are the exit codes of the programs.
const (
	Success Outcome = 0
	Failed  Outcome = 1 // the message says what is whole and where
	Usage   Outcome = 2 // the request makes no sense
	Stopped Outcome = 3 // before the end, nothing lost, the same command resumes
	Refused Outcome = 4 // by preflight, nothing was changed
)

// Error is an error for people: what was refused or failed, on which object, what
// state things are in, and what to do.
type Error struct {
	Outcome Outcome
	Object  string // path or id
	Problem string // what is wrong with it
	State   string // what is whole and where; may be empty when nothing was changed
	Hint    string // what to do
	Err     error  // cause, if any
	Passing bool   // the cause may go away by itself, where Err does not tell
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Object != "" {
		b.WriteString(e.Object + ": ")
	}
	b.WriteString(e.Problem)
	if e.Err != nil {
		b.WriteString(": " + strings.ReplaceAll(e.Err.Error(), "\n", "; ")) // joined errors are lines
	}
	if e.State != "" {
		b.WriteString("; " + e.State)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// OutcomeOf is how a command ended that returned err.
func OutcomeOf(err error) Outcome {
	var e *Error
	switch {
	case err == nil:
		return Success
	case errors.As(err, &e):
		return e.Outcome
	}
	return Failed
}

// HintOf is what to do about err; it may be empty.
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

func refuse(object, problem, hint string, cause error) *Error {
	return &Error{Outcome: Refused, Object: object, Problem: problem, Hint: hint, Err: cause}
}
