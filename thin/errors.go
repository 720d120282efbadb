package thin

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Why a request was refused. Each of them means that nothing was changed; ask with
// errors.Is, or with Refused for any of them.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("does not exist")
	ErrInUse    = errors.New("is in use")
	ErrNotEmpty = errors.New("is not empty")
	ErrInvalid  = errors.New("is not valid")
	ErrForeign  = errors.New("is not what was asked for")
)

// Error says what failed, on which object, what state that is in, and what can be
// done about it.
type Error struct {
	Op     string // what failed, for example "delete volume"
	Object string // for example "pool/volume" or a path
	State  string // what state the object is in; empty if Err says it
	Hint   string // what a person can do; may be empty
	Err    error  // the cause, or one of the reasons above
}

// Error is "what failed: object: state; hint".
func (e *Error) Error() string {
	state := e.State
	if state == "" && e.Err != nil {
		state = e.Err.Error()
	}
	text := fmt.Sprintf("%s: %s: %s", e.Op, e.Object, state)
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Refused says whether err is a refusal before anything was changed.
func Refused(err error) bool {
	for _, reason := range []error{ErrExists, ErrNotFound, ErrInUse, ErrNotEmpty, ErrInvalid, ErrForeign} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// NoSpaceError says that a write would bring a pool above its size limit. It was
// not carried out, not even in part. errors.Is(err, unix.ENOSPC) holds.
type NoSpaceError struct {
	Pool      string
	Volume    string
	NeedBytes int64 // what the write would allocate
	FreeBytes int64 // what the pool has left and has granted to nobody
	SizeBytes int64 // the limit of the pool
}

// Error is in the form of Error.Error.
func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("write volume: %s/%s: the pool has %d of its %d bytes free and %d are needed; delete a volume or discard parts of one",
		e.Pool, e.Volume, e.FreeBytes, e.SizeBytes, e.NeedBytes)
}

// Unwrap is ENOSPC, so that a full pool looks like a full device.
func (e *NoSpaceError) Unwrap() error { return unix.ENOSPC }
