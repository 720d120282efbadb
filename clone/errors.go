package clone

import (
	"errors"
	"fmt"
	"io"
)

// Side is one end of a clone.
type Side uint8

// The two ends.
const (
	SourceSide Side = iota
	DestinationSide
)

func (s Side) String() string { return [...]string{"source", "destination"}[s] }

// IOError is a failed operation on one end; offsets are those of the device.
type IOError struct {
	Side   Side
	Op     string // read, write, zero, verify, discard
	Off, N int64
	Err    error
}

func (e *IOError) Error() string {
	return fmt.Sprintf("%s %s, %d bytes at offset %d: %v", e.Side, e.Op, e.N, e.Off, e.Err)
}

func (e *IOError) Unwrap() error { return e.Err }

// ErrMismatch says that the destination returned other bytes than were written.
var ErrMismatch = fmt.Errorf("the destination does not hold what was written to it")

// ioError judges what ReadAt or WriteAt answered: a full count is success even
// with io.EOF, a short one without an error is none.
func ioError(side Side, op string, off int64, p []byte, n int, err error) error {
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
		if op == "write" {
			err = io.ErrShortWrite
		}
	}
	return &IOError{Side: side, Op: op, Off: off, N: int64(len(p)), Err: err}
}
