package loopdev

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Resize empties a regular file and makes it a hole of the given size. It is
// durable when it returns nil. Only a File can be resized, and none that carries a
// mark with GivingRole (ErrMarked): what is left in it exists nowhere else. No other
// method may be running.
func (d *Device) Resize(bytes int64) error {
	return d.failure("resize", 0, 0, d.resize(bytes))
}

func (d *Device) resize(bytes int64) error {
	if d.info.Kind != File {
		return ErrWrongType
	}
	if !d.write {
		return ErrReadOnly
	}
	mark, marked, err := d.readMark()
	if err != nil {
		return err
	}
	if marked && mark.Role == GivingRole {
		return fmt.Errorf("%w: it is being emptied by %s", ErrMarked, mark.ID)
	}
	// The new size comes first: one that the file system cannot make loses nothing.
	for _, size := range []int64{bytes, 0, bytes} {
		if err := onFD(d.main, func(fd int) error { return unix.Ftruncate(fd, size) }); err != nil {
			return err
		}
	}
	d.info.Bytes = bytes
	if err := d.alignFile(bytes); err != nil {
		return err
	}
	return d.sync(unix.Fsync)
}

// SetModified gives the (backing) file a modification time. A block device has
// none, and is left alone.
func (d *Device) SetModified(t time.Time) error {
	if d.info.Kind == Block {
		return nil
	}
	d.discarding.Lock()
	defer d.discarding.Unlock()
	return d.failure("set the modification time of", 0, 0, d.setModified(t))
}

func (d *Device) setModified(t time.Time) error {
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(t.UnixNano())}
	return onFD(d.main, func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}
