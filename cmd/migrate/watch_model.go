package main

import (
	"cmp"
	"slices"
	"time"

	"decant/service"
)

// watched is one migration on the screen.
type watched struct {
	service.Status
	event *service.Event // the newest
}

// watchModel is everything that is on the screen.
type watchModel struct {
	items    []watched
	selected string // ID
	link     string // what is wrong with where the news come from; empty: nothing
	message  string // what a person asked for, and what came of it
	cells    []service.Cell
	cellsOf  string
	mapAsked time.Time
	loaded   bool
}

// learn takes news over.
func (m *watchModel) learn(n news) {
	if n.link != nil {
		m.link = *n.link
	}
	if n.list != nil {
		m.takeList(n.list)
	}
	if n.event != nil {
		if i := m.index(n.event.ID); i >= 0 {
			m.items[i].take(n.event)
		}
	}
	if n.of != "" {
		m.cells, m.cellsOf = n.cells, n.of
	}
	if n.said != "" {
		m.message = n.said
	}
}

func (m *watchModel) takeList(list []service.Status) {
	m.loaded = true
	items := make([]watched, 0, len(list))
	for _, s := range list {
		item := watched{Status: s, event: s.Event}
		if i := m.index(s.ID); i >= 0 && item.event == nil {
			item.event = m.items[i].event
		}
		items = append(items, item)
	}
	slices.SortStableFunc(items, func(a, b watched) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	m.items = items
	if m.index(m.selected) < 0 && len(items) > 0 {
		m.selected = items[0].ID
	}
}

// rank puts what moves first, then what waits, then what has ended.
func (w watched) rank() int {
	switch w.State {
	case service.StateRunning, service.StateExternal:
		return 0
	case service.StateQueued:
		return 1
	case service.StatePaused, service.StateStopped, service.StateFailed:
		return 2
	default:
		return 3
	}
}

// take takes the counters of an event over.
func (w *watched) take(e *service.Event) {
	w.event = e
	if e.Phase != "verifying" {
		w.BytesCopied, w.PeakExtraBytes, w.Transaction = e.BytesCopied, e.PeakExtraBytes, e.Transaction
	}
}

func (m *watchModel) index(id string) int {
	return slices.IndexFunc(m.items, func(w watched) bool { return w.ID == id })
}

// move selects another migration.
func (m *watchModel) move(by int) {
	if len(m.items) == 0 {
		return
	}
	i := min(max(0, m.index(m.selected)+by), len(m.items)-1)
	m.selected = m.items[i].ID
}

// chosen is the selected migration.
func (m *watchModel) chosen() (watched, bool) {
	i := m.index(m.selected)
	if i < 0 {
		return watched{}, false
	}
	return m.items[i], true
}

// isMoving says whether its rate and its time left mean anything.
func (w watched) isMoving() bool {
	return w.State == service.StateRunning || w.State == service.StateExternal
}

// progress is how far it has come, from 0 to 1.
func (w watched) progress() float64 {
	if e := w.event; e != nil && w.isMoving() && e.BytesData > 0 {
		current, total := position(*e)
		return float64(current) / float64(total)
	}
	if w.Regions == 0 {
		return 0
	}
	return float64(w.Hydrated) / float64(w.Regions)
}

// verdict says whether a migration has ended for good, and how.
func (w watched) verdict() (isOver bool, err error) {
	switch w.State {
	case service.StateDone, service.StateReversed, service.StateCancelled:
		return true, nil
	case service.StateFailed:
		return true, &service.Error{Outcome: service.Failed, Object: w.ID, Problem: w.Reason, Hint: w.Hint}
	default:
		return false, nil
	}
}
