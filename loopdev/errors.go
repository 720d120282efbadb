package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// What can be wrong with a device, for errors.Is. An errno that was behind it can
// be asked for as well.
var (
	// ErrSourceShrunk: the file ends before the device on it does.
	ErrSourceShrunk = errors.New("the file ends before the device does, somebody has truncated it")
	// ErrSourceChanged: the modification time is not the one to be kept, or somebody
	// else had the file open for writing while parts of it were discarded.
	ErrSourceChanged = errors.New("somebody else has modified the file")
	// ErrCannotPunch: the medium cannot give back parts of what it holds.
	ErrCannotPunch = errors.New("the medium cannot give space back")
	// ErrNotCountable: this kind of device or file system does not tell.
	ErrNotCountable = errors.New("the space taken cannot be counted here")
	// ErrNoMark: the device can carry no mark.
	ErrNoMark = errors.New("the device cannot carry a mark")
	// ErrMarked: the device carries the mark of another migration.
	ErrMarked = errors.New("the device carries the mark of another migration")
	// ErrInUse: somebody else holds the device.
	ErrInUse = errors.New("the device is in use")
	// ErrReadOnly: the device was opened for reading only.
	ErrReadOnly = errors.New("the device was opened for reading only")
	// ErrWrongType: the path leads to something that holds no image.
	ErrWrongType = errors.New("neither a regular file nor a block device")
	// ErrBackingFile: a loop device's backing file is deleted or not to be found.
	ErrBackingFile = errors.New("the backing file of the loop device cannot be reached by its name")
)

// Error says what failed, on which object and where on it. Unwrap leads to the
// errno and to one of the Err values of this package, where there is one.
type Error struct {
	Op   string // what was tried, as a verb
	Path string
	Off  int64 // from the start of the device; meaningless if N is 0
	N    int64 // bytes concerned; 0 if it concerns the object as a whole
	Err  error
}

// Error is a sentence without a full stop.
func (e *Error) Error() string {
	if e.N == 0 {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Err)
	}
	return fmt.Sprintf("%s %s at byte %d, %d bytes: %v", e.Op, e.Path, e.Off, e.N, e.Err)
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// failure wraps err, and keeps the first wrapping if there already is one.
func failure(op, path string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	var already *Error
	if errors.As(err, &already) {
		return err
	}
	return &Error{Op: op, Path: path, Off: off, N: n, Err: bare(err)}
}

func (d *Device) failure(op string, off, n int64, err error) error {
	return failure(op, d.info.Path, off, n, err)
}

// bare takes off the wrapping of package os, which would name a path twice.
func bare(err error) error {
	var wrapped *fs.PathError
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// because joins one of the Err values of this package with what was behind it.
func because(kind, cause error) error { return fmt.Errorf("%w: %w", kind, bare(cause)) }

// retry repeats a system call that a signal has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// onFD makes a system call on the descriptor of f, which stays open meanwhile
// even if Close is called.
func onFD(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return bare(err)
	}
	var failed error
	if raw.Control(func(fd uintptr) { failed = retry(func() error { return call(int(fd)) }) }) != nil {
		return os.ErrClosed // the only reason for which it does not call
	}
	return failed
}

// unsupported says whether a system call failed because this file system or
// device does not know it, so that another way may be tried.
func unsupported(err error) bool {
	for _, errno := range []syscall.Errno{unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY, unix.EREMOTEIO} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
