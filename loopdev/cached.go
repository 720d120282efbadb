package loopdev

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Cached is a regular file read and written through the page cache of this host. What
// either way writes the other one reads, as long as no write to a page through the Device
// goes on beside a call of a Cached for the same page: the kernel keeps them coherent.
// Nothing is read ahead. Flush makes durable what was written in both, and is the only one
// to tell of what could not be written back; lack of space is told at the write only where
// the file system reserves it then. It is closed with its Device.
type Cached struct{ d *Device }

// Cached is the device through the page cache; false for anything but a whole regular
// file.
func (d *Device) Cached() (Cached, bool) { return Cached{d}, d.info.Kind == File }

// ReadAt reads what was written last, whether the medium has it yet or not. The range
// has to lie inside the device.
func (c Cached) ReadAt(b []byte, off int64) (n int, err error) {
	if err := c.d.inside(off, int64(len(b))); err != nil {
		return 0, c.d.failure("read", off, int64(len(b)), err)
	}
	err = c.d.withCached(func(f *os.File) (err error) {
		n, err = f.ReadAt(b, c.d.info.Offset+off)
		return err
	})
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("only %d bytes are there, the medium ends before the device does: %w", n, io.ErrUnexpectedEOF)
	}
	return n, c.d.failure("read", off, int64(len(b)), err)
}

// WriteAt writes to the page cache. What was written is durable after the next Flush.
func (c Cached) WriteAt(b []byte, off int64) (n int, err error) {
	if err := c.d.writable(off, int64(len(b))); err != nil {
		return 0, c.d.failure("write", off, int64(len(b)), err)
	}
	err = c.d.withCached(func(f *os.File) (err error) {
		n, err = f.WriteAt(b, c.d.info.Offset+off)
		return err
	})
	return n, c.d.failure("write", off, int64(len(b)), err)
}
