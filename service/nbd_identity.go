package service

import (
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

// sampleSource keeps in the record what the source holds, outside the regions of without,
// if it is an export. The record has yet to be saved.
func (m *migration) sampleSource(g region.Geometry, without *region.Set) (err error) {
	n, ok := m.source.device.(*nbdEnd)
	if !ok {
		return nil
	}
	if m.record.SourceSamples, err = n.takeSamples(g, without); err != nil {
		return err
	}
	n.expect(m.record.SourceSamples)
	return nil
}

// sampleEmptied keeps what an emptied export holds, so that another image under its name
// can be told from it. Without samples it counts as the same.
func (m *migration) sampleEmptied() error {
	n, ok := m.source.device.(*nbdEnd)
	if !ok || !m.record.DiscardSource {
		return nil
	}
	samples, err := n.takeSamples(m.journal.Superblock().Geometry, region.NewSet())
	if err != nil {
		samples = nil // the migration has ended all the same
	}
	n.expect(samples)
	return m.control.change(func(r *record) { r.SourceSamples = samples })
}

// sampleAgain replaces the samples of a migration that is resumed, which have just been
// compared, by others where nothing can have been discarded, and keeps some of the rest.
func (m *migration) sampleAgain(k *known) error {
	n, ok := m.source.device.(*nbdEnd)
	if !ok {
		return nil
	}
	if k.state.Phase == journal.Done {
		m.record.SourceSamples = k.record.SourceSamples
		return nil
	}
	mark, marked, err := m.sourceMarks().read()
	if err != nil {
		return err
	}
	g, without := k.superblock.Geometry, region.NewSet()
	var kept []sourceSample
	if m.record.DiscardSource || marked && mark.ID == m.id {
		without = k.state.Hydrated
		left := region.NewSet(g.All())
		left.Subtract(without)
		kept = thinOut(discardedIn(dropIn(k.record.SourceSamples, g, left), g, without), sampleParts)
	}
	if err := m.sampleSource(g, without); err != nil {
		return err
	}
	m.record.SourceSamples = append(kept, m.record.SourceSamples...)
	if m.record.DiscardSource {
		n.expect(m.record.SourceSamples)
	}
	return nil
}

// sourceChanged says whether somebody has written to the source while it was copied.
func (m *migration) sourceChanged() (bool, error) {
	state, err := m.journal.Load()
	if err != nil {
		return false, err
	}
	return m.source.changedSince(known{id: m.id, superblock: m.journal.Superblock(), state: state, record: m.record}, m.record.DiscardSource)
}

// refuseOther refuses an export that is not what the migration knows.
func (k known) refuseOther(e *end) error {
	return refuse(e.name, fmt.Sprintf("does not hold what it held when migration %s read it last: it is another image, or was written to; nothing was changed", k.id),
		fmt.Sprintf("serve the old image under this name again, or give the migration up with: migrate cancel %s; "+
			"if it is the old image, and only what was discarded reads as something new, the same command without --discard-src copies the rest", k.id), nil)
}

// readyExport refuses to write to an export that is another one by now, or that cannot be
// written to as the protocol of a migration needs it, and keeps in the journal only what
// stays as it is when the export is filled again.
func (m *migration) readyExport(state journal.State) error {
	n, ok := m.source.device.(*nbdEnd)
	if !ok {
		return nil
	}
	g := m.journal.Superblock().Geometry
	k := known{id: m.id, superblock: m.journal.Superblock(), state: state, record: m.record}
	changed, err := n.changedSince(k, true)
	if err == nil && !changed && state.Direction == journal.Backward {
		changed, err = m.lacksReturned(n, state)
	}
	if err != nil {
		return refuse(m.source.name, "it cannot be seen whether it changed", "", err)
	}
	if changed {
		return k.refuseOther(m.source)
	}
	if err := n.checkWritable(g.RegionBytes()); err != nil {
		return refuse(m.source.name, "cannot be filled again; nothing was changed", HintOf(err), err)
	}
	if state.Direction == journal.Forward {
		m.record.SourceSamples = dropIn(m.record.SourceSamples, g, state.Hydrated)
		if err := m.saveRecord(m.record); err != nil {
			return refuse(m.id, "its journal cannot be written", "", err)
		}
	}
	now, err := n.takeSamples(g, region.NewSet()) // good for this run: what is written to leaves them
	if err != nil {
		return refuse(m.source.name, "cannot be read", "", err)
	}
	given := state.Hydrated // what was discarded, or may have been
	if state.Direction == journal.Backward {
		given = region.NewSet(g.All())
		given.Subtract(state.Hydrated)
	}
	n.expect(discardedIn(now, g, given))
	return nil
}

// lacksReturned says whether the export does not hold what was brought back to it already,
// by the checksums of the journal: of some regions, spread over them all.
func (m *migration) lacksReturned(n *nbdEnd, state journal.State) (bool, error) {
	const looks = 32
	g := m.journal.Superblock().Geometry
	step := max(1, g.Regions()/looks)
	for first := region.Nr(0); first < g.All().End(); first += region.Nr(step) {
		part := region.Range{First: first, Count: step}.Intersect(g.All())
		for sum, err := range m.journal.Checksums(journal.Backward, part) {
			if err != nil {
				return false, err
			}
			if sum.Sum == journal.WrittenSum || !state.Hydrated.Has(sum.Nr) {
				continue
			}
			off, bytes := g.Bytes(region.Range{First: sum.Nr, Count: 1})
			held, err := checksumOf(n, off, bytes)
			if errors.Is(err, unix.EIO) {
				continue // a bad place says nothing
			}
			if err != nil || held != journal.NormalSum(sum.Sum) {
				return err == nil, err
			}
			break // one of each part
		}
	}
	return false, nil
}

// checksumOf is the checksum of a range as the journal has it.
func checksumOf(r io.ReaderAt, off, bytes int64) (uint64, error) {
	var hash xxh3.Hasher
	_, err := io.CopyBuffer(&hash, io.NewSectionReader(r, off, bytes), make([]byte, min(bytes, bufferBytes)))
	return journal.NormalSum(hash.Sum64()), err
}

// writtenBytes is what all writes of a migration are multiples of, but for the end of the
// device.
const writtenBytes = 4 << 10

// checkWritable says why the export cannot be the receiving end, with regions of a size.
func (n *nbdEnd) checkWritable(regionBytes int64) error {
	least := n.MinBlockBytes()
	switch {
	case n.ReadOnly():
		return &Error{Outcome: Refused, Problem: "the export is read-only", Hint: "start the server so that it may be written to (qemu-nbd and nbdkit: without --read-only)", Err: unix.EROFS}
	case !n.CanFlush():
		return &Error{
			Outcome: Refused, Problem: "the server knows no flush, so that nothing could be made durable there",
			Hint: "serve the image with a server that knows it, such as qemu-nbd or nbdkit's file plugin",
		}
	case least > min(writtenBytes, regionBytes) || n.Bytes()%least != 0:
		return &Error{
			Outcome: Refused, Problem: fmt.Sprintf("the server writes whole blocks of %d bytes only", least),
			Hint: "serve the image with smaller blocks",
		}
	}
	return nil
}

// warnExport says what cannot be known of a source behind a server.
func (a *attempt) warnExport(say func(format string, args ...any)) {
	n, ok := a.source.device.(*nbdEnd)
	if !ok {
		return
	}
	say("whether somebody else writes to the export cannot be seen; make sure that nobody does")
	if !n.KnowsHoles() {
		say("the server does not tell where the image has holes (block status): all of it is read")
	}
}
