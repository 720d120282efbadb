package clone

import (
	"fmt"
	"io"
)

// ReadAt reads the device for a guest: from the destination what it owns, the rest
// from the source, which then is what Next comes to first. The source is never
// discarded under a read (I3). Reads past the end are cut short with io.EOF; a read
// of no bytes is never short, wherever it is. Reading works in every mode; what a
// read-only clone shows of writes that were not flushed is said in the package
// comment.
func (c *Clone) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	c.guests.enter()
	defer c.guests.leave()
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
	from, part := c.regions.beginRead(c.Geometry.Touched(off, int64(len(p))))
	partOff, partBytes := c.Geometry.Bytes(part)
	p = p[:min(int64(len(p)), partOff+partBytes-off)]
	if from == ownedBySource {
		defer c.regions.endRead(part)
		n, err := c.Source.ReadAt(p, off)
		return n, ioError(SourceSide, "read", off, p, n, err)
	}
	n, err := c.cache().ReadAt(p, off)
	if from == ownedByCache && c.regions.isClosed() {
		return 0, nil // a flush has failed meanwhile: what was read may be anything
	}
	return n, ioError(DestinationSide, "read", off, p, n, err)
}

// cache is the destination for guests. Once something was lost only the medium tells
// what is left.
func (c *Clone) cache() Cache {
	if c.Cache != nil && c.Mode() == ReadWrite {
		return c.Cache
	}
	return c.Destination
}
