package clone

import "decant/region"

// changeStep is what has to be done for a guest's change to a run of regions.
type changeStep uint8

const (
	// changeRefused: a flush or commit has failed, nothing changes any more.
	changeRefused changeStep = iota
	// changeClaimed: the regions were Unhydrated and are Hydrating now; all of them
	// are changed, or it is one that the change covers in part.
	changeClaimed
	// changeInPlace: the destination has the regions, and the journal no checksum
	// that the change would make wrong.
	changeInPlace
	// changeAnnounces: the journal has checksums, or is about to: they go first.
	changeAnnounces
	// changeRechecks: an earlier process has hydrated the region, and nobody has seen
	// yet that the destination still holds it.
	changeRechecks
)

// beginChange finds out what to do for the first regions of within, of which a
// guest changes those of whole altogether, and begins it. It waits while somebody
// else fills the first of them (BUG_LOCK in the model is what happens otherwise).
func (r *regions) beginChange(within, whole region.Range) (step changeStep, run region.Range, clean bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.hydrating.Has(within.First) && !r.closed {
		r.moved.Wait()
	}
	first := region.Range{First: within.First, Count: 1}
	switch {
	case r.closed:
		return changeRefused, first, false
	case r.doubt.Has(within.First):
		return changeRechecks, first, false
	case !r.claimed.Has(within.First):
		if whole.Has(within.First) {
			first = region.Between(within.First, min(whole.End(), within.End()))
		}
		run, clean, _ = r.claimLocked(first)
		return changeClaimed, run, clean
	case !r.inPlace(within.First):
		return changeAnnounces, within, false
	}
	run = first
	for run.End() < within.End() && r.inPlace(run.End()) {
		run.Count++
	}
	return changeInPlace, run, false
}

// inPlace says whether a guest may write to nr on the destination. Of a Dirty
// region the checksum goes before it is sealed; from then on the destination has
// the only copy. The caller holds mu.
func (r *regions) inPlace(nr region.Nr) bool {
	if r.dirty.regions.Has(nr) {
		one := region.Range{First: nr, Count: 1}
		r.changed.Add(one)
		r.unsum(one)
	}
	return r.unsummed.Has(nr) && !r.hydrating.Has(nr)
}

// unsum takes the checksums of Dirty regions out of their transaction. The caller
// holds mu.
func (r *regions) unsum(run region.Range) {
	r.unsummed.Add(run)
	r.dirty.unsummed.Add(run)
	for nr := run.First; nr < run.End(); nr++ {
		delete(r.dirty.checksums, nr)
	}
}

// announce has the next transaction take the checksums of those regions of run out
// of the journal that are there or on their way there. Regions in doubt keep theirs:
// they are still to be judged by them.
func (r *regions) announce(run region.Range) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nr := run.First; nr < run.End(); nr++ {
		if (r.hydrated.Has(nr) || r.sealed.regions.Has(nr)) && !r.unsummed.Has(nr) && !r.doubt.Has(nr) {
			r.dirty.unsummed.Add(region.Range{First: nr, Count: 1})
		}
	}
}

// soilChanged moves Hydrating regions to Dirty that the destination now has as a
// guest wants them; data says that they may hold anything but zeros. It says false
// if no commit can follow.
func (r *regions) soilChanged(run region.Range, data bool, copied int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.soilLocked(run, nil, copiedBytes{total: copied, forGuests: copied}) {
		return false
	}
	r.changed.Add(run)
	if data {
		r.unsum(run)
	}
	return true
}

// areHydrated says whether the journal has all of a run as hydrated.
func (r *regions) areHydrated(run region.Range) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hydrated.HasAll(run)
}
