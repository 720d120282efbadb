package clone

import "decant/region"

// Extent is a part of the device in one state, as a guest may want to know it.
type Extent struct {
	Bytes int64
	// Zero says that the part is known to read as zeros, and takes no space where its
	// bytes are. Without it, it may hold anything.
	Zero bool
	// Hydrated says that the destination answers for the part: its bytes need not be
	// fetched from the source any more.
	Hydrated bool
}

const (
	// maxExtents is how many extents one call describes at most.
	maxExtents = 256
	// lookRegions is how many regions are looked at under one lock.
	lookRegions = 1 << 10
)

// Extents describes the parts of [off, off+n), from off on and in order: all of it, or
// the first 256 parts. Neighbours may be alike. What it says was true at some time
// during the call. A range that is not on the device is ErrOutside; other errors are
// IOErrors of looking for holes.
//
// It moves no data, and has nothing hydrated.
func (c *Clone) Extents(off, n int64) ([]Extent, error) {
	if err := c.inside("look", off, n); err != nil {
		return nil, err
	}
	var all []Extent
	for end := off + n; off < end && len(all) < maxExtents; {
		e, err := c.extent1(off, end)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
		off += e.Bytes
	}
	return all, nil
}

// extent1 describes the leading part of [off, end).
func (c *Clone) extent1(off, end int64) (Extent, error) {
	within := c.Geometry.Touched(off, end-off)
	within.Count = min(within.Count, lookRegions)
	// A read of the source keeps its holes from being those of a discard (I3).
	from, part := c.regions.beginLook(within)
	if from == ownedBySource {
		defer c.regions.endRead(part)
	}
	partOff, partBytes := c.Geometry.Bytes(part)
	e := Extent{Bytes: min(end, partOff+partBytes) - off, Hydrated: from != ownedBySource}
	start, stop, err := c.dataFrom(from, off)
	if err != nil {
		return e, err
	}
	if from == ownedByCache && c.regions.isClosed() {
		return c.extent1(off, end) // a flush has failed meanwhile: it is the source's now
	}
	if start > off {
		e.Zero, stop = true, start
	}
	e.Bytes = min(e.Bytes, stop-off)
	return e, nil
}

// dataFrom is the first data from off on, as far as the owner of off tells.
func (c *Clone) dataFrom(from owner, off int64) (start, end int64, err error) {
	side, sparse := SourceSide, Sparse(nil)
	if from == ownedBySource {
		sparse, _ = c.Source.(Sparse)
	} else if d, ok := c.Destination.(LiveSparse); ok && d.TellsAtAnyTime() {
		side, sparse = DestinationSide, d
	}
	if sparse == nil {
		return off, c.Bytes(), nil
	}
	start, end, err = sparse.NextData(off)
	if err != nil {
		return 0, 0, &IOError{Side: side, Op: "look for data", Off: off, N: c.Bytes() - off, Err: err}
	}
	return start, max(end, off+1), nil
}

// beginLook is beginRead for somebody who does not want the bytes.
func (r *regions) beginLook(run region.Range) (from owner, part region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beginReadLocked(run)
}
