package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decant/journal"
)

// Reverse brings back what a migration has moved. Regions that were discarded on
// the source are copied from the destination into it, with the same protocol, so
// that the destination is emptied as the source is filled. It is resumed by
// calling it again. At its end the source is what it was, and a destination that
// the migration had made is deleted.
func (s *Service) Reverse(ctx context.Context, id string, sink Sink) error {
	return s.reverse(ctx, id, sink, &control{})
}

func (s *Service) reverse(ctx context.Context, id string, sink Sink, c *control) error {
	m, err := s.openByID(id)
	if err != nil {
		return err
	}
	m.control = c
	state, err := m.journal.Load()
	if err != nil {
		return m.finishWith(m.failure(err))
	}
	switch state.Phase {
	case journal.Cancelled:
		err = refuse(m.id, "was cancelled before anything was discarded, the source is whole", "", nil)
	case journal.Reversed:
		err = m.tidyReversed()
	default:
		err = m.reverse(ctx, state, sink)
	}
	return m.finishWith(err)
}

func (m *migration) reverse(ctx context.Context, state journal.State, sink Sink) error {
	if err := m.readyExport(state); err != nil {
		return err
	}
	if err := m.checkReversible(ctx); err != nil {
		return err
	}
	if _, err := m.journal.Reverse(); err != nil {
		return m.failure(err)
	}
	m.record.Verify = false // it was an option of the way there
	return m.run(ctx, sink)
}

