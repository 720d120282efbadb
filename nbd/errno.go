package nbd

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// errno is one of the few errors that the protocol knows. Their numbers are those of
// Linux; no other number of this host ever goes onto the wire.
type errno uint32

const (
	success   errno = 0
	errPerm   errno = 1
	errIO     errno = 5
	errNoMem  errno = 12
	errInval  errno = 22
	errNoSpc  errno = 28
	errOver   errno = 75
	errNotSup errno = 95
	errShut   errno = 108
)

// fromDevice is what the client is told of an error of the device. What has no number
// of its own is an I/O error.
func fromDevice(err error) errno {
	if err == nil {
		return success
	}
	var e unix.Errno
	if !errors.As(err, &e) {
		if errors.Is(err, fs.ErrPermission) {
			return errPerm
		}
		return errIO
	}
	switch e {
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return errPerm
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return errNoSpc
	case unix.EINVAL:
		return errInval
	case unix.EOVERFLOW:
		return errOver
	case unix.EOPNOTSUPP:
		return errNotSup
	case unix.ESHUTDOWN:
		return errShut
	case unix.ENOMEM:
		return errNoMem
	default:
		return errIO
	}
}

// asUnix is the same error as an errno of this host. An unknown one counts as EINVAL,
// as the protocol wants it.
func (e errno) asUnix() unix.Errno {
	switch e {
	case errPerm, errIO, errNoMem, errInval, errNoSpc, errOver, errNotSup, errShut:
		return unix.Errno(e)
	default:
		return unix.EINVAL
	}
}

// unsupported says whether a device cannot do at all what it was asked to do.
func unsupported(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) }

// ServerError is what a server answered to a request of a Client: it understood, and
// could or would not. errors.Is finds the errno in it, for example unix.ENOSPC.
type ServerError struct {
	Op      string // the protocol's name of the request, for example "write zeroes"
	Off     int64  // first byte of the request
	Bytes   int64  // length of the request
	Errno   unix.Errno
	Message string // what the server said besides; may be empty
}

// Error says what failed, where, and how.
func (e *ServerError) Error() string {
	text := fmt.Sprintf("%s of %d bytes at byte %d: the server answers: %v", e.Op, e.Bytes, e.Off, e.Errno)
	if e.Message != "" {
		text += fmt.Sprintf(" (%q)", e.Message)
	}
	return text
}

// Unwrap is the errno.
func (e *ServerError) Unwrap() error { return e.Errno }
