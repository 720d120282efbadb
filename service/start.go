package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"decant/loopdev"
)

// Start takes a migration up: it looks at once whether it can end well, and makes its
// journal and its destination; the run comes when it is its turn. A request for the ends
// of a migration that is not done changes nothing, except that it is tried again at once
// if it has stopped or failed; one that a user has paused stays paused.
func (m *Manager) Start(ctx context.Context, r Request, o StartOptions) (Status, error) {
	if err := r.Options.Check(); err != nil {
		return Status{}, err
	}
	if err := m.service.checkRequestPaths(r); err != nil {
		return Status{}, err
	}
	source, destination := m.service.endPath(r.Source), m.service.endPath(r.Destination)
	release, err := m.takeEnds(ctx, source, destination)
	if err != nil {
		return Status{}, err
	}
	defer release()
	o.id = newID()
	if s, ok, err := m.startAgain(source, destination, o); ok || err != nil {
		return s, err
	}
	defer m.made(o.id)
	id, err := m.service.makeJournal(r, o)
	if err != nil {
		return Status{}, err
	}
	f := m.look(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[id]
	if j == nil {
		j = newJob(id)
		m.jobs[id] = j
	}
	if j.run != nil {
		return m.statusOf(j), nil
	}
	j.learn(f)
	j.settle()
	m.nudge()
	return m.statusOf(j), nil
}

// startAgain answers a request for what is known already, and refuses one too many.
func (m *Manager) startAgain(source, destination string, o StartOptions) (s Status, known bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending {
		return s, false, &Error{Outcome: Stopped, Problem: "the service ends", Hint: "ask again when it has been started again"}
	}
	unfinished := len(m.making)
	for _, j := range m.jobs {
		if o.IdempotencyKey != "" && j.record.IdempotencyKey == o.IdempotencyKey {
			return m.statusOf(j), true, nil
		}
		if !j.isUnfinished() || j.summary.Problem != "" {
			continue
		}
		unfinished++
		if source == "" || source != j.summary.sourcePath || destination != j.summary.destinationPath {
			continue
		}
		if (j.state == StateStopped || j.state == StateFailed) && j.run == nil && len(j.held) == 0 && !j.record.Reverse {
			continue // looked at anew, and taken up with the options of this request
		}
		return m.statusOf(j), true, nil
	}
	if unfinished >= m.config.Waiting {
		m.meters.add(func(c *Metrics) { c.RefusedForTooManyNow++ })
		return s, false, refuse("", fmt.Sprintf("%d migrations are unfinished, which is the limit", unfinished),
			"ask again when some have ended", ErrTooMany)
	}
	m.making[o.id] = true
	return s, false, nil
}

// made forgets that a journal was being made: it has a job now, or will not be made.
func (m *Manager) made(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.making, id)
}

// takeEnds waits until no other request looks at the ends: what one has open is in use
// for the others. An end on a medium that hangs holds up nobody but who asks for it.
func (m *Manager) takeEnds(ctx context.Context, ends ...string) (release func(), err error) {
	for {
		m.mu.Lock()
		freed := m.endsFreed
		if !slices.ContainsFunc(ends, func(end string) bool { return m.endsTaken[end] }) {
			for _, end := range ends {
				m.endsTaken[end] = true
			}
			m.mu.Unlock()
			return func() { m.giveEnds(ends) }, nil
		}
		m.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, &Error{Outcome: Stopped, Problem: "another request about the same ends has not ended yet; nothing was changed", Err: context.Cause(ctx)}
		}
	}
}

func (m *Manager) giveEnds(ends []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, end := range ends {
		delete(m.endsTaken, end)
	}
	close(m.endsFreed)
	m.endsFreed = make(chan struct{})
}

// endPath is what the journal of a migration would say of where an end is; empty if
// that is not to be seen.
func (s *Service) endPath(name string) string {
	if !strings.HasPrefix(name, "/") {
		return name
	}
	dir, base := name, ""
	if _, err := os.Stat(name); err != nil {
		dir, base = filepath.Dir(name), filepath.Base(name)
	}
	place, err := loopdev.PlaceAt(dir)
	if err != nil {
		return ""
	}
	path := filepath.Join(place.Path, base)
	if err := place.Close(); err != nil {
		return ""
	}
	return path
}

// makeJournal does what Migrate does before its run, and gives the ends up again.
func (s *Service) makeJournal(r Request, o StartOptions) (id string, err error) {
	a, err := s.prepare(r)
	if err != nil {
		return "", err
	}
	var m *migration
	if a.known != nil {
		m, err = a.resume()
	} else {
		a.start = o
		m, err = a.begin()
	}
	if err != nil {
		return "", err
	}
	id = m.id
	if err := m.Close(); err != nil {
		return "", &Error{
			Outcome: Failed, Object: id, Problem: "could not be closed", State: "nothing was copied yet",
			Hint: "go on with: migrate resume " + id, Err: err,
		}
	}
	return id, nil
}
