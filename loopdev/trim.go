package loopdev

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fitrimRequest is FITRIM of linux/fs.h, _IOWR('X', 121, struct fstrim_range).
const fitrimRequest = 0xc0185879

// largestTrimUnit: file systems refuse to look only for pieces that are larger than
// their own largest ones, which of an ext4 with small blocks are 8 MiB.
const largestTrimUnit = 4 << 20

// Trim makes the file system of the (backing) file discard on its medium what it has
// free, in pieces of at least minBytes, as fstrim does, and returns how much that was.
// What was freed a moment ago counts only after SyncFS. ext4 leaves out what it has
// discarded before, others discard all free space each time, which may take a while.
// It needs root. A file system or medium that cannot is ErrCannotPunch; a block device
// has nothing to trim.
func (d *Device) Trim(minBytes int64) (discardedBytes int64, err error) {
	if d.info.Kind == Block {
		return 0, nil
	}
	request := struct{ start, length, minLength uint64 }{0, 1<<64 - 1, uint64(min(max(0, minBytes), largestTrimUnit))}
	err = onFD(d.main, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fitrimRequest, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if unsupported(err) {
		err = because(ErrCannotPunch, err)
	}
	return int64(request.length), d.failure("trim the file system of", 0, 0, err)
}
