package clone

import (
	"sync"

	"decant/journal"
	"decant/region"
)

// regions is the state of every region (see the table in the package comment) and
// the only place where it changes. A region in none of the sets is Unhydrated.
type regions struct {
	mu    sync.Mutex
	moved *sync.Cond // a region left Hydrating, a read of the source ended, or the clone closed

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

	// changed are the Dirty and sealed regions of which a guest has made something
	// else than the source holds: the destination has the only copy.
	changed *region.Set
	// unsummed are the regions that guests write to in place, since no checksum of
	// them is in the journal, nor in a transaction on its way there.
	unsummed *region.Set

	closed     bool              // no region becomes Dirty any more
	tx         journal.TxID      // last committed transaction
	handOut    copiedBytes       // by transactions committed since Open and not yet handed out
	copied     int64             // bytes since Open, whatever became of them
	durable    copiedBytes       // by transactions committed since Open
	readers    map[region.Nr]int // reads of the source in flight
	wanted     wanted            // what guests read from the source
	copyFailed *region.Set       // whose copy has failed: not worth being preferred
}

// copiedBytes counts bytes that were copied.
type copiedBytes struct {
	total     int64
	forGuests int64 // of the total, what guests had copied
}

func (b *copiedBytes) add(o copiedBytes) {
	b.total += o.total
	b.forGuests += o.forGuests
}

// transaction is what becomes durable with one commit.
type transaction struct {
	regions   *region.Set
	checksums map[region.Nr]uint64
	unsummed  *region.Set // whose checksum goes, of these regions or of earlier ones
	copied    copiedBytes
}

func newTransaction() *transaction {
	return &transaction{regions: region.NewSet(), checksums: map[region.Nr]uint64{}, unsummed: region.NewSet()}
}

// empty says whether there is nothing to tell the journal.
func (t *transaction) empty() bool { return t.regions.Count() == 0 && t.unsummed.Count() == 0 }

func newRegions(s journal.State, clean *region.Set) *regions {
	r := &regions{
		hydrating:  region.NewSet(),
		dirty:      newTransaction(),
		sealed:     newTransaction(),
		hydrated:   s.Hydrated.Clone(),
		ready:      s.Hydrated.Clone(),
		discarded:  s.Discarded.Clone(),
		doubt:      region.NewSet(),
		again:      region.NewSet(),
		clean:      clean,
		claimed:    s.Hydrated.Clone(),
		changed:    region.NewSet(),
		unsummed:   region.NewSet(),
		tx:         s.Tx,
		readers:    map[region.Nr]int{},
		copyFailed: region.NewSet(),
	}
	r.ready.Subtract(r.discarded)
	r.moved = sync.NewCond(&r.mu)
	return r
}

// next is the first run of unclaimed regions in within, or one that guests want
// hydrated before it.
func (r *regions) next(within region.Range, batchRegions, aheadRegions uint64) (run region.Range, wanted, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if run, ok = r.wanted.take(r.claimed, within, batchRegions, aheadRegions); ok {
		return run, true, true
	}
	run, ok = r.claimed.MissingRange(within)
	return run, false, ok
}

// claim moves the first run of Unhydrated regions in within to Hydrating (I5:
// nobody else copies into them, and none is Dirty or Hydrated). It says whether the
// destination is known to read zeros there; all of the run has the same answer, and
// it is the last time that the answer can be yes.
func (r *regions) claim(within region.Range) (run region.Range, clean, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claimLocked(within)
}

func (r *regions) claimLocked(within region.Range) (run region.Range, clean, ok bool) {
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
	r.copyFailed.Add(run)
	r.moved.Broadcast()
}

// soil moves Hydrating regions to Dirty: the destination was sent their bytes. It
// says false, and moves them back to Unhydrated, if no commit can follow.
func (r *regions) soil(run region.Range, sums []journal.Checksum, copied copiedBytes) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.soilLocked(run, sums, copied)
}

func (r *regions) soilLocked(run region.Range, sums []journal.Checksum, copied copiedBytes) bool {
	r.hydrating.Remove(run)
	r.moved.Broadcast()
	if r.closed {
		r.claimed.Remove(run)
		return false
	}
	r.dirty.regions.Add(run)
	for _, s := range sums {
		r.dirty.checksums[s.Nr] = s.Sum
	}
	r.dirty.copied.add(copied)
	r.copied += copied.total
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
	r.changed.Subtract(r.sealed.regions)
	r.unsummed.Union(r.sealed.unsummed)
	r.handOut.add(r.sealed.copied)
	r.durable.add(r.sealed.copied)
	r.sealed = newTransaction()
	r.tx = tx
}

// forget moves Dirty and sealed regions back to Unhydrated: after a failed flush
// or commit nobody knows whether the destination holds them. The source does, as
// it was before the guests' writes. Nothing becomes Dirty after it.
func (r *regions) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, t := range []*transaction{r.dirty, r.sealed} {
		r.claimed.Subtract(t.regions)
		r.unsummed.Subtract(t.regions)
	}
	r.changed = region.NewSet()
	r.dirty, r.sealed = newTransaction(), newTransaction()
	r.moved.Broadcast()
}

// isClosed says whether forget was called.
func (r *regions) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// takeCommitted hands out the durable regions whose discard nobody has taken on.
func (r *regions) takeCommitted() Committed {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := Committed{tx: r.tx, regions: r.ready, copied: r.handOut}
	r.ready, r.handOut = region.NewSet(), copiedBytes{}
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
