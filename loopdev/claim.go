package loopdev

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Share gives up the claim that Exclusive has made on a block device, so that another
// device can be stacked on it, and keeps it open: everything else goes on as before.
// The claim ends when the I/O that is under way has ended. Of what is no block device
// it does nothing.
func (d *Device) Share() error {
	if d.info.Kind != Block || !d.exclusive {
		return nil
	}
	return d.failure("share", 0, 0, onFD(d.main, func(fd int) error {
		flags := d.access() | unix.O_DIRECT | unix.O_CLOEXEC
		// The same node, whatever its path leads to by now.
		other, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
		if err != nil {
			return &os.PathError{Op: "open again", Path: d.info.Path, Err: err}
		}
		defer unix.Close(other) //nolint:errcheck // the copy stays
		// At no moment is the number without an open device, so that no I/O fails.
		return unix.Dup3(other, fd, unix.O_CLOEXEC)
	}))
}
