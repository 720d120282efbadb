package clone

import (
	"context"
	"errors"
	"fmt"

	"decant/journal"
	"decant/region"
)

// ErrNoMarker says that a clone was opened without the means to mark its source.
var ErrNoMarker = errors.New("the source cannot be marked, so nothing is discarded")

// Committed holds regions that are flushed and journaled and whose source nobody
// has discarded yet. Only TakeCommitted makes one that is not empty, and
// DiscardSource takes nothing else: a discard ahead of its commit does not
// compile (I2).
type Committed struct {
	tx      journal.TxID
	regions *region.Set
	copied  copiedBytes
}

// Tx is the newest transaction among them.
func (d Committed) Tx() journal.TxID { return d.tx }

// Regions is their number.
func (d Committed) Regions() uint64 {
	if d.regions == nil {
		return 0
	}
	return d.regions.Count()
}

// CopiedBytes is what was copied for those of them that this Clone committed; what
// a process before it copied does not count.
func (d Committed) CopiedBytes() int64 { return d.copied.total }

// GuestBytes is the part of CopiedBytes that was copied for guests' writes to parts
// of regions.
func (d Committed) GuestBytes() int64 { return d.copied.forGuests }

// TakeCommitted hands out every committed region not handed out before. Right
// after Open that is what a crash left undiscarded.
func (c *Clone) TakeCommitted() Committed { return c.regions.takeCommitted() }

// DiscardSource frees committed regions on the source:
//
//	mark     the source says durably that discards up to this transaction may have begun (I11)
//	drain    no read of the source is in flight in the regions                          (I3)
//	discard  whole regions, inside the device                                           (I6)
//	note     the journal knows; losing this repeats a discard
//
// The context ends the waiting for readers, nothing else. After an error the
// regions that were not discarded are available to TakeCommitted again.
func (c *Clone) DiscardSource(ctx context.Context, done Committed) error {
	c.discard.Lock()
	defer c.discard.Unlock()
	if done.Regions() == 0 {
		return nil
	}
	freed, err := c.discardRegions(ctx, done)
	c.regions.noteDiscarded(freed)
	if err != nil {
		c.regions.giveBack(done)
	}
	if len(freed) == 0 {
		return err
	}
	c.record.Lock()
	defer c.record.Unlock()
	if noteErr := c.Journal.MarkDiscarded(freed); noteErr != nil {
		return errors.Join(err, fmt.Errorf("note discards: %w", noteErr))
	}
	return err
}

// discardRegions says which ranges it discarded, also when it fails.
func (c *Clone) discardRegions(ctx context.Context, done Committed) (freed []region.Range, err error) {
	if err := c.writable(); err != nil {
		return nil, err
	}
	if c.Marker == nil {
		return nil, ErrNoMarker
	}
	c.marked = max(c.marked, done.tx) // batches may come in any order
	if err := c.Marker.Mark(c.marked); err != nil {
		return nil, fmt.Errorf("mark the source: %w", err)
	}
	for run := range done.regions.Ranges() {
		if err := c.regions.drainReaders(ctx, run); err != nil {
			return freed, fmt.Errorf("wait for reads of the source: %w", err)
		}
		if err := c.writable(); err != nil {
			return freed, err // a commit has failed meanwhile
		}
		off, n := c.Geometry.Bytes(run)
		if err := c.Source.Discard(off, n); err != nil {
			return freed, &IOError{Side: SourceSide, Op: "discard", Off: off, N: n, Err: err}
		}
		freed = append(freed, run)
	}
	return freed, nil
}
