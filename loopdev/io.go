package loopdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageBytes = 4096
	// pieceBytes is how much goes through memory of our own at once, where the
	// caller's is not aligned.
	pieceBytes = 1 << 20
)

// AlignedBuffer makes n bytes that begin at a multiple of 4096, so that they can
// go to and from a device without being copied.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+pageBytes)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (pageBytes - 1))
	return b[skip : skip+n : skip+n]
}

var pieces = sync.Pool{New: func() any { b := AlignedBuffer(pieceBytes); return &b }}

// zeros is a piece that nobody writes to.
var zeros = sync.OnceValue(func() []byte { return AlignedBuffer(pieceBytes) })

func roundDown(v, unit int64) int64 { return v - v%unit }
func roundUp(v, unit int64) int64   { return roundDown(v+unit-1, unit) }

// ReadAt reads what the medium holds, past the caches of this host. Where the
// medium ends before the device does, it fails with io.ErrUnexpectedEOF and
// never makes up zeros; io.EOF is the end of the device itself.
func (d *Device) ReadAt(b []byte, off int64) (int, error) {
	want := b
	if off >= 0 && off <= d.info.Bytes && int64(len(b)) > d.info.Bytes-off {
		want = b[:d.info.Bytes-off]
	}
	if err := d.inside(off, int64(len(want))); err != nil {
		return 0, d.failure("read", off, int64(len(b)), err)
	}
	n, err := d.readFull(want, d.info.Offset+off)
	if err != nil {
		return n, d.failure("read", off, int64(len(b)), err)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// readFull reads all of b from byte at of the file or device behind.
func (d *Device) readFull(b []byte, at int64) (int, error) {
	read := d.readDirect
	if !d.info.DirectIO {
		read = d.readThroughCache
	}
	n, err := read(b, at)
	if n == len(b) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("only %d bytes are there, the medium ends before the device does: %w", n, io.ErrUnexpectedEOF)
	}
	return n, err
}

// readDirect reads without the cache. What is not aligned goes through memory of
// our own; reading a bit more than was asked for harms nobody.
func (d *Device) readDirect(b []byte, at int64) (int, error) {
	total := 0
	for len(b) > 0 {
		var n, got int
		var err error
		if body := d.alignedBody(b, at); body > 0 {
			n = body
			got, err = d.readUnits(b[:n], at)
		} else {
			n = d.unalignedPart(b, at)
			got, err = d.readPiece(b[:n], at)
		}
		total += got
		if got < n {
			return total, err
		}
		b, at = b[n:], at+int64(n)
	}
	return total, nil
}

// alignedBody is how many bytes from the start of b can be transferred directly.
func (d *Device) alignedBody(b []byte, at int64) int {
	if at%d.unitBytes != 0 || !d.alignedMemory(b) {
		return 0
	}
	return int(roundDown(int64(len(b)), d.unitBytes))
}

func (d *Device) alignedMemory(b []byte) bool {
	return len(b) > 0 && int64(uintptr(unsafe.Pointer(&b[0]))%uintptr(d.memoryBytes)) == 0
}

// unalignedPart is how many bytes from the start of b have to be copied before
// the rest can be transferred directly, but no more than fit into a piece.
func (d *Device) unalignedPart(b []byte, at int64) int {
	into := at % d.unitBytes
	if head := int(d.unitBytes - into); head < len(b) && d.alignedMemory(b[head:]) {
		return head
	}
	return min(len(b), int(pieceBytes-into))
}

// readUnits reads whole units into aligned memory. It is short at the end of the
// file only.
func (d *Device) readUnits(b []byte, at int64) (int, error) {
	n, err := d.main.ReadAt(b, at)
	if int64(n)%d.unitBytes != 0 {
		// The file ends inside a unit. What package os tried to read after it
		// was not aligned, and failed for that.
		return n, io.EOF
	}
	return n, err
}

func (d *Device) readPiece(b []byte, at int64) (int, error) {
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	first := roundDown(at, d.unitBytes)
	skip := int(at - first)
	n, err := d.readUnits((*piece)[:roundUp(int64(skip+len(b)), d.unitBytes)], first)
	return copy(b, (*piece)[min(skip, n):n]), err
}

// readThroughCache is for file systems without direct I/O. Of a device that is
// written to, the cache is written back and dropped first.
func (d *Device) readThroughCache(b []byte, at int64) (int, error) {
	if d.write {
		if err := d.sync(unix.Fdatasync); err != nil {
			return 0, err
		}
		first, end := roundDown(at, pageBytes), roundUp(at+int64(len(b)), pageBytes)
		err := onFD(d.main, func(fd int) error { return unix.Fadvise(fd, first, end-first, unix.FADV_DONTNEED) })
		if err != nil {
			return 0, err
		}
	}
	return d.main.ReadAt(b, at)
}

// WriteAt writes past the page cache as far as the range is aligned; whole
// aligned pieces in aligned memory (see AlignedBuffer) are one write to the
// medium. What was written is durable after the next Flush. The range has to lie
// inside the device. Where the medium refuses, also for lack of space, the
// result says so at once.
func (d *Device) WriteAt(b []byte, off int64) (int, error) {
	if err := d.writable(off, int64(len(b))); err != nil {
		return 0, d.failure("write", off, int64(len(b)), err)
	}
	n, err := d.writeFull(b, d.info.Offset+off)
	return n, d.failure("write", off, int64(len(b)), err)
}

func (d *Device) writeFull(b []byte, at int64) (int, error) {
	if !d.info.DirectIO {
		return d.main.WriteAt(b, at)
	}
	total := 0
	for len(b) > 0 {
		var n, written int
		var err error
		if body := d.alignedBody(b, at); body > 0 {
			n = body
			written, err = d.main.WriteAt(b[:n], at)
		} else {
			n = d.unalignedPart(b, at)
			written, err = d.writePiece(b[:n], at)
		}
		total += written
		if err != nil {
			return total, err
		}
		b, at = b[n:], at+int64(n)
	}
	return total, nil
}

// writePiece writes what is not aligned in memory or on the medium. Its whole
// units are copied to aligned memory; what fills no unit is an edge.
func (d *Device) writePiece(b []byte, at int64) (int, error) {
	head := min(int64(len(b)), roundUp(at, d.unitBytes)-at)
	body := roundDown(int64(len(b))-head, d.unitBytes)
	if err := d.writeEdge(b[:head], at); err != nil {
		return 0, err
	}
	if body > 0 {
		piece := pieces.Get().(*[]byte)
		defer pieces.Put(piece)
		copy(*piece, b[head:head+body])
		if n, err := d.main.WriteAt((*piece)[:body], at+head); err != nil {
			return int(head) + n, err
		}
	}
	if err := d.writeEdge(b[head+body:], at+head+body); err != nil {
		return int(head + body), err
	}
	return len(b), nil
}

// writeEdge writes less than a unit. In a file it goes through the page cache:
// the kernel leaves the rest of the unit as it is, also when others write there,
// and there is nothing else for the end of a file that fills no unit. Reading
// directly and Flush both write it back.
func (d *Device) writeEdge(b []byte, at int64) error {
	if len(b) == 0 {
		return nil
	}
	if d.info.Kind == Block {
		return d.writeIntoUnit(b, at)
	}
	return d.withCached(func(f *os.File) error {
		_, err := f.WriteAt(b, at)
		return err
	})
}

// writeIntoUnit reads a block of a device, changes part of it and writes it back:
// the page cache would answer before the medium does.
func (d *Device) writeIntoUnit(b []byte, at int64) error {
	d.edges.Lock()
	defer d.edges.Unlock()
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	first := roundDown(at, d.unitBytes)
	unit := (*piece)[:d.unitBytes]
	if _, err := d.main.ReadAt(unit, first); err != nil {
		return err
	}
	copy(unit[at-first:], b)
	_, err := d.main.WriteAt(unit, first)
	return err
}

// withCached lends the buffered descriptor of the same file.
func (d *Device) withCached(use func(*os.File) error) error {
	d.cachedLock.RLock()
	if d.cached == nil {
		d.cachedLock.RUnlock()
		if err := d.openCached(); err != nil {
			return err
		}
		d.cachedLock.RLock()
	}
	defer d.cachedLock.RUnlock()
	if d.cached == nil {
		return os.ErrClosed
	}
	return use(d.cached)
}

// openCached also turns reading ahead off. The kernel then keeps no page that nobody has
// asked for here, and a direct write beside it meets none: it drops what the cache has
// of its range, but not from a page, or a group of pages, that others make dirty meanwhile.
func (d *Device) openCached() error {
	d.cachedLock.Lock()
	defer d.cachedLock.Unlock()
	if d.cached != nil {
		return nil
	}
	h := &handle{file: d.main, path: d.main.Name()}
	cached, err := h.reopen(d.access())
	if err != nil {
		return err
	}
	if err := onFD(cached, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) }); err != nil {
		return errors.Join(err, cached.Close())
	}
	d.cached = cached
	return nil
}

// Flush returns nil only if everything written and zeroed before it began
// survives a power loss. After the first failure it fails for ever with the same
// error: the kernel reports a lost write once, and would answer well the second
// time.
func (d *Device) Flush() error {
	call := unix.Fsync
	if d.info.Kind != Block {
		call = func(fd int) error {
			if err := unix.Fdatasync(fd); err != nil {
				return err
			}
			return d.checkWhole(fd)
		}
	}
	return d.failure("flush", 0, 0, d.sync(call))
}

// sync is the only way by which data is made durable, so that no failure is
// ever reported to somebody who does not remember it.
func (d *Device) sync(call func(fd int) error) error {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if d.flushErr != nil {
		return d.flushErr
	}
	err := onFD(d.main, call)
	if errors.Is(err, os.ErrClosed) {
		return err
	}
	d.flushErr = err
	return err
}

// checkWhole finds a file that was cut off below the end of the device.
func (d *Device) checkWhole(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return d.whole(&st)
}

func (d *Device) whole(st *unix.Stat_t) error {
	if end := d.info.Offset + d.info.Bytes; st.Size < end {
		return fmt.Errorf("%w: the device ends at byte %d of the file, which has %d", ErrSourceShrunk, end, st.Size)
	}
	return nil
}
