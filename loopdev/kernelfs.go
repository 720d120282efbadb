package loopdev

import (
	"bytes"
	"errors"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// The files of /proc and /sys are read here with as few calls of the kernel as can
// be: hundreds of them are looked at before a migration begins, and package os would
// offer each to its poller first, which takes none of them.

// readKernelFile is all of a file of /proc or /sys.
func readKernelFile(path string) ([]byte, error) {
	fd, err := openKernelFile(path, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // opened for reading
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	text := (*scratch)[:0]
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			*scratch = text[:0]
			return bytes.Clone(text), nil
		default:
			text = text[:len(text)+n]
		}
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
	}
}

// scratches are what files are read into: most have a few bytes, and new memory for each
// would cost more than the file.
var scratches = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// namesIn are the names in a directory of /proc or /sys.
func namesIn(dir string) (names []string, err error) {
	fd, err := openKernelFile(dir, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // opened for reading
	for entries := make([]byte, 8<<10); ; {
		n, err := unix.ReadDirent(fd, entries)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: dir, Err: err}
		case n == 0:
			return names, nil
		default:
			_, _, names = unix.ParseDirent(entries[:n], -1, names)
		}
	}
}

func openKernelFile(path string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		switch {
		case err == nil:
			return fd, nil
		case !errors.Is(err, unix.EINTR):
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
