package clonetest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"decant/clone"
)

// GuestOp is a request of somebody who uses the device.
type GuestOp uint8

// The requests that change something.
const (
	GuestWrite GuestOp = iota
	GuestZero
	GuestDiscard
)

// Change makes a request through c, and remembers what the device holds after it.
// The range has to begin at a sector, and to end at one or at the end of the device.
// No other change of the same sectors may be going on.
func (m *Machine) Change(c *clone.Clone, op GuestOp, off, n int64, rng *rand.Rand) error {
	p := make([]byte, n)
	if op == GuestWrite {
		fill(p, rng)
	}
	m.mu.Lock()
	change := m.contents.begin(p, off)
	m.mu.Unlock()
	var err error
	switch op {
	case GuestWrite:
		var done int
		if done, err = c.WriteAt(p, off); err == nil && int64(done) != n {
			err = fmt.Errorf("%w: a write of %d bytes says that it wrote %d", ErrViolation, n, done)
		}
	case GuestZero:
		err = c.Zero(off, n)
	case GuestDiscard:
		err = c.Discard(off, n)
	}
	if err != nil || op == GuestDiscard && m.setup.Outlive {
		return err // of such a trim nobody relies on what it leaves
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.contents.ack(change)
	return nil
}

// Flush flushes through flush, which is a method of a clone, and remembers what it
// promises.
func (m *Machine) Flush(flush func() error) error {
	m.mu.Lock()
	began := m.contents.now(0, m.setup.DeviceBytes)
	m.mu.Unlock()
	if err := flush(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.contents.flushed(began)
	return nil
}

// ReadBack reads part of the device through c and compares it with what it may hold.
func (m *Machine) ReadBack(c *clone.Clone, off, n int64) error {
	p := make([]byte, n)
	m.mu.Lock()
	began := m.contents.now(off, n)
	m.contents.reads++
	m.mu.Unlock()
	got, err := c.ReadAt(p, off)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.contents.reads--
	if got < len(p) {
		return err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := m.contents.check(p, off, began, c.Mode() != clone.ReadWrite); err != nil {
		return fmt.Errorf("a read of %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// Look asks c what it knows of part of the device, and compares what is said to be zeros
// with what it may hold.
func (m *Machine) Look(c *clone.Clone, off, n int64) error {
	m.mu.Lock()
	began := m.contents.now(off, n)
	m.contents.reads++
	m.mu.Unlock()
	extents, err := c.Extents(off, n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.contents.reads--
	if err != nil {
		return err
	}
	p, at := make([]byte, n), int64(0)
	for _, e := range extents {
		if e.Bytes <= 0 || at+e.Bytes > n {
			return fmt.Errorf("%w: an extent of %d bytes, %d bytes behind the start of %d", ErrViolation, e.Bytes, at, n)
		}
		if e.Zero {
			if err := m.contents.check(p[at:at+e.Bytes], off+at, began.within(off+at, e.Bytes), c.Mode() != clone.ReadWrite); err != nil {
				return fmt.Errorf("an extent of %d zeros at %d: %w", e.Bytes, off+at, err)
			}
		}
		at += e.Bytes
	}
	if n > 0 && at == 0 {
		return fmt.Errorf("%w: nothing is known of %d bytes at %d", ErrViolation, n, off)
	}
	return nil
}

// Settle reads the device after a crash, and compares it with what flushes have
// promised. What it shows is all that it may show from then on. It is for machines
// whose destination has lost something, of which Owners knows nothing.
func (m *Machine) Settle(c *clone.Clone) error {
	p := make([]byte, m.setup.DeviceBytes)
	if _, err := c.ReadAt(p, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.contents.check(p, 0, m.contents.now(0, int64(len(p))), true); err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	m.contents.settle(p, 0)
	return nil
}
