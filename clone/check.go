package clone

import (
	"errors"
	"fmt"

	"decant/journal"
	"decant/region"
)

// ErrCheck says that the states contradict each other or the journal.
var ErrCheck = errors.New("inconsistent clone")

// Check holds the states against each other and against the journal. It is meant
// for tests and for the end of a run; copies and commits may go on meanwhile, but
// no commit or discard may be between its journal and its publication.
func (c *Clone) Check() error {
	c.discard.Lock()
	defer c.discard.Unlock()
	c.commit.Lock()
	defer c.commit.Unlock()
	state, err := c.Journal.Load()
	if err != nil {
		return fmt.Errorf("load the journal: %w", err)
	}
	if err := checkState(state, c.Geometry); err != nil {
		return err
	}
	r := c.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	union := region.NewSet()
	var sum uint64
	for _, s := range []*region.Set{r.hydrating, r.dirty.regions, r.sealed.regions, r.hydrated} {
		union.Union(s)
		sum += s.Count()
	}
	switch {
	case union.Count() != sum:
		return fmt.Errorf("%w: a region is in two states", ErrCheck)
	case !union.Equal(r.claimed):
		return fmt.Errorf("%w: %d regions claimed, %d in a state", ErrCheck, r.claimed.Count(), union.Count())
	case !r.sealed.empty():
		return fmt.Errorf("%w: %d regions are sealed outside a commit", ErrCheck, r.sealed.regions.Count())
	case overlap(r.doubt, r.ready):
		return fmt.Errorf("%w: a region is to be discarded that nobody has rechecked", ErrCheck)
	case overlap(r.doubt, r.unsummed), overlap(r.doubt, r.dirty.unsummed):
		return fmt.Errorf("%w: guests write to a region that nobody has rechecked", ErrCheck)
	case !contains(r.dirty.regions, r.changed):
		return fmt.Errorf("%w: a region that is not dirty counts as changed and not committed", ErrCheck)
	case !contains(union, r.unsummed), !contains(union, r.dirty.unsummed):
		return fmt.Errorf("%w: the destination does not have a region that guests write to in place", ErrCheck)
	case !contains(r.hydrated, r.discarded), !contains(r.hydrated, r.ready), !contains(r.hydrated, r.doubt):
		return fmt.Errorf("%w: a region is to be discarded, or is discarded, that is not hydrated", ErrCheck)
	}
	return c.checkJournal(state)
}

// checkJournal compares with what was loaded; the caller holds regions.mu. A
// read-only clone may be behind the journal, whose last commit it cannot judge.
func (c *Clone) checkJournal(state journal.State) error {
	r := c.regions
	if !contains(state.Hydrated, r.hydrated) {
		return fmt.Errorf("%w: a region counts as hydrated that the journal does not have", ErrCheck)
	}
	known := r.hydrated.Clone()
	known.Union(r.again)
	if c.Mode() == ReadWrite && (!state.Hydrated.Equal(known) || state.Tx != r.tx) {
		return fmt.Errorf("%w: journal at transaction %d with %d regions hydrated, clone at %d with %d",
			ErrCheck, state.Tx, state.Hydrated.Count(), r.tx, r.hydrated.Count())
	}
	return nil
}

// checkState tells whether a loaded state is possible on a device of geometry g.
func checkState(s journal.State, g region.Geometry) error {
	if !contains(region.NewSet(g.All()), s.Hydrated) {
		return fmt.Errorf("%w: the journal has regions behind the end of the device", ErrCheck)
	}
	if !contains(s.Hydrated, s.Discarded) {
		return fmt.Errorf("%w: the journal has regions discarded that are not hydrated", ErrCheck)
	}
	return nil
}

func overlap(a, b *region.Set) bool {
	if a.Count() == 0 {
		return false
	}
	for run := range b.Ranges() {
		for nr := run.First; nr < run.End(); nr++ {
			if a.Has(nr) {
				return true
			}
		}
	}
	return false
}

func contains(outer, inner *region.Set) bool {
	for run := range inner.Ranges() {
		if !outer.HasAll(run) {
			return false
		}
	}
	return true
}
