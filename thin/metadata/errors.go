package metadata

import (
	"errors"

	"decant/dm/persistent"
)

// What a caller may want to act on; ask with errors.Is.
var (
	// ErrChanging means that a pool committed during every attempt to read it. Nothing
	// is known about its state. Try again when less is written to it, or hold a
	// metadata snapshot.
	ErrChanging = persistent.ErrChanging
	// ErrNotHeld means that the pool holds no metadata snapshot.
	ErrNotHeld = errors.New("the pool holds no metadata snapshot")
	// ErrNoDevice means that there is no thin device with that id.
	ErrNoDevice = errors.New("no thin device has this id")
	// ErrNoSpaceMap means that a held metadata snapshot was asked for reference
	// counts, which the kernel does not keep in it.
	ErrNoSpaceMap = errors.New("a held metadata snapshot has no reference counts")
	// ErrUnsupported means that the format is a newer or another one.
	ErrUnsupported = errors.New("this format of thin metadata is not supported")
	// ErrNotCounted means that it cannot be known whether a pool in use has committed,
	// because the kernel does not count the I/O of its metadata device.
	ErrNotCounted = persistent.ErrNotCounted
)

// CorruptError says which block of the metadata device is not as it has to be. On a
// pool in use it can also mean that the block has been written since the root was
// read; Consistently tells the two apart.
type CorruptError = persistent.CorruptError

// format is that of thin pools.
var format = &persistent.Format{
	Name:   "thin metadata",
	Advice: "if the pool is not in use, its metadata is damaged: check it with thin_check",
}