// openByID opens a migration that may have ended, with both of its ends.
func (s *Service) openByID(id string) (_ *migration, err error) {
	id, err = s.resolveID(id)
	if err != nil {
		return nil, err
	}
	m := &migration{s: s, id: id, resumed: true, control: &control{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := m.openJournal(); err != nil {
		return nil, err
	}
	sb := m.journal.Superblock()
	if m.record, err = recordIn(m.journal); err != nil {
		return nil, refuse(id, "the journal cannot be used", "", err)
	}
	if err := m.removeLive(); err != nil {
		return nil, err
	}
	state, err := m.journal.Load()
	if err != nil {
		return nil, m.failure(err)
	}
	if m.source, err = s.openIdentity(sb.Source); err != nil {
		return nil, err
	}
	m.destination, err = s.openIdentity(sb.Destination)
	if state.Phase == journal.Reversed || state.Phase == journal.Cancelled {
		return m, nil // the ends are their owner's again, and the destination may be gone
	}
	if err != nil {
		return nil, err
	}
	if err := m.checkSizes(); err != nil {
		return nil, err
	}
	return m, m.checkMarksByID(state)
}

// checkSizes refuses ends that have become too small for what the journal knows to
// be in them.
func (m *migration) checkSizes() error {
	want := m.journal.Superblock().Geometry.DeviceBytes()
	for _, e := range []*end{m.source, m.destination} {
		if have := e.Bytes(); have < want {
			return refuse(e.name, fmt.Sprintf("has shrunk to %d bytes, migration %s needs %d", have, m.id, want), "give it its size back", nil)
		}
	}
	return nil
}

// openIdentity opens an end where the journal says it is, and refuses another
// object under its name.
func (s *Service) openIdentity(id journal.Identity) (*end, error) {
	e, err := s.open(identityTarget(id), true)
	if err != nil {
		return nil, openRefusal(id.Name, "it", err)
	}
	if e.Info().Key != id.Key {
		return nil, errors.Join(refuse(id.Path, "is another object than the one the migration knows under this name",
			"put the old one back", nil), e.Close())
	}
	if err := checkUnused(e, true); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// checkMarksByID refuses a journal that is older than the mark on the giving end.
func (m *migration) checkMarksByID(state journal.State) error {
	giver, _ := m.roles(state.Direction)
	mark, ok, err := marks{m.s, giver}.read()
	if err != nil {
		return refuse(giver.name, "its mark cannot be read", "", err)
	}
	if ok && mark.Role == givingRole && mark.ID == m.id && mark.Tx > uint64(state.Tx) {
		return refuse(giver.name, fmt.Sprintf("the journal knows %d transactions, but discards of transaction %d may have begun", state.Tx, mark.Tx),
			"the journal is an old copy: put the newest one back", nil)
	}
	return nil
}

// endBackward makes the end of a reversal known, in an order in which each step
// may be the last one: what is left is done by tidyReversed.
func (m *migration) endBackward(ctx context.Context, r *reporter) error {
	if err := m.source.Flush(); err != nil {
		return m.unflushed(ctx, fmt.Errorf("flush the source: %w", err))
	}
	if err := m.journal.SetPhase(journal.Reversed); err != nil {
		return m.failure(err)
	}
	r.setPhase(donePhase)
	r.tell(DoneEvent, func(e *Event) {
		elapsed, freed := time.Since(r.begun).Seconds(), e.BytesCopied
		e.ElapsedSeconds, e.SourceFreedBytes = &elapsed, &freed
	})
	return m.tidyReversed()
}

// tidyReversed takes the marks off and releases the destination. It may be called
// again after a crash at any point of it.
func (m *migration) tidyReversed() error {
	sb := m.journal.Superblock()
	if sb.Source.ModifiedNanoseconds != 0 {
		if err := m.source.base.SetModified(time.Unix(0, sb.Source.ModifiedNanoseconds)); err != nil {
			return m.failure(err)
		}
	}
	if err := m.sourceMarks().remove(); err != nil {
		return m.failure(fmt.Errorf("take the mark off the source: %w", err))
	}
	return m.releaseDestination()
}

// releaseDestination deletes the destination if the migration had made it, and
// else leaves it as an ordinary, emptied object.
func (m *migration) releaseDestination() error {
	if m.destination == nil {
		return nil
	}
	if err := m.destinationMarks().remove(); err != nil {
		return m.failure(fmt.Errorf("take the mark off the destination: %w", err))
	}
	if !m.record.DestinationCreated {
		return nil
	}
	destination := m.destination
	m.destination = nil
	if err := m.s.remove(destination); err != nil {
		return m.failure(fmt.Errorf("delete the destination: %w", err))
	}
	return nil
}

// Cancel gives a migration up that has not discarded anything yet: the source is
// whole, and a destination that the migration had made is deleted. One that has
// discarded is refused; Reverse is the way back from there.
func (s *Service) Cancel(_ context.Context, id string) error {
	m, err := s.openByID(id)
	if err != nil {
		return err
	}
	return m.finishWith(m.cancel())
}

func (m *migration) cancel() error {
	state, err := m.journal.Load()
	if err != nil {
		return m.failure(err)
	}
	mark, marked, err := m.sourceMarks().read()
	if err != nil {
		return refuse(m.source.name, "its mark cannot be read", "", err)
	}
	switch {
	case state.Phase == journal.Done:
		return refuse(m.id, "is done, there is nothing to cancel", "to bring the bytes back: migrate reverse "+m.id, nil)
	case state.Direction == journal.Backward:
		return refuse(m.id, "is being brought back already", "finish that with: migrate reverse "+m.id, nil)
	case marked && mark.ID == m.id && mark.Role == givingRole, state.Discarded.Count() > 0:
		return refuse(m.id, "parts of the source were emptied already, the volume would be cut in two",
			"bring them back with: migrate reverse "+m.id+"; or go on with: migrate resume "+m.id, nil)
	}
	if m.record.Used {
		return refuse(m.id, "it was in use while it hydrated, and what its users wrote is only at the destination",
			"bring that to the source with: migrate reverse "+m.id+"; or go on with: migrate resume "+m.id, nil)
	}
	if err := m.journal.SetPhase(journal.Cancelled); err != nil {
		return m.failure(err)
	}
	return m.releaseDestination()
}
