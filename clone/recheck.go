package clone

import (
	"context"
	"errors"
	"fmt"

	"decant/journal"
	"decant/region"
)

// ErrLost says that neither end holds the bytes of a region any more.
var ErrLost = errors.New("bytes that the journal counts on are at neither end")

// LostError names regions whose bytes are at neither end as the journal knows them.
// It is an ErrLost.
type LostError struct{ Offsets []int64 } // of the device, ascending

func (e *LostError) Error() string {
	const most = 8
	more := ""
	if n := len(e.Offsets); n > most {
		more = fmt.Sprintf(" and %d more", n-most)
	}
	return fmt.Sprintf("%v: %d regions, at offsets %v%s", ErrLost, len(e.Offsets), e.Offsets[:min(most, len(e.Offsets))], more)
}

// Is makes it an ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Recheck reads what processes before this one have committed, and have not noted as
// discarded, back from the destination and compares it with the checksums of the
// journal. A pool whose metadata had to be repaired may have lost what it once had
// flushed. Only what is found is handed out by TakeCommitted; until this has been
// called nothing of it is. It changes neither end.
//
// Regions that the destination has lost, and of which the source is proven to hold
// every byte, are Unhydrated again; they are returned. If neither end holds one, the
// clone is read-only from then on and the error is a LostError. Any other error,
// also that of the context, leaves the rest to another call.
//
// Regions that guests have written to have no checksum, and their bytes exist nowhere
// else: the destination is believed if it can be read.
//
// It is meant for the time between Open and the first use of the clone, and has to be
// called before guests read: until then they are shown what the destination has. A
// guest's change of a region that was not rechecked yet has that done first.
func (c *Clone) Recheck(ctx context.Context) (again []region.Range, err error) {
	var lost LostError
	back := region.NewSet()
	for run := range c.regions.doubted().Ranges() {
		for !run.Empty() {
			part := region.Range{First: run.First, Count: min(run.Count, region.ChunkRegions)}
			if err := c.recheckPart(ctx, part, back, &lost); err != nil {
				return nil, err
			}
			run = region.Between(part.End(), run.End())
		}
	}
	if len(lost.Offsets) > 0 {
		c.endAtLoss()
		return nil, &lost
	}
	for run := range back.Ranges() {
		again = append(again, run)
	}
	return again, nil
}

// recheckPart judges regions whose checksums fit into memory.
func (c *Clone) recheckPart(ctx context.Context, part region.Range, back *region.Set, lost *LostError) error {
	sums := map[region.Nr]uint64{}
	for s, err := range c.Journal.Checksums(c.direction, part) {
		if err != nil {
			return fmt.Errorf("read checksums: %w", err)
		}
		sums[s.Nr] = journal.NormalSum(s.Sum)
	}
	for nr := part.First; nr < part.End(); nr++ {
		if err := c.writable(); err != nil {
			return err
		}
		one := region.Range{First: nr, Count: 1}
		switch found, err := c.judge(ctx, one, sums[nr]); {
		case err != nil:
			return err
		case found == atNeitherEnd:
			off, _ := c.Geometry.Bytes(one)
			lost.Offsets = append(lost.Offsets, off)
		case found == atSource:
			back.Add(one)
		}
	}
	return nil
}

// recheckBeforeChange is Recheck for one region that a guest is going to change: a
// change of a part would make it impossible to tell whether the rest is there.
func (c *Clone) recheckBeforeChange(one region.Range) error {
	var lost LostError
	if err := c.recheckPart(context.Background(), one, region.NewSet(), &lost); err != nil {
		return err
	}
	if len(lost.Offsets) > 0 {
		c.endAtLoss()
		return &lost
	}
	return nil
}

// endAtLoss leaves ReadWrite, as abort does: between commits, so that none ends well
// whose regions have been taken back.
func (c *Clone) endAtLoss() {
	c.commit.Lock()
	defer c.commit.Unlock()
	c.mode.Store(uint32(ReadOnly))
	c.regions.forget()
}

// whereabouts says where the bytes of a region were found.
type whereabouts uint8

const (
	atDestination whereabouts = iota
	atSource
	atNeitherEnd
)

// judge ends the doubt about one region. It is done by one call at a time, or a guest
// would write to what one has judged while another one still reads it. As long as a
// region is in doubt, no transaction has it, and so its checksum stays.
func (c *Clone) judge(ctx context.Context, one region.Range, sum uint64) (whereabouts, error) {
	c.judging.Lock()
	defer c.judging.Unlock()
	if !c.regions.inDoubt(one) {
		return atDestination, nil // somebody else was here first
	}
	whole, err := c.holds(ctx, DestinationSide, one, sum)
	if err != nil {
		return atNeitherEnd, err
	}
	if whole {
		c.regions.trust(one)
		return atDestination, nil
	}
	whole, err = c.holds(ctx, SourceSide, one, sum)
	if err != nil {
		return atNeitherEnd, err
	}
	if !whole {
		return atNeitherEnd, nil
	}
	c.regions.distrust(one)
	return atSource, nil
}

// holds says whether an end holds the bytes of a region with this checksum; 0 stands
// for zeros only, WrittenSum for whatever can be read.
func (c *Clone) holds(ctx context.Context, side Side, one region.Range, sum uint64) (bool, error) {
	if side == DestinationSide && sum == 0 && c.regions.isClean(one) {
		return true, nil
	}
	buffer := c.buffers.get()
	defer c.buffers.put(buffer)
	found := summer{geometry: c.Geometry}
	off, n := c.Geometry.Bytes(one)
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		p := buffer[:min(int64(len(buffer)), end-off)]
		read := c.Destination.ReadAt
		if side == SourceSide {
			read = c.Source.ReadAt
		}
		got, err := read(p, off)
		if err := ioError(side, "read", off, p, got, err); err != nil {
			return false, err
		}
		found.add(p, off)
		off += int64(len(p))
	}
	if sum == journal.WrittenSum {
		return true, nil
	}
	if len(found.sums) == 0 {
		return sum == 0, nil
	}
	return sum == journal.NormalSum(found.sums[0].Sum), nil
}

// beginDoubt keeps hydrated regions from being handed out before they were rechecked.
func (r *regions) beginDoubt(s *region.Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubt = s
	r.ready.Subtract(s)
}

// doubted are the regions that Recheck has to look at.
func (r *regions) doubted() *region.Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doubt.Clone()
}

// inDoubt says whether Recheck still has to look at all of a run.
func (r *regions) inDoubt(run region.Range) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doubt.HasAll(run)
}

// isClean says whether the destination is known to read zeros in a run.
func (r *regions) isClean(run region.Range) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clean.HasAll(run)
}

// trust lets the source of hydrated regions be discarded: the destination was seen to
// hold them.
func (r *regions) trust(run region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubt.Remove(run)
	r.ready.Add(run)
}

// distrust moves Hydrated regions back to Unhydrated: the destination has lost them,
// and the source was seen to hold them. The journal goes on to count them as
// hydrated until a transaction has them once more; a process that ends before that
// leaves them to the next one's Recheck.
func (r *regions) distrust(run region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubt.Remove(run)
	r.hydrated.Remove(run)
	r.claimed.Remove(run)
	r.again.Add(run)
}
