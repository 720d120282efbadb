package clone

import (
	"context"
	"sync"

	"decant/journal"
	"decant/region"
)

// regions is the state of every region (see the table in the package comment) and
// the only place where it changes. A region in none of the sets is Unhydrated.
type regions struct {
	mu      sync.Mutex
	changed *sync.Cond // a region left Hydrating, or a read of the source ended

	hydrating *region.Set
	dirty     *transaction
	sealed    *transaction
	hydrated  *region.Set // committed durably, discarded ones included
	ready     *region.Set // of the hydrated, those whose discard nobody has taken on
	discarded *region.Set // of the hydrated, those whose discard is noted

	// doubt are the hydrated regions that an earlier process has committed and not
	// noted as discarded. They are not ready before Recheck has seen them.
	doubt *region.Set
	// again are the Unhydrated regions, and those on their way from there, that the
	// journal counts as hydrated all the same.
	again *region.Set

	// clean are the regions of which the destination is known to read zeros
	// because nothing was ever sent to them (I10).
	clean *region.Set

	// claimed is the union of hydrating, dirty, sealed and hydrated: what no
	// copy may touch (I5). It is kept so that looking for work stays cheap.
	claimed *region.Set

	closed         bool              // no region becomes Dirty any more
	tx             journal.TxID      // last committed transaction
	committedBytes int64             // copied by transactions committed since Open and not yet handed out
	copiedBytes    int64             // since Open, whatever became of it
	durableBytes   int64             // copied by transactions committed since Open
	readers        map[region.Nr]int // reads of the source in flight
}

// transaction is what becomes durable with one commit.
type transaction struct {
	regions     *region.Set
	checksums   map[region.Nr]uint64
	copiedBytes int64
}

func newTransaction() *transaction {
	return &transaction{regions: region.NewSet(), checksums: map[region.Nr]uint64{}}
}

func newRegions(s journal.State, clean *region.Set) *regions {
	r := &regions{
		hydrating: region.NewSet(),
		dirty:     newTransaction(),
		sealed:    newTransaction(),
		hydrated:  s.Hydrated.Clone(),
		ready:     s.Hydrated.Clone(),
		discarded: s.Discarded.Clone(),
		doubt:     region.NewSet(),
		again:     region.NewSet(),
		clean:     clean,
		claimed:   s.Hydrated.Clone(),
		tx:        s.Tx,
		readers:   map[region.Nr]int{},
	}
	r.ready.Subtract(r.discarded)
	r.changed = sync.NewCond(&r.mu)
	return r
}

// missing is the first run of unclaimed regions in within.
func (r *regions) missing(within region.Range) (region.Range, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claimed.MissingRange(within)
}

// claim moves the first run of Unhydrated regions in within to Hydrating (I5:
// nobody else copies into them, and none is Dirty or Hydrated). It says whether the
// destination is known to read zeros there; all of the run has the same answer, and
// it is the last time that the answer can be yes.
func (r *regions) claim(within region.Range) (run region.Range, clean, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if run, ok = r.claimed.MissingRange(within); !ok {
		return run, false, false
	}
	if soiled, some := r.clean.MissingRange(run); !some {
		clean = true
	} else if clean = soiled.First > run.First; clean {
		run = region.Between(run.First, soiled.First)
	} else {
		run = soiled
	}
	r.clean.Remove(run)
	r.hydrating.Add(run)
	r.claimed.Add(run)
	return run, clean, true
}

// release moves Hydrating regions back to Unhydrated: the copy failed.
func (r *regions) release(run region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hydrating.Remove(run)
	r.claimed.Remove(run)
	r.changed.Broadcast()
}

// soil moves Hydrating regions to Dirty: the destination was sent their bytes. It
// says false, and moves them back to Unhydrated, if no commit can follow.
func (r *regions) soil(run region.Range, sums []journal.Checksum, copiedBytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.changed.Broadcast()
	r.hydrating.Remove(run)
	if r.closed {
		r.claimed.Remove(run)
		return false
	}
	r.dirty.regions.Add(run)
	for _, s := range sums {
		r.dirty.checksums[s.Nr] = s.Sum
	}
	r.dirty.copiedBytes += copiedBytes
	r.copiedBytes += copiedBytes
	return true
}

// seal takes the dirty regions for a commit. What becomes Dirty from here on
// belongs to the next transaction (I1).
func (r *regions) seal() *transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sealed, r.dirty = r.dirty, newTransaction()
	return r.sealed
}

// publish moves the sealed regions to Hydrated: their transaction is durable, and
// from here on their source may be discarded (I2).
func (r *regions) publish(tx journal.TxID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hydrated.Union(r.sealed.regions)
	r.ready.Union(r.sealed.regions)
	r.again.Subtract(r.sealed.regions)
	r.committedBytes += r.sealed.copiedBytes
	r.durableBytes += r.sealed.copiedBytes
	r.sealed = newTransaction()
	r.tx = tx
}

// forget moves Dirty and sealed regions back to Unhydrated: after a failed flush
// or commit nobody knows whether the destination holds them. The source does.
// Nothing becomes Dirty after it.
func (r *regions) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.claimed.Subtract(r.dirty.regions)
	r.claimed.Subtract(r.sealed.regions)
	r.dirty, r.sealed = newTransaction(), newTransaction()
}

// takeCommitted hands out the durable regions whose discard nobody has taken on.
func (r *regions) takeCommitted() Committed {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := Committed{tx: r.tx, regions: r.ready, copiedBytes: r.committedBytes}
	r.ready, r.committedBytes = region.NewSet(), 0
	return done
}

// noteDiscarded moves handed-out regions to Discarded.
func (r *regions) noteDiscarded(runs []region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range runs {
		r.discarded.Add(run)
	}
}

// giveBack makes handed-out regions available to takeCommitted again, but for
// those that were discarded.
func (r *regions) giveBack(done Committed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := done.regions.Clone()
	left.Subtract(r.discarded)
	r.ready.Union(left)
}

// beginRead finds who owns the first region of run, and the longest part of run,
// from there on, that has the same owner. If that is the source, the part counts
// as being read until endRead.
func (r *regions) beginRead(run region.Range) (fromSource bool, part region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fromSource = !r.owned(run.First)
	part = region.Range{First: run.First, Count: 1}
	for part.End() < run.End() && r.owned(part.End()) != fromSource {
		part.Count++
	}
	if fromSource {
		for nr := part.First; nr < part.End(); nr++ {
			r.readers[nr]++
		}
	}
	return fromSource, part
}

// endRead ends what beginRead registered for a read of the source.
func (r *regions) endRead(part region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nr := part.First; nr < part.End(); nr++ {
		if r.readers[nr]--; r.readers[nr] == 0 {
			delete(r.readers, nr)
		}
	}
	r.changed.Broadcast()
}

// owned says whether the destination has the bytes of nr. A Dirty region still
// belongs to the source: until a flush has succeeded the destination may drop what
// it was sent, and reads must not see that. The caller holds mu.
func (r *regions) owned(nr region.Nr) bool { return r.hydrated.Has(nr) }

// drainReaders waits until no read of the source is in flight in run (I3). New
// ones cannot begin: the regions are Hydrated.
func (r *regions) drainReaders(ctx context.Context, run region.Range) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.beingRead(run) {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.changed.Wait()
	}
	return nil
}

func (r *regions) beingRead(run region.Range) bool {
	for nr := range r.readers {
		if run.Has(nr) {
			return true
		}
	}
	return false
}
