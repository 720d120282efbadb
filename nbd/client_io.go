package nbd

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// maxTrimBytes is the most that one discard or zeroing asks of the server: what takes
// long is no reason to give its connection up.
const maxTrimBytes = 256 << 20

// within checks a range against the size.
func (c *Client) within(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.Bytes() || n > c.Bytes()-off {
		return fmt.Errorf("%v: %s of %d bytes at byte %d: beyond its end at byte %d: %w",
			c.uri, op, n, off, c.Bytes(), unix.EINVAL)
	}
	return nil
}

// ReadAt fills p with what the server has at off. Where the export ends before p does
// it returns io.EOF; any other error means that nothing in p is to be used.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	want := p
	if off >= 0 && off <= c.Bytes() && int64(len(p)) > c.Bytes()-off {
		want = p[:c.Bytes()-off]
	}
	if err := c.within("read", off, int64(len(want))); err != nil {
		return 0, err
	}
	for done := 0; done < len(want); {
		n, err := c.readPiece(c.do, want[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(p), nil
}

// readPiece reads as much of p as one request can, with the blocks around it if the
// server knows only whole ones. The request is carried out by send.
func (c *Client) readPiece(send func(*call) error, p []byte, off int64) (int, error) {
	block := c.export.minBlockBytes
	if (off|int64(len(p)))%block == 0 {
		n := min(int64(len(p)), c.export.maxPayloadBytes)
		return int(n), send(&call{request: request{command: cmdRead, offset: uint64(off), length: uint32(n)}, data: p[:n]})
	}
	start := off &^ (block - 1)
	end := min((off+int64(len(p))+block-1)&^(block-1), start+c.export.maxPayloadBytes)
	around := make([]byte, min(end, c.Bytes())-start)
	err := send(&call{request: request{command: cmdRead, offset: uint64(start), length: uint32(len(around))}, data: around})
	if err != nil {
		return 0, err
	}
	return copy(p, around[off-start:]), nil
}

// change is what all changes begin with.
func (c *Client) change(op string, off, n int64) error {
	if err := c.within(op, off, n); err != nil {
		return err
	}
	if c.ReadOnly() {
		return fmt.Errorf("%v: %s of %d bytes at byte %d: the export is read-only: %w", c.uri, op, n, off, unix.EROFS)
	}
	return nil
}

// aligned says whether the server takes writes of the range.
func (c *Client) aligned(op string, off, n int64) error {
	if (off|n)%c.export.minBlockBytes != 0 {
		return fmt.Errorf("%v: %s of %d bytes at byte %d: the server writes whole blocks of %d bytes: %w",
			c.uri, op, n, off, c.export.minBlockBytes, unix.EINVAL)
	}
	return nil
}

// WriteAt writes p. It is durable after the next Flush. An error means that any part
// of it may have been written, or may still be.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.change("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := c.aligned("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	c.wrote.Store(true)
	defer c.holes.forget()
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(c.export.maxPayloadBytes))
		err := c.do(&call{
			request: request{command: cmdWrite, offset: uint64(off + int64(done)), length: uint32(n)},
			data:    p[done : done+n],
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Zero makes the range read as zeros; the server may free its space. It is durable
// after the next Flush. Errors are as with WriteAt.
func (c *Client) Zero(off, n int64) error {
	if err := c.change("zero", off, n); err != nil {
		return err
	}
	if c.export.flags&flagWriteZeroes == 0 {
		for n > 0 {
			p := zeros()[:min(n, writeBytes)]
			if _, err := c.WriteAt(p, off); err != nil {
				return err
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return nil
	}
	if err := c.aligned("zero", off, n); err != nil {
		return err
	}
	c.wrote.Store(true)
	defer c.holes.forget()
	return c.inPieces(cmdWriteZeroes, off, n)
}

// Discard tells the server that the range is needed no more; what is read there later
// may be anything. Only whole blocks of the server inside the range are discarded. A
// server without discards is unix.EOPNOTSUPP.
func (c *Client) Discard(off, n int64) error {
	if err := c.change("discard", off, n); err != nil {
		return err
	}
	if !c.CanDiscard() {
		return fmt.Errorf("%v: discard of %d bytes at byte %d: the server takes no discards: %w",
			c.uri, n, off, unix.EOPNOTSUPP)
	}
	block := c.export.minBlockBytes
	start, end := (off+block-1)&^(block-1), (off+n)&^(block-1)
	if end <= start {
		return nil
	}
	return c.inPieces(cmdTrim, start, end-start)
}

func (c *Client) inPieces(op command, off, n int64) error {
	for n > 0 {
		piece := min(n, maxTrimBytes)
		if err := c.do(&call{request: request{command: op, offset: uint64(off), length: uint32(piece)}}); err != nil {
			return err
		}
		off, n = off+piece, n-piece
	}
	return nil
}

// Flush returns nil only if every write and zeroing that had returned before it began
// survives a power loss, as far as the server says. After an error no later Flush
// succeeds. A server that knows no flush is unix.EOPNOTSUPP: it promises nothing.
func (c *Client) Flush() error {
	if c.ReadOnly() {
		return nil // there is nothing that could be lost
	}
	if c.export.flags&flagFlush == 0 {
		return fmt.Errorf("%v: the server knows no flush, so nothing can be made durable: %w", c.uri, unix.EOPNOTSUPP)
	}
	err := c.do(&call{request: request{command: cmdFlush}})
	if err != nil {
		c.flushFailed(err)
	}
	return err
}
