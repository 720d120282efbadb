package loopdev

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileKey is made of what stays with an inode: its number, the moment of its
// birth, and its generation where the file system has one. The number of the
// file system's device is not among them, it changes with a reboot.
func fileKey(f *os.File) (string, error) {
	stx, err := statx(f, unix.STATX_INO|unix.STATX_BTIME)
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("file:%d", stx.Ino)
	if stx.Mask&unix.STATX_BTIME != 0 {
		key += fmt.Sprintf(":%d.%09d", stx.Btime.Sec, stx.Btime.Nsec)
	}
	var generation uint32
	err = onFD(f, func(fd int) (err error) {
		generation, err = unix.IoctlGetUint32(fd, getVersionRequest)
		return err
	})
	if unsupported(err) { // many file systems have none, and the key is good without
		return key, nil
	}
	return key + fmt.Sprintf(":g%d", generation), err
}

// getVersionRequest is FS_IOC_GETVERSION, _IOR('v', 1, long).
const getVersionRequest = 2<<30 | uint(unsafe.Sizeof(uintptr(0)))<<16 | 'v'<<8 | 1

func statx(f *os.File, mask int) (stx unix.Statx_t, err error) {
	err = onFD(f, func(fd int) error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, mask, &stx) })
	return stx, err
}

func statfs(f *os.File) (st unix.Statfs_t, err error) {
	err = onFD(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	return st, err
}

// blockKey of a loop device (over a block device) is that of what lies below:
// its own number changes with each attachment.
func blockKey(n node) (string, error) {
	disk, start := n, int64(0)
	var err error
	if n.isPartition() {
		if disk, start, err = n.parent(); err != nil {
			return "", err
		}
	}
	if !disk.isLoop() {
		return n.stableKey()
	}
	a, err := openAttachment(disk)
	if err != nil {
		return "", err
	}
	key, err := a.backingKey()
	if err != nil {
		return "", err
	}
	bytes, err := n.bytes()
	return fmt.Sprintf("%s+%d+%d", key, a.offset+start, bytes), err
}

func (a attachment) backingKey() (string, error) {
	if a.rdev != 0 {
		below, err := nodeOf(a.rdev)
		if err != nil {
			return "", err
		}
		return blockKey(below)
	}
	h, err := a.resolveBacking()
	if err != nil {
		return "", err
	}
	defer h.close()
	f, err := h.reopen(unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return fileKey(f)
}

// mostBlockBytes is the largest block of a file system that is believed; network
// file systems report the size of their transfers instead.
const mostBlockBytes = 64 << 10

func fileBlockBytes(f *os.File) (int64, error) {
	st, err := statfs(f)
	if err != nil {
		return 0, err
	}
	bytes := int64(st.Bsize)
	if bytes < 512 || bytes > mostBlockBytes || bytes&(bytes-1) != 0 {
		return pageBytes, nil
	}
	return bytes, nil
}

// alignFile finds out whether the file can be read directly and what has to be
// aligned for it, and goes back to the page cache if it can not.
func (d *Device) alignFile(fileBytes int64) error {
	d.unitBytes = max(pageBytes, d.blockBytes)
	d.memoryBytes = d.unitBytes
	stx, err := statx(d.main, unix.STATX_DIOALIGN)
	if err != nil {
		return err
	}
	direct := true
	if stx.Mask&unix.STATX_DIOALIGN != 0 { // Linux 6.1 and later, not on every file system
		direct = stx.Dio_offset_align != 0 && stx.Dio_offset_align <= mostBlockBytes
		if direct {
			d.unitBytes, d.memoryBytes = int64(stx.Dio_offset_align), int64(max(1, stx.Dio_mem_align))
		}
	}
	d.info.LogicalBlockBytes = d.unitBytes
	var flags int
	err = onFD(d.main, func(fd int) (err error) {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	})
	if err != nil {
		return err
	}
	direct = direct && flags&unix.O_DIRECT != 0
	if direct && fileBytes > 0 {
		_, err := d.main.ReadAt(AlignedBuffer(int(d.unitBytes)), 0)
		direct = !errors.Is(err, unix.EINVAL) // another failure is for the reader to see
	}
	d.info.DirectIO = direct
	return onFD(d.main, func(fd int) error { return setFlag(fd, unix.O_DIRECT, direct) })
}

// fileSystemType is the name of the file system, as mount shows it.
func fileSystemType(f *os.File) (string, error) {
	m, err := mountOf(f)
	return m.fsType, err
}
