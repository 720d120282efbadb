package clone

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"decant/journal"
	"decant/region"
)

const (
	// granuleBytes is the unit in which zeros are looked for: a page, and the
	// block of most file systems.
	granuleBytes = 4 << 10
	// zeroRunBytes is the least unit of zeros that is worth an operation of its own
	// on a destination that is not known to read zeros.
	zeroRunBytes = 64 << 10
	// holeBytes bounds one hole, so that a caller can stop in between.
	holeBytes = 1 << 30
	// guestHoleBytes bounds it while guests use the device, who may have to wait
	// for all of it.
	guestHoleBytes = 64 << 20
)

// Work is a run of Unhydrated regions for one call of Hydrate or HydrateHole.
type Work struct {
	Range region.Range
	Hole  bool // the source holds nothing there: it costs no copy
	// Wanted says that a guest has read there, or just before, so that it comes
	// ahead of its turn. What lies before it is still to be done.
	Wanted bool
}

// Next is what to hydrate next inside within, at most batchRegions long if it has
// to be copied: what guests have read from the source and what follows that, or
// else the first work there is. It is false when every region of within is taken
// care of.
func (c *Clone) Next(within region.Range, batchRegions uint64) (Work, bool, error) {
	within = within.Intersect(c.Geometry.All())
	run, wanted, ok := c.regions.next(within, batchRegions, max(1, uint64(readaheadBytes/c.Geometry.RegionBytes())))
	if !ok {
		return Work{}, false, nil
	}
	off, n := c.Geometry.Bytes(run)
	start, end, err := c.nextData(off)
	if err != nil {
		return Work{}, false, &IOError{Side: SourceSide, Op: "look for data", Off: off, N: n, Err: err}
	}
	if hole := c.Geometry.Covered(off, min(start, off+n)-off); !hole.Empty() {
		most := int64(holeBytes)
		if c.GuestBusy(time.Second) {
			most = guestHoleBytes
		}
		hole.Count = min(hole.Count, max(1, uint64(most/c.Geometry.RegionBytes())))
		return Work{Range: hole, Hole: true, Wanted: wanted}, true, nil
	}
	run.Count = min(run.Count, batchRegions)
	run, err = c.upToHole(run, end)
	return Work{Range: run, Wanted: wanted}, true, err
}

// upToHole is the part of run before the first region of it that the source holds
// nothing for. There is data up to the byte end. Holes that fill no region are no
// reason to copy less at a time.
func (c *Clone) upToHole(run region.Range, end int64) (region.Range, error) {
	off, n := c.Geometry.Bytes(run)
	for end < off+n {
		next := c.Geometry.Touched(end-1, 1).End()
		if next >= run.End() {
			break
		}
		at, bytes := c.Geometry.Bytes(region.Range{First: next, Count: 1})
		start, dataEnd, err := c.nextData(at)
		if err != nil {
			return run, &IOError{Side: SourceSide, Op: "look for data", Off: at, N: bytes, Err: err}
		}
		if start >= at+bytes {
			return region.Between(run.First, next), nil
		}
		end = dataEnd
	}
	return run, nil
}

// sourceExtent is the last answer of the source to where its data lies. Data that is
// not hydrated stays where it is, so the answer holds for all of the extent.
type sourceExtent struct {
	mu         sync.Mutex
	start, end int64
}

// nextData asks the source where its data lies, once for each extent. A source that
// cannot tell is all data.
func (c *Clone) nextData(off int64) (start, end int64, err error) {
	source, ok := c.Source.(Sparse)
	if !ok {
		return off, c.Bytes(), nil
	}
	if start, end = c.extent.last(); start <= off && off < end {
		return off, end, nil
	}
	if start, end, err = source.NextData(off); err != nil {
		return 0, 0, err
	}
	c.extent.keep(start, end)
	return start, end, nil
}

func (x *sourceExtent) last() (start, end int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.start, x.end
}

func (x *sourceExtent) keep(start, end int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.start, x.end = start, end
}

