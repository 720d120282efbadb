package clonetest

import (
	"io"
	"syscall"

	"decant/clone"
	"decant/journal"
)

// source is the simulated clone.Source and clone.Marker.
type source struct{ *Machine }

// sparseSource is a source that knows its holes.
type sparseSource struct{ source }

// destination is the simulated clone.Destination.
type destination struct{ *Machine }

// zeroDestination is a destination that knows where it reads zeros.
type zeroDestination struct{ destination }

var (
	_ clone.Source      = source{}
	_ clone.Marker      = source{}
	_ clone.Sparse      = sparseSource{}
	_ clone.Destination = destination{}
	_ clone.Sparse      = zeroDestination{}
)

// Bytes is the size of the source.
func (s source) Bytes() int64 { return s.setup.DeviceBytes }

// ReadAt reads in two halves with everything else in between, so that a discard
// under a read shows in the bytes.
func (s source) ReadAt(p []byte, off int64) (int, error) {
	fault, err := s.call(SourceRead)
	if err != nil {
		return 0, err
	}
	here := span{off, int64(len(p))}
	half := len(p) / 2
	if err := s.look(func() { s.reads[here]++; copy(p[:half], s.sourceNow[off:]) }); err != nil {
		return 0, err
	}
	s.meanwhile(SourceRead)
	err = s.look(func() { copy(p[half:], s.sourceNow[off+int64(half):]) })
	s.mu.Lock()
	if s.reads[here]--; s.reads[here] == 0 {
		delete(s.reads, here)
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if fault != nil {
		fillGarbage(p[half:])
		return half, fault.Err
	}
	if end := off + int64(len(p)); end == s.setup.DeviceBytes {
		return len(p), io.EOF // allowed by io.ReaderAt
	}
	return len(p), nil
}

// Discard turns the range to garbage, at once for reads and perhaps for good.
func (s source) Discard(off, n int64) error {
	fault, err := s.call(SourceDiscard)
	if err != nil {
		return err
	}
	s.meanwhile(SourceDiscard)
	g := s.setup.Geometry()
	if gotOff, gotN := g.Bytes(g.Covered(off, n)); n <= 0 || gotOff != off || gotN != n {
		s.mu.Lock()
		s.violate("I6: discard of %d bytes at %d is not of whole regions inside the device", n, off)
		s.mu.Unlock()
		return syscall.EINVAL
	}
	if fault == nil {
		return s.step(func() { s.discard(span{off, n}) })
	}
	if half := n / 2 / granuleBytes * granuleBytes; fault.Effect && half > 0 {
		_ = s.step(func() { s.discard(span{off, half}) }) // it fails anyway
	}
	return fault.errno()
}

// discard does it; the caller holds mu.
func (m *Machine) discard(d span) {
	g := m.setup.Geometry()
	for r := range m.reads {
		if r.overlaps(d) {
			m.violate("I3: discard of %d bytes at %d during a read of %d bytes at %d", d.n, d.off, r.n, r.off)
		}
	}
	m.punch(m.sourceNow, d)
	m.discards = append(m.discards, d)
	m.discardedRegions += g.Covered(d.off, d.n).Count
	if m.discardedRegions >= m.awaited {
		m.wake()
	}
}

func (m *Machine) punch(p []byte, d span) {
	fillGarbage(p[d.off : d.off+d.n])
	for at := d.off; at < d.off+d.n; at += granuleBytes {
		m.punched[at/granuleBytes] = true
	}
}

// Mark writes the mark and syncs it.
func (s source) Mark(tx journal.TxID) error {
	fault, err := s.call(SourceMark)
	if err != nil {
		return err
	}
	if fault == nil || fault.Effect {
		err = s.step(func() {
			if tx < s.markNow {
				s.violate("I11: the mark goes down from %d to %d", s.markNow, tx)
			}
			s.markNow = tx
		})
		if err != nil {
			return err
		}
	}
	if fault != nil {
		return fault.errno()
	}
	s.meanwhile(SourceMark)
	return s.step(func() { s.markDurable = s.markNow })
}

// NextData reports what was punched as a hole, as a file does.
func (s sparseSource) NextData(off int64) (start, end int64, err error) {
	fault, err := s.call(SourceNextData)
	if err != nil {
		return 0, 0, err
	}
	if fault != nil {
		return 0, 0, fault.errno()
	}
	s.meanwhile(SourceNextData)
	err = s.look(func() {
		hole := func(at int64) bool {
			return s.punched[at/granuleBytes] || s.setup.Content[at/granuleBytes] == Hole
		}
		size := s.setup.DeviceBytes
		for start = off; start < size && hole(start); {
			start = min(size, (start/granuleBytes+1)*granuleBytes)
		}
		for end = start; end < size && !hole(end); {
			end = min(size, (end/granuleBytes+1)*granuleBytes)
		}
	})
	return start, end, err
}

// Bytes is the size of the destination.
func (d destination) Bytes() int64 { return d.setup.DeviceBytes + d.setup.ExtraBytes }

// ReadAt reads what the medium and its cache hold.
func (d destination) ReadAt(p []byte, off int64) (int, error) {
	fault, err := d.call(DestinationRead)
	if err != nil {
		return 0, err
	}
	d.meanwhile(DestinationRead)
	if err := d.look(func() { copy(p, d.dst.now[off:]) }); err != nil {
		return 0, err
	}
	if fault != nil {
		fillGarbage(p[len(p)/2:])
		return len(p) / 2, fault.Err
	}
	return len(p), nil
}

// WriteAt writes into the cache.
func (d destination) WriteAt(p []byte, off int64) (int, error) {
	fault, err := d.call(DestinationWrite)
	if err != nil {
		return 0, err
	}
	d.meanwhile(DestinationWrite)
	if fault != nil {
		half := p[:halfBytes(off, int64(len(p)))]
		if err := d.step(func() { d.dst.write(half, off, true) }); err != nil {
			return 0, err
		}
		return len(half), fault.Err
	}
	if err := d.step(func() { d.write(p, off, true) }); err != nil {
		return 0, err
	}
	return len(p), nil
}

// halfBytes is about half of a range, but no part of a sector.
func halfBytes(off, n int64) int64 {
	return max(off, (off+n/2)/sectorBytes*sectorBytes) - off
}

// write puts bytes into the cache, or others in their place if the medium is bad
// there; the caller holds mu.
func (m *Machine) write(p []byte, off int64, mapped bool) {
	if m.Corrupt != nil && m.Corrupt(off, int64(len(p))) {
		p = append([]byte(nil), p...)
		p[len(p)/2] ^= 0x40
	}
	m.dst.write(p, off, mapped)
}

// Zero writes zeros into the cache and unmaps.
func (d destination) Zero(off, n int64) error {
	fault, err := d.call(DestinationZero)
	if err != nil {
		return err
	}
	d.meanwhile(DestinationZero)
	if fault == nil {
		return d.step(func() { d.write(make([]byte, n), off, false) })
	}
	if fault.Effect {
		_ = d.step(func() { d.dst.write(make([]byte, halfBytes(off, n)), off, false) }) // it fails anyway
	}
	return fault.errno()
}

// Flush makes durable what was written before it began. A failing one drops it.
func (d destination) Flush() error {
	fault, err := d.call(DestinationFlush)
	if err != nil {
		return err
	}
	var covered int
	err = d.step(func() {
		covered = len(d.dst.pending)
		if fault != nil && !fault.Effect {
			d.dst.drop()
			d.contents.lost = true
		}
	})
	if err != nil {
		return err
	}
	d.meanwhile(DestinationFlush)
	if fault != nil {
		return fault.errno()
	}
	return d.step(func() { d.dst.flush(covered) })
}

// NextData reports granules that were never written, or that were unmapped, as holes.
func (d zeroDestination) NextData(off int64) (start, end int64, err error) {
	fault, err := d.call(DestinationNextData)
	if err != nil {
		return 0, 0, err
	}
	if fault != nil {
		return 0, 0, fault.errno()
	}
	err = d.look(func() {
		size := d.Bytes()
		for start = off; start < size && !d.dst.mapped[start/granuleBytes]; {
			start = min(size, (start/granuleBytes+1)*granuleBytes)
		}
		for end = start; end < size && d.dst.mapped[end/granuleBytes]; {
			end = min(size, (end/granuleBytes+1)*granuleBytes)
		}
	})
	return start, end, err
}

// TellsAtAnyTime implements clone.LiveSparse.
func (zeroDestination) TellsAtAnyTime() bool { return true }
