package loopdev

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// BlockDevice is a block device and what lies right below it, as the kernel shows it
// at one moment.
type BlockDevice struct {
	Dev    uint64
	Title  string   // the path that a person knows it by
	Mapper string   // its name in device-mapper; empty if it is none of its devices
	UUID   string   // in device-mapper
	Below  []uint64 // the block devices that it is made of; of a partition its disk
	// BackingFile is the regular file behind a loop device. It is empty if there is
	// none, or none that can be reached by a name.
	BackingFile string
	// DiscardBytes is the most that one discard may cover. With 0 the device, or one
	// below it, takes no discards, and so gives nothing back.
	DiscardBytes int64
}

// BlockDeviceAt describes the block device of that number. It is fs.ErrNotExist if
// the kernel has none.
func BlockDeviceAt(dev uint64) (BlockDevice, error) {
	n, err := nodeOf(dev)
	if err != nil {
		return BlockDevice{}, err
	}
	b := BlockDevice{Dev: dev, Title: n.title(), Mapper: n.attr("dm/name"), UUID: n.attr("dm/uuid")}
	disk := n
	if n.isPartition() {
		if disk, _, err = n.parent(); err != nil {
			return b, err
		}
		b.Below = []uint64{disk.dev}
	}
	if b.DiscardBytes, err = disk.number("queue/discard_max_bytes"); err != nil {
		b.DiscardBytes = 0 // a device without a queue of requests takes none
	}
	if n.isPartition() {
		return b, nil
	}
	if n.isLoop() {
		return b, b.lookBehind(n)
	}
	below, err := n.below()
	for _, o := range below {
		b.Below = append(b.Below, o.dev)
	}
	return b, err
}

// lookBehind finds out what is behind a loop device.
func (b *BlockDevice) lookBehind(n node) error {
	a, err := openAttachment(n)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // detached this moment, or not to be seen from this container or by this user
	}
	if err != nil {
		return err
	}
	if a.rdev != 0 {
		b.Below = []uint64{a.rdev}
		return nil
	}
	h, err := a.resolveBacking()
	if errors.Is(err, ErrBackingFile) || errors.Is(err, fs.ErrNotExist) {
		return nil // no name leads to it any more
	}
	if err != nil {
		return err
	}
	b.BackingFile = h.path
	h.close()
	return nil
}

// Place is a file or directory, and the file system that it lies on. Its methods only
// look, and may be called concurrently.
type Place struct {
	handle *handle
	// Path is absolute and without symbolic links.
	Path string
	// Dev is the number that files of the file system have as their device, and
	// FSType its type as in /proc/self/mountinfo.
	Dev    uint64
	FSType string
	// DiscardsFreed: the file system is mounted so that it discards what it frees.
	DiscardsFreed bool
	// Devices are the block devices of the file system. One in memory or on the
	// network has none.
	Devices []uint64
}

// PlaceAt describes what path leads to. It keeps the file system mounted until Close.
func PlaceAt(path string) (*Place, error) {
	h, err := resolve(path)
	if err != nil {
		return nil, failure("look at", path, 0, 0, err)
	}
	return placeOf(h)
}

// Place describes where the (backing) file lies. A Block lies nowhere: it has a nil
// Place and no error.
func (d *Device) Place() (*Place, error) {
	if d.info.Kind == Block {
		return nil, nil //nolint:nilnil // as documented
	}
	var h *handle
	err := onFD(d.main, func(fd int) (err error) {
		path, err := unix.Open(fdPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			h, err = newHandle(path, d.info.BackingPath)
		}
		return err
	})
	if err != nil {
		return nil, d.failure("look at", 0, 0, err)
	}
	return placeOf(h)
}

func placeOf(h *handle) (*Place, error) {
	p := &Place{handle: h, Path: h.path, Dev: h.stat.Dev}
	if err := p.describe(); err != nil {
		h.close()
		return nil, failure("look at", p.Path, 0, 0, err)
	}
	return p, nil
}

func (p *Place) describe() (err error) {
	if p.FSType, err = fileSystemType(p.handle.file); err != nil {
		return err
	}
	m, err := mountOf(p.handle.file)
	if err != nil {
		return err
	}
	p.DiscardsFreed = m.discards()
	dev, found := m.blockDevice()
	if !found {
		return nil
	}
	p.Devices, err = fileSystemDevices(dev)
	return err
}

// discards: btrfs has two ways of it, all others have one.
func (m mount) discards() bool {
	return slices.ContainsFunc(m.options, func(o string) bool {
		return o == "discard" || o == "discard=async" || o == "discard=sync"
	})
}

// FreeBytes is the space that the file system has left for ordinary users.
func (p *Place) FreeBytes() (int64, error) {
	n, err := freeBytes(p.handle.file)
	return n, failure("count the free space around", p.Path, 0, 0, err)
}

// HoleBytes is how much a regular file may grow without becoming longer: what of it
// has no space yet. It is 0 for a directory.
func (p *Place) HoleBytes() (int64, error) {
	var st unix.Stat_t
	if err := onFD(p.handle.file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, failure("look at", p.Path, 0, 0, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, nil
	}
	return max(0, st.Size-st.Blocks*512), nil
}

// Close lets the file system go. A second one fails with os.ErrClosed.
func (p *Place) Close() error { return bare(p.handle.file.Close()) }

func freeBytes(f *os.File) (int64, error) {
	st, err := statfs(f)
	if err != nil {
		return 0, err
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return int64(st.Bavail) * unit, nil
}
