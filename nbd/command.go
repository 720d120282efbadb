package nbd

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// refusal is why a request is answered with an error without having been tried.
type refusal struct {
	errno   errno
	message string
}

// check looks at a request before anything is done for it. It is nil if the request
// may be carried out. Nothing here depends on what the device holds.
func (c *conn) check(q request) *refusal {
	known := uint16(cmdFlagFUA) // existing clients set it also where it means nothing
	writes := false
	switch q.command {
	case cmdRead:
		known |= cmdFlagDF
	case cmdWrite, cmdTrim:
		writes = true
	case cmdWriteZeroes:
		known |= cmdFlagNoHole | cmdFlagFastZero
		writes = true
	case cmdBlockStatus:
		known |= cmdFlagReqOne
	case cmdFlush, cmdCache:
	default:
		return &refusal{errInval, "unknown command"}
	}
	switch {
	case q.flags&^known != 0 || q.flags&cmdFlagDF != 0 && !c.structured:
		return &refusal{errInval, "unknown flags"}
	case writes && c.readOnly:
		return &refusal{errPerm, "the export is read-only"}
	case q.command == cmdFlush:
		if q.offset != 0 || q.length != 0 {
			return &refusal{errInval, "a flush has no range"}
		}
		return nil
	case q.command <= cmdWrite && q.length > MaxPayloadBytes:
		return c.tooLong(q)
	case q.offset > uint64(c.bytes) || uint64(q.length) > uint64(c.bytes)-q.offset:
		if q.command == cmdWrite || q.command == cmdWriteZeroes {
			return &refusal{errNoSpc, "beyond the end of the export"}
		}
		return &refusal{errInval, "beyond the end of the export"}
	case (q.offset|uint64(q.length))%uint64(c.export.MinBlockBytes) != 0:
		return &refusal{errInval, "not aligned to the minimum block size"}
	case q.command == cmdBlockStatus && (c.contexts == contexts{} || q.length == 0):
		return &refusal{errInval, "no metadata context is selected, or the range is empty"}
	}
	return nil
}

func (c *conn) tooLong(q request) *refusal {
	if q.command == cmdRead && c.structured {
		return &refusal{errOver, "more than the maximum payload"}
	}
	return &refusal{errInval, "more than the maximum payload"}
}

// execute carries a request out and makes the reply. It takes over body: a read fills
// it and it goes with the reply, a write has its data in it.
func (c *conn) execute(r *reply, q request, body *buffer) {
	if no := c.check(q); no != nil {
		c.refuse(r, q, no.errno, no.message)
		return
	}
	off, n := int64(q.offset), int64(q.length)
	var err error
	switch q.command {
	case cmdRead:
		if body == nil {
			c.succeed(r, q)
			return
		}
		if err = readFull(c.export.Device, body.all[:n], off); err == nil {
			r.setData(c.structured, q, body)
			return
		}
		c.release(body)
	case cmdWrite:
		if body != nil {
			err = writeFull(c.export.Device, body.all[:n], off)
			c.release(body)
		}
	case cmdTrim:
		err = c.trim(off, n)
	case cmdWriteZeroes:
		err = c.zero(off, n, q.flags)
	case cmdBlockStatus:
		if err = c.blockStatus(r, q); err == nil {
			return
		}
	case cmdFlush:
		err = c.export.flusher.flush()
	case cmdCache: // the device decides what it keeps in memory
	default: // check knows all others
	}
	if err == nil && q.flags&cmdFlagFUA != 0 && q.writes() {
		err = c.export.flusher.flush()
	}
	if err != nil {
		c.fail(r, q, err)
		return
	}
	c.succeed(r, q)
}

// writes says whether the request changes what the device holds.
func (r request) writes() bool {
	return r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes
}

func (c *conn) succeed(r *reply, q request) {
	if c.structured && q.command == cmdRead {
		r.setNone(q.cookie)
		return
	}
	r.setSimple(q.cookie, success)
}

func (c *conn) refuse(r *reply, q request, e errno, message string) {
	if c.structured {
		r.setError(q.cookie, e, message)
		return
	}
	r.setSimple(q.cookie, e)
}

// fail answers with an error of the device. Its text is for this host's log: it may
// name things that are none of the client's business.
func (c *conn) fail(r *reply, q request, err error) {
	if errors.Is(err, ErrNoAnswer) {
		c.disconnect() // so that the reply which follows goes nowhere
	}
	e := fromDevice(err)
	fast := q.command == cmdWriteZeroes && q.flags&cmdFlagFastZero != 0
	if e == errNotSup && !fast {
		e = errInval // ENOTSUP means "not fast", and nothing else
	}
	c.refuse(r, q, e, "")
	if errors.Is(err, errNotFast) || !c.export.quiet.pass() {
		return
	}
	c.server.config.Log.Warn("a device failed a request", "export", c.export.Name, "request", q.command.String(),
		"offset", q.offset, "bytes", q.length, "error", err)
}

// readFull fills p or fails: what a device does not give is not made up.
func readFull(d Device, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func writeFull(d Device, p []byte, off int64) error {
	n, err := d.WriteAt(p, off)
	if err == nil && n < len(p) {
		return io.ErrShortWrite
	}
	return err
}

// trim is a hint: a device that cannot do it has done all that is asked for.
func (c *conn) trim(off, n int64) error {
	if n == 0 {
		return nil
	}
	err := c.export.Device.Discard(off, n)
	if unsupported(err) {
		return nil
	}
	return err
}

// errNotFast is the answer to FAST_ZERO where zeroing is as slow as writing.
var errNotFast = fmt.Errorf("zeroing is not faster than writing: %w", unix.EOPNOTSUPP)

// zero makes a range read as zeros; with NO_HOLE by writing them, because only that
// makes the space the client's own.
func (c *conn) zero(off, n int64, flags uint16) error {
	if n == 0 {
		return nil
	}
	if flags&cmdFlagFastZero != 0 && (flags&cmdFlagNoHole != 0 || !c.export.FastZero) {
		return errNotFast
	}
	if flags&cmdFlagNoHole == 0 {
		if err := c.export.Device.Zero(off, n); !unsupported(err) || flags&cmdFlagFastZero != 0 {
			return err
		}
	}
	for n > 0 {
		if c.stopping.Load() {
			return errShut.asUnix() // this may be gigabytes
		}
		p := zeros()[:min(n, writeBytes)]
		if err := writeFull(c.export.Device, p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// zeros are writeBytes zeros that nobody writes to.
var zeros = sync.OnceValue(func() []byte { return alignedBytes(writeBytes) })
