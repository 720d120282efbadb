package clone

import (
	"context"

	"decant/region"
)

// owner says who answers a read of a region.
type owner uint8

const (
	// ownedBySource is everything that nobody but the source is sure to hold.
	ownedBySource owner = iota
	// ownedByDestination is what is Hydrated.
	ownedByDestination
	// ownedByCache is what a guest has made of a region that is not Hydrated yet:
	// only the destination has it, and nobody was promised that it stays.
	ownedByCache
)

// owner is who has the bytes of nr. A Dirty region that no guest has changed still
// belongs to the source: until a flush has succeeded the destination may drop what
// it was sent, and reads must not see that. The caller holds mu.
func (r *regions) owner(nr region.Nr) owner {
	switch {
	case r.hydrated.Has(nr):
		return ownedByDestination
	case r.changed.Has(nr):
		return ownedByCache
	}
	return ownedBySource
}

// beginRead finds who owns the first region of run, and the longest part of run,
// from there on, that has the same owner. If that is the source, the part counts
// as being read until endRead, and is what guests want hydrated next.
func (r *regions) beginRead(run region.Range) (from owner, part region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from, part = r.beginReadLocked(run)
	if from != ownedBySource {
		return from, part
	}
	if missing, some := r.claimed.MissingRange(part); some && !r.copyFailed.Has(missing.First) {
		r.wanted.add(missing.First)
	}
	return from, part
}

func (r *regions) beginReadLocked(run region.Range) (from owner, part region.Range) {
	from = r.owner(run.First)
	part = region.Range{First: run.First, Count: 1}
	for part.End() < run.End() && r.owner(part.End()) == from {
		part.Count++
	}
	if from != ownedBySource {
		return from, part
	}
	for nr := part.First; nr < part.End(); nr++ {
		r.readers[nr]++
	}
	return from, part
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
	r.moved.Broadcast()
}

// drainReaders waits until no read of the source is in flight in run (I3). New
// ones cannot begin: the regions are Hydrated.
func (r *regions) drainReaders(ctx context.Context, run region.Range) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moved.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.beingRead(run) {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.moved.Wait()
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
