package service

import (
	"context"
	"errors"
	"fmt"

	"decant/clone"
	"decant/journal"
)

// recheck reads back what earlier runs have committed and nobody has discarded yet,
// before anything of it is. A run that discards nothing does so where it writes to a
// thin pool: a repair of such a one may lose what it had flushed once. A run that lets
// guests in always does: they read, after a crash, only what was rechecked. With the
// kernel engine they have gone on reading.
func (m *migration) recheck(ctx context.Context, r *reporter, discard bool) error {
	if !m.resumed || !discard && len(r.meter.takes.pools()) == 0 && (len(m.accesses) == 0 || m.kernelEngine() != nil) {
		return nil
	}
	r.setPhase(verifyingPhase)
	again, err := r.clone.Recheck(ctx)
	r.setPhase(m.workPhase())
	var lost *clone.LostError
	switch {
	case errors.As(err, &lost):
		return m.lost(lost)
	case err != nil:
		return m.stopped(ctx, err)
	case len(again) == 0:
		return nil
	}
	var bytes int64
	for _, run := range again {
		_, n := r.clone.Geometry.Bytes(run)
		bytes += n
	}
	first, _ := r.clone.Geometry.Bytes(again[0])
	r.addData(bytes)
	_, taker := m.roles(m.direction())
	r.warn(fmt.Sprintf("%s no longer holds %d bytes that were flushed to it, the first at offset %d; they are whole at the other end and are copied again",
		taker.name, bytes, first))
	return nil
}

// lost words that bytes are gone from both ends. It is no run's to mend.
func (m *migration) lost(err *clone.LostError) error {
	giver, taker := m.roles(m.direction())
	return &Error{
		Outcome: Failed, Object: taker.name, Problem: "has lost bytes that were flushed to it, and " + giver.name + " does not hold them any more", Err: err,
		State: "nothing more is copied or discarded; all other regions are as they were",
		Hint: "see each with: migrate explain " + m.id + " OFFSET; if the pool of " + taker.name +
			" was repaired, bring back a better copy of its metadata, then: migrate resume " + m.id,
	}
}

// checkReversible refuses to bring bytes back from a destination that has lost some of
// them, as long as the source holds these.
func (m *migration) checkReversible(ctx context.Context) (err error) {
	state, err := m.journal.Load()
	if err != nil {
		return m.failure(err)
	}
	if state.Direction == journal.Backward || state.Phase != journal.Running {
		return nil // once it is done, its user may have written to the destination
	}
	g := m.journal.Superblock().Geometry
	c, err := clone.Open(clone.Config{
		Source: view{m.source, g.DeviceBytes()}, Destination: m.destination, Journal: m.journal, Geometry: g, BufferBytes: bufferBytes,
	})
	if err != nil {
		return m.failure(err)
	}
	defer c.Close()
	again, err := c.Recheck(ctx)
	var lost *clone.LostError
	switch {
	case errors.As(err, &lost):
		return m.lost(lost)
	case err != nil:
		return m.stopped(ctx, err)
	case len(again) > 0:
		first, _ := g.Bytes(again[0])
		return refuse(m.destination.name, fmt.Sprintf("has lost bytes that were flushed to it, from offset %d on; the source still holds them", first),
			"let them be copied again with: migrate resume "+m.id+"; it can be reversed after that", nil)
	}
	return nil
}
