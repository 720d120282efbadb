package clonetest

import (
	"decant/region"
)

// guests makes up to n requests of guests.
func (d *driver) guests(n int) error {
	if !d.m.setup.Guests {
		return nil
	}
	for range d.rng.IntN(n + 1) {
		if err := d.guest(); err != nil {
			return err
		}
	}
	return nil
}

// guest changes something, if the locks on the stack allow it.
func (d *driver) guest() error {
	off, n := d.place()
	run := d.m.setup.Geometry().Touched(off, n)
	if d.blocked(run) {
		return nil
	}
	mayCommit := d.mayCommit(run)
	d.hold(run)
	defer d.release()
	op := []GuestOp{GuestWrite, GuestWrite, GuestZero, GuestDiscard}[d.rng.IntN(4)]
	change := func() error { return d.m.Change(d.c, op, off, n, d.rng) }
	var err error
	if mayCommit {
		err = d.asCommit(d.begun, change) // which may begin regions before it commits
	} else {
		err = change()
	}
	if err == nil && op == GuestWrite {
		d.inPlace.Add(run)
	}
	return err
}

// place is a range of whole sectors: parts of a region, whole ones, or several.
func (d *driver) place() (off, n int64) {
	size, regionBytes := d.m.setup.DeviceBytes, d.m.setup.RegionBytes
	off = d.rng.Int64N(size)
	switch d.rng.IntN(3) {
	case 0:
		n = sectorBytes * (1 + d.rng.Int64N(4))
	case 1:
		off = off / regionBytes * regionBytes
		n = regionBytes * (1 + d.rng.Int64N(3))
	case 2:
		n = 1 + d.rng.Int64N(size-off)
	}
	off = off / sectorBytes * sectorBytes
	return off, min(size-off, (n+sectorBytes-1)/sectorBytes*sectorBytes)
}

// mayCommit says whether a change in run may have to commit: where a region may be
// committed with a checksum, and everywhere if the guests outlive the process.
func (d *driver) mayCommit(run region.Range) bool {
	if d.m.setup.Outlive {
		return true
	}
	for nr := run.First; nr < run.End(); nr++ {
		if d.begunBefore(nr) && !d.inPlace.Has(nr) {
			return true
		}
	}
	return false
}

// begunBefore says whether nr was anything but Unhydrated before the commit on the
// stack, if there is one: what has become Dirty since is no part of it.
func (d *driver) begunBefore(nr region.Nr) bool {
	if d.settled != nil {
		return d.settled.Has(nr)
	}
	return d.begun.Has(nr)
}

// blocked says whether a change in run would wait for what is on the stack.
func (d *driver) blocked(run region.Range) bool {
	for _, held := range d.held {
		if !held.Intersect(run).Empty() {
			return true
		}
	}
	return (d.committing || d.journal) && d.mayCommit(run)
}
