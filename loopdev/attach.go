package loopdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Attached is a loop device that this program has made. It goes by itself when nobody
// has it open any more: neither this program nor a device that is stacked on it.
type Attached struct {
	file *os.File
	path string
	dev  uint64
}

// Path is that of the loop device.
func (a *Attached) Path() string { return a.path }

// Dev is the number of the loop device.
func (a *Attached) Dev() uint64 { return a.dev }

// File is the open loop device. It is closed by Close.
func (a *Attached) File() *os.File { return a.file }

// Close gives it up. It stays for as long as others use it.
func (a *Attached) Close() error { return a.file.Close() }

// AttachFile makes a loop device of a regular file, all of it, for reading and writing.
// A flush of the loop device makes the file durable; its name is the caller's to make so.
func AttachFile(path string) (*Attached, error) {
	a, err := attachFile(path)
	return a, failure("attach a loop device to", path, 0, 0, err)
}

func attachFile(path string) (*Attached, error) {
	h, err := resolve(path)
	if err != nil {
		return nil, err
	}
	defer h.close()
	if h.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrWrongType
	}
	return attachTo(h, unix.O_RDWR, 0, 0)
}

// Show makes a loop device that shows a file, or the part of one that the Device is, and
// that nobody can write to. Its size is in whole sectors: what follows the last whole one
// is left out. A block device needs none, and is ErrWrongType.
//
// The loop device reads past the page cache where the file system allows it. What it
// returns for a range that Discard has had since may be anything.
func (d *Device) Show() (*Attached, error) {
	a, err := d.show()
	return a, d.failure("attach a loop device to", 0, 0, err)
}

func (d *Device) show() (*Attached, error) {
	if d.info.Kind == Block {
		return nil, ErrWrongType
	}
	var h *handle
	err := onFD(d.main, func(fd int) (err error) {
		// The file that is open, whatever its name leads to by now.
		path, err := unix.Open(fdPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			h, err = newHandle(path, d.info.BackingPath)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer h.close()
	return attachTo(h, unix.O_RDONLY, d.info.Offset, roundDown(d.info.Bytes, 512))
}

// attachTo makes the loop device. A limit of 0 is the end of the file.
func attachTo(h *handle, access int, offset, limit int64) (*Attached, error) {
	backing, err := h.reopen(access | unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) { // no direct I/O here
		backing, err = h.reopen(access)
	}
	if err != nil {
		return nil, h.unopened(err)
	}
	defer backing.Close() //nolint:errcheck // the loop device has it from now on
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close() //nolint:errcheck // was only asked
	const attempts = 20
	for attempt := 1; ; attempt++ {
		a, err := attachFree(control, backing, access, offset, limit)
		if !errors.Is(err, unix.EBUSY) || attempt == attempts {
			return a, err
		} // else somebody else was quicker
	}
}

func attachFree(control, backing *os.File, access int, offset, limit int64) (_ *Attached, err error) {
	var number int
	if err := onFD(control, func(fd int) (err error) {
		number, err = unix.IoctlRetInt(fd, unix.LOOP_CTL_GET_FREE)
		return err
	}); err != nil {
		return nil, err
	}
	a := &Attached{path: fmt.Sprintf("/dev/loop%d", number)}
	if a.file, err = os.OpenFile(a.path, access|unix.O_CLOEXEC|unix.O_DIRECT, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.file.Close() //nolint:errcheck // nothing was written to it
		}
	}()
	config := unix.LoopConfig{Info: unix.LoopInfo64{
		Offset: uint64(offset), Sizelimit: uint64(limit),
		Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO, // the latter as far as it is possible
	}}
	if access == unix.O_RDONLY {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	err = onFD(backing, func(fd int) error {
		config.Fd = uint32(fd)
		return onFD(a.file, func(loop int) error { return unix.IoctlLoopConfigure(loop, &config) })
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := onFD(a.file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, err
	}
	a.dev = st.Rdev
	return a, nil
}

// Backing is the file behind a loop device.
type Backing struct {
	Path       string // as the kernel knows it now, for people
	Dev, Inode uint64
	Offset     int64
	ReadOnly   bool
}

// BackingOf is what is behind the loop device of that number. A device that is none, or
// to which nothing is attached, is ErrBackingFile.
func BackingOf(dev uint64) (Backing, error) {
	n, err := nodeOf(dev)
	if err != nil {
		return Backing{}, err
	}
	if !n.isLoop() {
		return Backing{}, fmt.Errorf("%s: %w", n.path(), ErrBackingFile)
	}
	a, err := openAttachment(n)
	if err != nil {
		return Backing{}, err
	}
	return Backing{Path: a.path, Dev: a.dev, Inode: a.inode, Offset: a.offset, ReadOnly: a.frozen}, nil
}

// Is says whether the device is the file, or the part of one, that is behind.
func (b Backing) Is(d *Device) bool {
	return d.info.Kind != Block && b.Dev == d.info.Dev && b.Inode == d.info.Inode && b.Offset == d.info.Offset
}
