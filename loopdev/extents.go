package loopdev

import (
	"bytes"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NextData is the first range with data in [off, Bytes()). Without any, both are
// Bytes(). What lies outside reads as zeros. Where the medium does not tell,
// everything is data.
func (d *Device) NextData(off int64) (start, end int64, err error) {
	if err := d.inside(off, 0); err != nil {
		return 0, 0, d.failure("look for data on", off, 0, err)
	}
	if d.info.Kind == Block || off == d.info.Bytes {
		return off, d.info.Bytes, nil
	}
	start, end, err = d.seekData(d.info.Offset + off)
	if unsupported(err) || errors.Is(err, unix.EINVAL) {
		return off, d.info.Bytes, nil
	}
	if err != nil {
		return 0, 0, d.failure("look for data on", off, 0, err)
	}
	start = min(max(start-d.info.Offset, off), d.info.Bytes)
	end = min(max(end-d.info.Offset, start), d.info.Bytes)
	return start, end, nil
}

// seekData works in bytes of the file. Without any more data, both results are
// the end of the device.
func (d *Device) seekData(at int64) (start, end int64, err error) {
	d.seek.Lock()
	defer d.seek.Unlock()
	last := d.info.Offset + d.info.Bytes
	err = onFD(d.main, func(fd int) (err error) {
		if start, err = unix.Seek(fd, at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			start, end = last, last
			// No data up to the end of the file: but a file that was cut off
			// has lost some, and that is no hole.
			return d.checkWhole(fd)
		}
		if err != nil {
			return err
		}
		end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		return err
	})
	return start, end, err
}

// ReadsZero is true only if the range is known to hold no data, without reading
// it.
func (d *Device) ReadsZero(off, n int64) (bool, error) {
	if err := d.inside(off, n); err != nil {
		return false, d.failure("look for data on", off, n, err)
	}
	if d.info.Kind == Block {
		return false, nil
	}
	start, _, err := d.NextData(off)
	return err == nil && start >= off+n, err
}

// HoldsData says whether a byte of the device is not zero. All of a file is
// looked at, but its holes; of a block device its ends and samples spread over
// it, so that no may be wrong there.
func (d *Device) HoldsData() (bool, error) {
	if d.info.Kind == Block {
		return d.sampleHoldsData()
	}
	for off := int64(0); off < d.info.Bytes; {
		start, end, err := d.NextData(off)
		if err != nil {
			return false, err
		}
		if found, err := d.rangeHoldsData(start, end); found || err != nil {
			return found, err
		}
		off = end
	}
	return false, nil
}

func (d *Device) sampleHoldsData() (bool, error) {
	const endBytes, samples, sampleBytes = 4 << 20, 64, 64 << 10
	size := d.info.Bytes
	ranges := [][2]int64{{0, min(endBytes, size)}, {max(0, size-endBytes), size}}
	if size > 2*endBytes {
		for i := range int64(samples) {
			off := roundDown(size/(samples+1)*(i+1), d.unitBytes)
			ranges = append(ranges, [2]int64{off, min(off+sampleBytes, size)})
		}
	}
	for _, r := range ranges {
		if found, err := d.rangeHoldsData(r[0], r[1]); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func (d *Device) rangeHoldsData(off, end int64) (bool, error) {
	buf := AlignedBuffer(int(min(pieceBytes, end-off)))
	for off < end {
		part := buf[:min(int64(len(buf)), end-off)]
		if _, err := d.ReadAt(part, off); err != nil {
			return false, err
		}
		if !bytes.Equal(part, zeros()[:len(part)]) {
			return true, nil
		}
		off += int64(len(part))
	}
	return false, nil
}

// AllocatedBytes is the space that the device takes on its file system: of a
// whole file all its blocks, of a part of a file those inside. A block device is
// ErrNotCountable. After a discard it is smaller by what was given back, but the
// free space need not have grown by as much: btrfs, for one, keeps an extent of up
// to 128 MiB until the last byte of it is unused.
func (d *Device) AllocatedBytes() (int64, error) {
	if d.info.Kind == Block {
		return 0, d.failure("count the space of", 0, 0, ErrNotCountable)
	}
	var st unix.Stat_t
	if err := onFD(d.main, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, d.failure("count the space of", 0, 0, err)
	}
	if d.info.Offset == 0 && d.info.Bytes == st.Size {
		return st.Blocks * 512, nil
	}
	n, err := d.mappedBytes(0)
	if errors.Is(err, ErrNotCountable) {
		n, err = d.dataBytes()
	}
	return n, d.failure("count the space of", 0, 0, err)
}

func (d *Device) dataBytes() (total int64, err error) {
	for off := int64(0); off < d.info.Bytes; {
		start, end, err := d.NextData(off)
		if err != nil {
			return 0, err
		}
		total += end - start
		off = end
	}
	return total, nil
}

// SharedBytes is how much of AllocatedBytes belongs to other files or snapshots
// as well, so that discarding it gives nothing back. Where the file system cannot
// tell, it is ErrNotCountable.
func (d *Device) SharedBytes() (int64, error) {
	if d.info.Kind == Block {
		return 0, d.failure("count the shared space of", 0, 0, ErrNotCountable)
	}
	n, err := d.mappedBytes(fiemapExtentShared)
	return n, d.failure("count the shared space of", 0, 0, err)
}

// The FIEMAP ioctl, from linux/fiemap.h.
const (
	fiemapRequest       = 0xc020660b // FS_IOC_FIEMAP
	fiemapFlagSync      = 0x1
	fiemapExtentLast    = 0x1
	fiemapExtentEncoded = 0x8
	fiemapExtentShared  = 0x2000
	fiemapExtents       = 256 // asked for in one call
)

type fiemapHeader struct {
	start, length uint64
	flags         uint32
	mapped, count uint32
	_             uint32
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// mappedBytes sums up the extents inside the device that have all of the flags.
func (d *Device) mappedBytes(flags uint32) (total int64, err error) {
	err = d.eachExtent(func(e fiemapExtent) {
		if e.flags&flags == flags {
			total += int64(e.length)
		}
	})
	return total, err
}

// Fragments is of how many pieces the space of the device is made that lie apart on
// the medium. Where the file system cannot tell, it is ErrNotCountable.
func (d *Device) Fragments() (int64, error) {
	if d.info.Kind == Block {
		return 0, d.failure("count the extents of", 0, 0, ErrNotCountable)
	}
	var pieces int64
	var next uint64
	err := d.eachExtent(func(e fiemapExtent) {
		if pieces == 0 || e.physical != next {
			pieces++
		}
		next = e.physical + e.length
	})
	return pieces, d.failure("count the extents of", 0, 0, err)
}

// eachExtent visits the extents, cut to what of them lies inside the device.
func (d *Device) eachExtent(visit func(fiemapExtent)) error {
	first, end := uint64(d.info.Offset), uint64(d.info.Offset+d.info.Bytes)
	for at := first; at < end; {
		var request struct {
			fiemapHeader
			extents [fiemapExtents]fiemapExtent
		}
		request.fiemapHeader = fiemapHeader{start: at, length: end - at, flags: fiemapFlagSync, count: fiemapExtents}
		err := onFD(d.main, func(fd int) error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiemapRequest, uintptr(unsafe.Pointer(&request)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if unsupported(err) {
			return because(ErrNotCountable, err)
		}
		if err != nil {
			return err
		}
		before := at
		for _, e := range request.extents[:request.mapped] {
			from, to := max(e.logical, at), min(e.logical+e.length, end)
			if from < to {
				inside := e
				inside.logical, inside.physical, inside.length = from, e.physical+from-e.logical, to-from
				visit(inside)
			}
			at = max(at, to)
			if e.flags&fiemapExtentLast != 0 {
				return nil
			}
		}
		if at == before { // nothing more is mapped
			return nil
		}
	}
	return nil
}

// FreeBytes is the space that the file system of the (backing) file has left for
// ordinary users. A block device is ErrNotCountable.
func (d *Device) FreeBytes() (int64, error) {
	if d.info.Kind == Block {
		return 0, d.failure("count the free space around", 0, 0, ErrNotCountable)
	}
	n, err := freeBytes(d.main)
	return n, d.failure("count the free space around", 0, 0, err)
}

// SyncFS writes back the whole file system of the (backing) file. Several file
// systems count punched blocks as free only then.
func (d *Device) SyncFS() error {
	if d.info.Kind == Block {
		return nil // nothing to be given back by a file system
	}
	return d.failure("sync the file system of", 0, 0, onFD(d.main, unix.Syncfs))
}
