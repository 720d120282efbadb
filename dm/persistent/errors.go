package persistent

import (
	"errors"
	"fmt"
)

// What a caller may want to act on; ask with errors.Is.
var (
	// ErrChanging means that there was a commit during every attempt to read. Nothing
	// is known about the state. Try again when less is written.
	ErrChanging = errors.New("there was a commit while the metadata was read")
	// ErrNotCounted means that it cannot be known whether there was a commit, because
	// the kernel does not count the I/O of the metadata device.
	ErrNotCounted = errors.New("the I/O of the metadata device is not counted")
)

// CorruptError says which block of a metadata device is not as it has to be. Of metadata
// in use it can also mean that the block has been written since the root was read;
// Consistently tells the two apart.
type CorruptError struct {
	Block   uint64 // of 4096 bytes, from the start of the metadata device
	Problem string // what was found, and what was expected
	format  *Format
}

// Error names the block and the problem, and what to do.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s block %d: %s; %s", e.format.Name, e.Block, e.Problem, e.format.Advice)
}

// Corrupt is a CorruptError.
func (f *Format) Corrupt(block uint64, format string, args ...any) error {
	return &CorruptError{Block: block, Problem: fmt.Sprintf(format, args...), format: f}
}
