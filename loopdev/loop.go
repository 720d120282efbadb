package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attachment is what the kernel knows of a loop device that is attached.
type attachment struct {
	node   node
	path   string // of the backing file, as the kernel knows it now
	dev    uint64 // of the file system with the backing file
	inode  uint64
	rdev   uint64 // if the backing file is a block device
	offset int64
	limit  int64 // 0: up to the end of the backing file
	frozen bool  // read-only
}

func (n node) isLoop() bool { return n.attr("loop/backing_file") != "" }

// attachmentOf asks an open loop device, or a partition of one.
func attachmentOf(loop *os.File, disk node) (attachment, error) {
	var status *unix.LoopInfo64
	err := onFD(loop, func(fd int) (err error) {
		status, err = unix.IoctlLoopGetStatus64(fd)
		return err
	})
	if err != nil {
		return attachment{}, err
	}
	return attachment{
		node: disk, path: disk.attr("loop/backing_file"),
		dev: status.Device, inode: status.Inode, rdev: status.Rdevice,
		offset: int64(status.Offset), limit: int64(status.Sizelimit),
		frozen: status.Flags&unix.LO_FLAGS_READ_ONLY != 0,
	}, nil
}

// attachments are all loop devices that are attached to something, but the known.
func attachments(known []node) ([]attachment, error) {
	dirs, err := filepath.Glob("/sys/block/loop*")
	if err != nil {
		return nil, err
	}
	var out []attachment
	for _, dir := range dirs {
		n, err := nodeAt(dir)
		if err != nil || !n.isLoop() || slices.Contains(known, n) {
			continue // detached, perhaps this moment
		}
		a, err := openAttachment(n)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // detached or removed since
		}
		if err != nil {
			return nil, failure("ask loop device", n.path(), 0, 0, err)
		}
		out = append(out, a)
	}
	return out, nil
}

func openAttachment(n node) (attachment, error) {
	h, err := resolve(n.path())
	if err != nil {
		return attachment{}, err
	}
	defer h.close()
	if h.stat.Rdev != n.dev {
		return attachment{}, fmt.Errorf("%s is not the device that the kernel has by this name", n.path())
	}
	loop, err := h.reopen(unix.O_RDONLY)
	if err != nil {
		return attachment{}, err
	}
	defer loop.Close() //nolint:errcheck // opened for reading
	return attachmentOf(loop, n)
}

// openNode opens whatever block device the handle leads to.
func (d *Device) openNode(h *handle) error {
	n, err := nodeOf(h.stat.Rdev)
	if err != nil {
		return fmt.Errorf("no such block device is known to the kernel: %w", err)
	}
	disk, start := n, int64(0)
	if n.isPartition() {
		if disk, start, err = n.parent(); err != nil {
			return err
		}
	}
	if !disk.isLoop() {
		return d.openBlock(h, n)
	}
	a, err := d.openLoop(h, n, disk)
	if err != nil {
		return err
	}
	if a.rdev != 0 { // a loop device over a block device is like any other
		d.closeLoops()
		return d.openBlock(h, n)
	}
	return d.openWindow(h, a, n, start)
}

func (d *Device) closeLoops() {
	for _, loop := range d.loops {
		loop.Close() //nolint:errcheck // opened for reading
	}
	d.loops = nil
}

// openLoop holds the loop device, and brings what its page cache has kept back
// to the backing file.
func (d *Device) openLoop(h *handle, n, disk node) (attachment, error) {
	excl := 0
	if d.exclusive {
		excl = unix.O_EXCL
	}
	if n.dev != disk.dev {
		// Claiming the disk keeps users away from all of its partitions, and the
		// partition itself cannot be claimed then. Reading claims only itself.
		onDisk, onPartition := 0, excl
		if d.write {
			onDisk, onPartition = excl, 0
		}
		whole, err := resolve(disk.path())
		if err != nil {
			return attachment{}, err
		}
		defer whole.close()
		if err := d.holdLoop(whole, disk, onDisk); err != nil {
			return attachment{}, err
		}
		excl = onPartition
	}
	if err := d.holdLoop(h, n, excl); err != nil {
		return attachment{}, err
	}
	return attachmentOf(d.loops[0], disk)
}

func (d *Device) holdLoop(h *handle, n node, flags int) error {
	if h.stat.Rdev != n.dev {
		return fmt.Errorf("%s is not the device that the kernel has by this name", h.path)
	}
	loop, err := h.reopen(unix.O_RDONLY | flags)
	if err != nil {
		return claimed(err)
	}
	d.loops = append(d.loops, loop)
	if err := loop.Sync(); err != nil {
		return fmt.Errorf("write back the cache of %s: %w", h.path, bare(err))
	}
	return onFD(loop, dropCache)
}

// dropCache writes the page cache of a block device back and empties it.
func dropCache(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("empty the cache of the block device: %w", err)
	}
	return nil
}

// openWindow opens the part of the backing file that the loop device, or its
// partition n which begins at start, shows.
func (d *Device) openWindow(h *handle, a attachment, n node, start int64) error {
	if d.write && a.frozen {
		return fmt.Errorf("the loop device is read-only: %w", unix.EROFS)
	}
	backing, err := a.resolveBacking()
	if err != nil {
		return err
	}
	defer backing.close()
	d.info = Info{Kind: Loop, Path: h.path, BackingPath: a.path, Offset: a.offset + start}
	if err := d.openFile(backing); err != nil {
		return fmt.Errorf("backing file %s: %w", a.path, err)
	}
	if d.info.Bytes, err = a.windowBytes(n, backing.stat.Size); err != nil {
		return err
	}
	sector, err := a.node.number("queue/logical_block_size")
	if err != nil {
		return err
	}
	d.info.LogicalBlockBytes = max(d.info.LogicalBlockBytes, sector)
	d.info.Key = fmt.Sprintf("%s+%d+%d", d.info.Key, d.info.Offset, d.info.Bytes)
	return nil
}

// resolveBacking finds the backing file by the name that the kernel has for it,
// and makes sure that it is the file that is attached.
func (a attachment) resolveBacking() (*handle, error) {
	h, err := resolve(a.path)
	if err == nil && h.stat.Dev == a.dev && h.stat.Ino == a.inode {
		return h, nil
	}
	if err == nil {
		h.close()
		err = fmt.Errorf("%s is another file now", a.path)
	}
	if strings.HasSuffix(a.path, " (deleted)") {
		return nil, fmt.Errorf("%w: it has been deleted, its data dies with the loop device; copy %s elsewhere first: %w",
			ErrBackingFile, a.node.path(), err)
	}
	return nil, because(ErrBackingFile, err)
}

// windowBytes is the size of the device. The kernel counts whole sectors; where
// no limit is set, the rest of the file behind the last one belongs to the image
// as well, and would otherwise be lost with the file.
func (a attachment) windowBytes(n node, fileBytes int64) (int64, error) {
	bytes, err := n.bytes()
	if err != nil {
		return 0, err
	}
	if bytes == 0 {
		return 0, fmt.Errorf("the loop device has no size: %w", unix.ENXIO)
	}
	rest := fileBytes - a.offset - bytes
	if n.dev == a.node.dev && a.limit == 0 && rest > 0 && rest < 512 {
		bytes += rest
	}
	return bytes, nil
}

// blockDeviceBytes is the size of an open block device.
func blockDeviceBytes(fd int) (int64, error) {
	var bytes uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&bytes))); errno != 0 {
		return 0, errno
	}
	return int64(bytes), nil
}
