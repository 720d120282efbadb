package service

import "context"

// Plan is what Start would do; it changes nothing. The same paths are refused. Where
// preflight refuses, the plan is as far as it came.
func (m *Manager) Plan(ctx context.Context, r Request) (Plan, error) {
	if err := m.service.checkRequestPaths(r); err != nil {
		return Plan{}, err
	}
	// An end that a request looks at is in use for the others.
	select {
	case m.starts <- struct{}{}:
		defer func() { <-m.starts }()
	case <-ctx.Done():
		return Plan{}, &Error{Outcome: Stopped, Problem: "nothing was changed", Err: context.Cause(ctx)}
	}
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
