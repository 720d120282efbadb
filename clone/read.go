package clone

import (
	"fmt"
	"io"
)

// ReadAt reads the device: from the destination what it owns, the rest from the
// source. The source is never discarded under a read (I3). Reads past the end are
// cut short with io.EOF; a read of no bytes is never short, wherever it is.
func (c *Clone) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	var atEnd error
	if left := c.Bytes() - off; int64(len(p)) > left {
		p, atEnd = p[:max(0, left)], io.EOF
	}
	done := 0
	for done < len(p) {
		n, err := c.readRun(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, atEnd
}

// readRun reads the leading part of p whose regions have one owner.
func (c *Clone) readRun(p []byte, off int64) (int, error) {
	fromSource, part := c.regions.beginRead(c.Geometry.Touched(off, int64(len(p))))
	partOff, partBytes := c.Geometry.Bytes(part)
	p = p[:min(int64(len(p)), partOff+partBytes-off)]
	if !fromSource {
		n, err := c.Destination.ReadAt(p, off)
		return n, ioError(DestinationSide, "read", off, p, n, err)
	}
	defer c.regions.endRead(part)
	n, err := c.Source.ReadAt(p, off)
	return n, ioError(SourceSide, "read", off, p, n, err)
}