// Hydrate copies the regions of within that are Unhydrated and returns how many
// bytes it copied. The context is looked at between buffers. What it copied is
// Dirty: it counts only after Commit. If a copy fails, the regions of that run are
// Unhydrated again.
func (c *Clone) Hydrate(ctx context.Context, within region.Range) (copied int64, err error) {
	within = within.Intersect(c.Geometry.All())
	for {
		if err := c.writable(); err != nil {
			return copied, err
		}
		run, clean, ok := c.regions.claim(within)
		if !ok {
			return copied, nil
		}
		sums, err := c.copyRun(ctx, run, clean, change{})
		if err != nil {
			c.regions.release(run)
			return copied, err
		}
		_, n := c.Geometry.Bytes(run)
		if !c.regions.soil(run, sums, copiedBytes{total: n}) {
			return copied, ErrReadOnly
		}
		copied += n
		within = region.Between(run.End(), within.End())
	}
}

// HydrateHole makes regions Dirty that the source holds nothing for: it sees to it
// that the destination reads zeros there (I10).
func (c *Clone) HydrateHole(ctx context.Context, within region.Range) error {
	within = within.Intersect(c.Geometry.All())
	for {
		if err := c.writable(); err != nil {
			return err
		}
		run, clean, ok := c.regions.claim(within)
		if !ok {
			return nil
		}
		if !clean {
			if err := c.zero(ctx, run); err != nil {
				c.regions.release(run)
				return err
			}
		}
		if !c.regions.soil(run, nil, copiedBytes{}) {
			return ErrReadOnly
		}
		within = region.Between(run.End(), within.End())
	}
}

// copyRun copies one claimed run, buffer by buffer, with a guest's change put in, and
// sums up its regions.
func (c *Clone) copyRun(ctx context.Context, run region.Range, clean bool, w change) ([]journal.Checksum, error) {
	buffer := c.buffers.get()
	defer c.buffers.put(buffer)
	off, n := c.Geometry.Bytes(run)
	summer := summer{geometry: c.Geometry}
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := buffer[:min(int64(len(buffer)), end-off)]
		got, err := c.Source.ReadAt(p, off)
		if err := ioError(SourceSide, "read", off, p, got, err); err != nil {
			return nil, err
		}
		w.onto(p, off)
		// Before the write: a faulty stack changes the memory that it writes from.
		summer.add(p, off)
		if err := c.put(p, off, clean); err != nil {
			return nil, err
		}
		off += int64(len(p))
	}
	return summer.sums, nil
}

// put makes the destination hold p at off. Zeros are skipped where it is known to
// read zeros, and zeroed where that is worth it (I10).
func (c *Clone) put(p []byte, off int64, clean bool) error {
	var sum uint64
	if c.Verify {
		sum = xxh3.Hash(p)
	}
	z := zeros{off: off, shortest: zeroRunBytes, unit: max(c.ZeroUnitBytes, granuleBytes)}
	if clean {
		z.shortest = granuleBytes
	}
	for at := 0; at < len(p); {
		end, zero := z.nextRun(p, at)
		if err := c.putRun(p[at:end], off+int64(at), zero, clean); err != nil {
			return err
		}
		at = end
	}
	if c.Verify {
		return c.verify(sum, off, int64(len(p)))
	}
	return nil
}

func (c *Clone) putRun(p []byte, off int64, zero, clean bool) error {
	switch {
	case zero && clean:
		return nil
	case zero:
		if err := c.Destination.Zero(off, int64(len(p))); err != nil {
			return &IOError{Side: DestinationSide, Op: "zero", Off: off, N: int64(len(p)), Err: err}
		}
		return nil
	}
	n, err := c.Destination.WriteAt(p, off)
	return ioError(DestinationSide, "write", off, p, n, err)
}

