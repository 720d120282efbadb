package service

import (
	"context"

	"decant/region"
)

// Plan is what Start would do; it changes nothing. The same paths are refused. Where
// preflight refuses, the plan is as far as it came.
func (m *Manager) Plan(ctx context.Context, r Request) (Plan, error) {
	if err := m.service.checkRequestPaths(r); err != nil {
		return Plan{}, err
	}
	release, err := m.takeEnds(ctx, m.service.endPath(r.Source), m.service.endPath(r.Destination))
	if err != nil {
		return Plan{}, err
	}
	defer release()
	return m.service.Plan(ctx, r)
}

// Explain is all that the journal knows of the region at an offset of the device.
func (m *Manager) Explain(id string, offset int64) (Explanation, error) {
	m.mu.Lock()
	j, err := m.find(id)
	m.mu.Unlock()
	if err != nil {
		return Explanation{}, err
	}
	return m.service.Explain(j.id, offset)
}

// Show is all about one migration, with a map of the given number of cells.
func (m *Manager) Show(id string, cells int) (Detail, error) {
	m.mu.Lock()
	j, err := m.find(id)
	dirty := region.NewSet()
	if err == nil && j.run != nil {
		dirty = j.run.control.dirty()
	}
	m.mu.Unlock()
	if err != nil {
		return Detail{}, err
	}
	d, err := m.service.Show(j.id, cells)
	markDirty(d.Map, d.Regions, dirty)
	return d, err
}

// markDirty shows in a map what is copied and not yet in the journal. The set is older
// than the map: what was committed in between is in both, and counts as that.
func markDirty(cells []Cell, regions uint64, dirty *region.Set) {
	for i := range cells {
		switch c := &cells[i]; c.State {
		case "unhydrated", "partial":
			if dirty.HasAny(cellRange(regions, uint64(i), uint64(len(cells)))) {
				c.State = "dirty"
			}
		}
	}
}
