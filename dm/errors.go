package dm

import (
	"errors"
	"fmt"
)

// What can be wrong beyond an errno, for errors.Is.
var (
	// ErrNoDeviceMapper: the kernel has no device-mapper, or its module is not loaded.
	ErrNoDeviceMapper = errors.New("the kernel offers no device-mapper; modprobe dm-mod may bring it")
	// ErrTooOld: the kernel's device-mapper is older than Linux 4.14.
	ErrTooOld = errors.New("the kernel's device-mapper is too old, Linux 4.14 or newer is needed")
	// ErrInvalid: the request was refused here and the kernel was not asked.
	ErrInvalid = errors.New("invalid argument")
	// ErrAnswer: what the kernel answered does not follow the protocol.
	ErrAnswer = errors.New("malformed answer from the kernel")
	// ErrAnswerTooLong: the answer is larger than this package is ready to take.
	ErrAnswerTooLong = errors.New("the kernel's answer is too long")
)

// Error says what failed and on which device. Unwrap leads to the errno, or to one
// of the Err values of this package.
type Error struct {
	Op   string // what was tried, as a verb
	Name string // of the device or target type; empty if it concerns no particular one
	Err  error
}

// Error is a sentence without a full stop.
func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("device-mapper: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("device-mapper: %s %s: %v", e.Op, e.Name, e.Err)
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

func failure(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Name: name, Err: err}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrAnswer, fmt.Sprintf(format, args...))
}