// zero makes a claimed run read as zeros.
func (c *Clone) zero(ctx context.Context, run region.Range) error {
	off, n := c.Geometry.Bytes(run)
	if err := c.Destination.Zero(off, n); err != nil {
		return &IOError{Side: DestinationSide, Op: "zero", Off: off, N: n, Err: err}
	}
	if !c.Verify {
		return nil
	}
	if d, ok := c.Destination.(Sparse); ok {
		start, _, err := d.NextData(off)
		if err != nil {
			return &IOError{Side: DestinationSide, Op: "look for data", Off: off, N: n, Err: err}
		}
		if start >= off+n {
			return nil
		}
	}
	return c.verifyZero(ctx, off, n)
}

// verify reads a range back from the destination's medium and compares it with the
// checksum of what was read from the source, not with memory that has been through a
// write since.
func (c *Clone) verify(sum uint64, off, bytes int64) error {
	buffer := c.buffers.get()
	defer c.buffers.put(buffer)
	back := buffer[:bytes]
	n, err := c.Destination.ReadAt(back, off)
	if err := ioError(DestinationSide, "read back", off, back, n, err); err != nil {
		return err
	}
	if xxh3.Hash(back) != sum {
		return &IOError{Side: DestinationSide, Op: "verify", Off: off, N: bytes, Err: ErrMismatch}
	}
	return nil
}

func (c *Clone) verifyZero(ctx context.Context, off, n int64) error {
	zeros := make([]byte, c.BufferBytes)
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := zeros[:min(int64(len(zeros)), end-off)]
		if err := c.verify(xxh3.Hash(p), off, int64(len(p))); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// zeros says what of a buffer counts as zeros.
type zeros struct {
	off      int64 // of the buffer on the device
	shortest int   // runs that are shorter count as data, but for the last of the buffer
	unit     int64 // runs begin and end at its multiples on the device, or with the buffer
}

// nextRun is the end of the run of p that begins at at, and whether it is zeros.
func (z zeros) nextRun(p []byte, at int) (end int, zero bool) {
	for end = at; end < len(p); {
		start, stop, found := z.run(p, end)
		switch {
		case found && start == at:
			return stop, true
		case found:
			return start, false
		}
		end = min(len(p), max(zeroEnd(p, end), end)+granuleBytes)
	}
	return end, false
}

// run is the part of the zeros from at on that counts as such, if it is long enough.
func (z zeros) run(p []byte, at int) (start, end int, found bool) {
	start, end = at, zeroEnd(p, at)
	last := end == len(p)
	if z.unit > granuleBytes {
		if over := (z.off + int64(start)) % z.unit; over > 0 {
			start += int(min(z.unit-over, int64(len(p))))
		}
		if !last {
			end -= int((z.off + int64(end)) % z.unit)
		}
	}
	return start, end, end-start >= z.shortest || last && end > start
}

// zeroEnd is where the zero granules of p from at on end.
func zeroEnd(p []byte, at int) int {
	for at < len(p) {
		end := min(len(p), at+granuleBytes)
		if !allZero(p[at:end]) {
			break
		}
		at = end
	}
	return at
}

var zeroGranule [granuleBytes]byte

func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p, zeroGranule[:len(p)]) }

// summer makes the checksums of regions from consecutive buffers. Regions of zeros
// get none.
type summer struct {
	geometry region.Geometry
	hash     xxh3.Hasher
	data     bool // the present region holds something but zeros
	sums     []journal.Checksum
}

func (s *summer) add(p []byte, off int64) {
	for len(p) > 0 {
		nr := s.geometry.Touched(off, 1).First
		regionOff, regionBytes := s.geometry.Bytes(region.Range{First: nr, Count: 1})
		part := p[:min(int64(len(p)), regionOff+regionBytes-off)]
		_, _ = s.hash.Write(part) // a hash in memory cannot fail
		s.data = s.data || zeroEnd(part, 0) < len(part)
		off, p = off+int64(len(part)), p[len(part):]
		if off < regionOff+regionBytes {
			continue
		}
		if s.data {
			s.sums = append(s.sums, journal.Checksum{Nr: nr, Sum: s.hash.Sum64()})
		}
		s.hash.Reset()
		s.data = false
	}
}
