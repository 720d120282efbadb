package clone

import (
	"errors"
	"fmt"

	"decant/region"
)

// ErrAdopt says that regions were to be adopted that this clone is filling itself, or
// that it has seen the destination lose.
var ErrAdopt = errors.New("regions cannot be adopted")

// Adopt moves Unhydrated regions to Dirty that somebody else has filled on the
// destination: another engine, which copies and serves guests in place of this clone.
// Regions that are Dirty or more are left as they are. The next Commit makes them
// Hydrated, without checksums: guests may have written to them. copiedBytes is what the
// other one has copied for them.
//
// The caller answers for this: the destination was sent every byte of these regions
// before the call, what the other engine knows of them survives a power loss, it reads
// and writes them at the destination alone from now on, and no read of their source by
// it is in flight any more (I3).
func (c *Clone) Adopt(regions *region.Set, copiedBytes int64) error {
	if !contains(region.NewSet(c.Geometry.All()), regions) {
		return fmt.Errorf("%w: some lie behind the end of the device", ErrAdopt)
	}
	return c.regions.adopt(regions, copiedBytes)
}

func (r *regions) adopt(regions *region.Set, copied int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return ErrReadOnly
	case overlap(r.hydrating, regions):
		return fmt.Errorf("%w: this clone is filling some of them", ErrAdopt)
	case overlap(r.again, regions):
		return fmt.Errorf("%w: the destination has lost some of them", ErrAdopt)
	}
	for within := range regions.Ranges() {
		for {
			run, _, ok := r.claimLocked(within)
			if !ok {
				break
			}
			r.soilLocked(run, nil, copiedBytes{total: copied})
			copied = 0 // it is counted once
			r.changed.Add(run)
			r.unsum(run)
		}
	}
	return nil
}

// Holes are the Unhydrated regions that lie in holes of the source, and that the
// destination is known to read as zeros (I10): they need no copy.
func (c *Clone) Holes() (*region.Set, error) {
	holes := region.NewSet()
	for off, end := int64(0), c.Bytes(); off < end; {
		start, next, err := c.nextData(off)
		if err != nil {
			return nil, &IOError{Side: SourceSide, Op: "look for data", Off: off, N: end - off, Err: err}
		}
		holes.Add(c.Geometry.Covered(off, min(start, end)-off))
		off = max(next, off+1)
	}
	r := c.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	other := region.NewSet(c.Geometry.All())
	other.Subtract(r.clean)
	other.Union(r.claimed)
	holes.Subtract(other)
	return holes, nil
}
