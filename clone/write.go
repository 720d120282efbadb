package clone

import (
	"context"

	"decant/region"
)

// changeBytes bounds what one step of a guest's request claims, so that others need
// not wait for all of a request.
const changeBytes = 1 << 30

// WriteAt writes to the device for a guest. What was written is durable after the
// next Flush; a crash before that leaves each sector as it was or as written. It
// fails with ErrOutside and writes nothing where the range is not on the device,
// with ErrReadOnly once the clone has left ReadWrite, with a LostError where Recheck
// would, and with the destination's error, ENOSPC among them: then, too, each sector
// is as it was or as written, and nothing else is harmed.
//
// Guests may write at the same time; of writes to the same sector any may be the
// last.
func (c *Clone) WriteAt(p []byte, off int64) (int, error) {
	if err := c.inside("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := c.carryOut(change{off: off, n: int64(len(p)), data: p}, "write")
	return int(n), err
}

// Zero makes a range of the device read as zeros. Errors, durability and
// concurrency are those of WriteAt.
func (c *Clone) Zero(off, n int64) error {
	if err := c.inside("zero", off, n); err != nil {
		return err
	}
	_, err := c.carryOut(change{off: off, n: n}, "zero")
	return err
}

// Discard tells that nobody needs a range of the device any more. It reads as zeros
// from then on, also in parts of regions and also after a crash that follows a
// Flush; the source's bytes never come back. Everything else is as for Zero.
func (c *Clone) Discard(off, n int64) error {
	if err := c.inside("discard", off, n); err != nil {
		return err
	}
	_, err := c.carryOut(change{off: off, n: n, isHint: true}, "discard")
	return err
}

// Flush returns nil only if every write, zero and discard that was answered before
// it began survives a power loss (I4). Guests that flush at the same time share
// commits. After an error the clone is read-only.
func (c *Clone) Flush() error {
	c.guests.enter()
	defer c.guests.leave()
	return c.Commit()
}

// change is what a guest wants a range to hold.
type change struct {
	off, n int64
	data   []byte // n bytes; nil is zeros
	isHint bool   // nobody relies on what the range holds after it
}

// within is the part of w that lies in a run of regions at its start.
func (w change) within(g region.Geometry, run region.Range) change {
	off, n := g.Bytes(run)
	end := min(w.off+w.n, off+n)
	first := max(w.off, off)
	if w.data != nil {
		w.data = w.data[first-w.off : end-w.off]
	}
	w.off, w.n = first, end-first
	return w
}

// onto puts the part of w that lies in p, which is the bytes at off, into p.
func (w change) onto(p []byte, off int64) {
	first, end := max(w.off, off), min(w.off+w.n, off+int64(len(p)))
	if first >= end {
		return
	}
	if w.data == nil {
		clear(p[first-off : end-off])
		return
	}
	copy(p[first-off:end-off], w.data[first-w.off:])
}

// carryOut makes a change step by step and says how many bytes of it were done.
func (c *Clone) carryOut(w change, op string) (done int64, err error) {
	c.guests.enter()
	defer c.guests.leave()
	if c.GuestsOutlive && !w.isHint {
		all := c.Geometry.Touched(w.off, w.n)
		defer func() {
			if err == nil {
				err = c.outlive(all)
			}
			if err != nil {
				done = 0 // nobody is to rely on a part of it
			}
		}()
	}
	for end := w.off + w.n; w.off < end; {
		n, err := c.changeRun(w, op)
		if err != nil {
			return done, err
		}
		done += n
		w.off, w.n = w.off+n, w.n-n
		if w.data != nil {
			w.data = w.data[n:]
		}
	}
	return done, nil
}

// outlive returns nil once the end of this process can undo nothing in these regions:
// the journal has them as hydrated, so that the next process reads them from the
// destination, which has every byte that it was sent.
func (c *Clone) outlive(all region.Range) error {
	if all.Empty() || c.regions.areHydrated(all) {
		return nil
	}
	return c.Commit()
}

// changeRun changes the leading part of w whose regions are in the same state.
func (c *Clone) changeRun(w change, op string) (int64, error) {
	within, whole := c.Geometry.Touched(w.off, min(w.n, changeBytes)), c.Geometry.Covered(w.off, w.n)
	step, run, clean := c.regions.beginChange(within, whole)
	w = w.within(c.Geometry, run)
	switch step {
	case changeRefused:
		return 0, ErrReadOnly
	case changeAnnounces:
		c.regions.announce(c.aligned(run))
		return 0, c.Commit()
	case changeRechecks:
		return 0, c.recheckBeforeChange(run)
	case changeInPlace:
		if err := c.send(w, op, false); err != nil {
			return 0, err
		}
		// A flush that failed meanwhile may have lost it.
		return w.n, c.writable()
	case changeClaimed: // below
	}
	copied, err := c.fillClaimed(run, clean, w, op)
	if err != nil {
		c.regions.release(run)
		return 0, err
	}
	if !c.regions.soilChanged(run, w.data != nil || copied > 0, copied) {
		return 0, ErrReadOnly
	}
	return w.n, nil
}

// fillClaimed makes the destination hold a claimed run as the guest wants it: all
// of it if it covers the run, else the source's bytes with the change put in (I5:
// nobody else writes there until that is done).
func (c *Clone) fillClaimed(run region.Range, clean bool, w change, op string) (copied int64, err error) {
	off, n := c.Geometry.Bytes(run)
	if w.off == off && w.n == n {
		return 0, c.send(w, op, clean)
	}
	_, err = c.copyRun(context.Background(), run, clean, w)
	return n, err
}

// send gives a change to the destination. Zeros are none where it is known to read
// zeros (I10).
func (c *Clone) send(w change, op string, clean bool) error {
	switch {
	case w.data != nil:
		n, err := c.cache().WriteAt(w.data, w.off)
		return ioError(DestinationSide, op, w.off, w.data, n, err)
	case clean:
		return nil
	}
	if err := c.Destination.Zero(w.off, w.n); err != nil {
		return &IOError{Side: DestinationSide, Op: op, Off: w.off, N: w.n, Err: err}
	}
	return nil
}

// aligned widens a run to the blocks of BufferBytes that it touches: whoever writes
// to a region will write to those beside it, and then need not wait for a commit.
func (c *Clone) aligned(run region.Range) region.Range {
	off, n := c.Geometry.Bytes(run)
	first := off / c.BufferBytes * c.BufferBytes
	end := min(c.Bytes(), (off+n+c.BufferBytes-1)/c.BufferBytes*c.BufferBytes)
	return c.Geometry.Touched(first, end-first)
}
