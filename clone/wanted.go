package clone

import (
	"slices"

	"decant/region"
)

const (
	// maxWanted bounds the regions that are remembered as wanted. When there are
	// more, the oldest are forgotten: their turn comes with all the others.
	maxWanted = 64
	// readaheadBytes is how far hydration goes on behind what a guest has read
	// from the source.
	readaheadBytes = 8 << 20
)

// wanted is what guests have read from the source and would read faster from the
// destination. It is guarded by the mutex of regions.
type wanted struct {
	queue []region.Nr  // the oldest first
	ahead region.Range // what follows the last one that was taken
}

// add remembers that a guest has read an Unhydrated region.
func (w *wanted) add(nr region.Nr) {
	if slices.Contains(w.queue, nr) {
		return
	}
	if len(w.queue) == maxWanted {
		w.queue = slices.Delete(w.queue, 0, 1)
	}
	w.queue = append(w.queue, nr)
}

// take is the next run to hydrate for the guests' sake, batchRegions long at most:
// one that begins with a wanted region, else one of those that follow.
func (w *wanted) take(claimed *region.Set, within region.Range, batchRegions, aheadRegions uint64) (region.Range, bool) {
	for len(w.queue) > 0 {
		nr := w.queue[0]
		w.queue = slices.Delete(w.queue, 0, 1)
		if !within.Has(nr) || claimed.Has(nr) {
			continue
		}
		run, _ := claimed.MissingRange(region.Range{First: nr, Count: max(1, batchRegions)}.Intersect(within))
		w.ahead = region.Range{First: run.End(), Count: aheadRegions}
		return run, true
	}
	run, ok := claimed.MissingRange(w.ahead.Intersect(within))
	if !ok {
		return region.Range{}, false
	}
	run.Count = min(run.Count, max(1, batchRegions))
	w.ahead = region.Between(run.End(), w.ahead.End())
	return run, true
}
