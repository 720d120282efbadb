package service

import (
	"sync"
	"time"

	"decant/journal"
)

// glances remembers what journals say whose files have not changed since, so that a
// service with thousands of them does not read all of them for each request. What is
// remembered has no sets of regions.
type glances struct {
	mu  sync.Mutex
	all map[string]glance
}

type glance struct {
	stamp stamp
	known known
}

// settledAfter is how old a change has to be before its journal is remembered: two
// changes within the resolution of a file's times look like one.
const settledAfter = 2 * time.Second

// glance is look, but without the sets of regions, and perhaps from memory.
func (s *Service) glance(id string) known {
	if s.glances == nil {
		return s.look(id)
	}
	now := s.stamp(id)
	s.glances.mu.Lock()
	g, ok := s.glances.all[id]
	s.glances.mu.Unlock()
	if ok && g.stamp == now {
		return g.known
	}
	k := s.look(id)
	if k.err != nil || time.Since(now.journalAt) < settledAfter || time.Since(now.logAt) < settledAfter {
		return k
	}
	k.state = journal.State{
		Tx: k.state.Tx, Direction: k.state.Direction, Phase: k.state.Phase,
		PeakExtraBytes: k.state.PeakExtraBytes, CopiedBytes: k.state.CopiedBytes,
	}
	s.glances.mu.Lock()
	defer s.glances.mu.Unlock()
	s.glances.all[id] = glance{now, k}
	return k
}

// glanceAll is a glance at every journal of the state directory; those that are gone are
// forgotten.
func (s *Service) glanceAll() ([]known, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	all := make([]known, 0, len(ids))
	there := make(map[string]bool, len(ids))
	for _, id := range ids {
		all = append(all, s.glance(id))
		there[id] = true
	}
	if s.glances != nil {
		s.glances.mu.Lock()
		defer s.glances.mu.Unlock()
		for id := range s.glances.all {
			if !there[id] {
				delete(s.glances.all, id)
			}
		}
	}
	return all, nil
}
