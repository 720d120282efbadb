package clonetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/zeebo/xxh3"

	"decant/clone"
	"decant/journal"
	"decant/region"
)

// ErrViolation says that a safety rule was broken.
var ErrViolation = errors.New("safety rule broken")

// Machine is a source, a destination and a journal on one power supply. What is
// written is volatile until it is flushed or synced. It behaves the same each time
// as long as one goroutine drives it, and may be driven by several.
type Machine struct {
	// Meanwhile, if set before the machine is used, runs in the middle of most
	// operations, in the goroutine of the caller.
	Meanwhile func(Op)
	// Corrupt, if set before the machine is used, says which writes to the
	// destination store a wrong bit and report success.
	Corrupt func(off, n int64) bool

	setup     Setup
	recovered bool // from a crash or a restart

	mu             sync.Mutex
	steps          int
	cutAfter       int
	off            bool
	calls          int
	fault          Fault
	faultOp        Op // that the fault hit first
	violations     []error
	journalWriters int

	sourceDurable, sourceNow []byte
	punched                  []bool // per granule of sourceNow
	discards                 []span // since the last crash; none is ever durable for sure
	reads                    map[span]int
	markDurable, markNow     journal.TxID
	dst                      *disk
	log                      []logRecord
	contents                 *contents

	discardedRegions uint64        // since the last crash
	awaited          uint64        // value of discardedRegions that wakes the waiter
	waiter           chan struct{} // closed by wake
}

// New is a machine on which the migration has not begun.
func New(s Setup) *Machine {
	image := s.Image()
	dst := make([]byte, s.DeviceBytes+s.ExtraBytes)
	if s.Garbage {
		fillGarbage(dst)
	}
	return &Machine{
		setup:         s,
		sourceDurable: append([]byte(nil), image...),
		sourceNow:     append([]byte(nil), image...),
		punched:       make([]bool, len(s.Content)),
		reads:         map[span]int{},
		dst:           newDisk(dst),
		contents:      newContents(image),
	}
}

// Config is what a clone on this machine is opened with.
func (m *Machine) Config() clone.Config {
	cfg := clone.Config{
		Source:      source{m},
		Destination: destination{m},
		Journal:     memoryJournal{m, m.setup.Geometry()},
		Geometry:    m.setup.Geometry(),
		Marker:      source{m},
		Verify:      m.setup.Verify,
		// As a service does that goes on with a migration.
		RepeatDiscards: m.recovered,
		GuestsOutlive:  m.setup.Outlive,
		BufferBytes:    m.setup.BufferBytes,
	}
	if m.setup.Sparse {
		cfg.Source = sparseSource{source{m}}
	}
	if m.setup.KnownZero {
		cfg.Destination = zeroDestination{destination{m}}
	}
	return cfg
}

// Open opens a clone as a service does after a start: a mark on the source that is
// newer than the journal is refused (I11).
func (m *Machine) Open() (*clone.Clone, error) {
	m.mu.Lock()
	mark, tx := m.markNow, replay(m.log).Tx
	m.mu.Unlock()
	if mark > tx {
		return nil, fmt.Errorf("%w: I11: source marked with transaction %d, journal at %d", ErrViolation, mark, tx)
	}
	c, err := clone.Open(m.Config())
	if err != nil {
		return nil, err
	}
	if _, err := c.Recheck(context.Background()); err != nil {
		return nil, err
	}
	return c, nil
}

// Crash cuts the power if that has not happened and gives the machine as it is when
// the power is back. The crashed machine stays as it is, so that it can be asked
// for another outcome.
func (m *Machine) Crash(rng *rand.Rand, form CrashForm) *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	out := &Machine{
		setup:         m.setup,
		recovered:     true,
		Corrupt:       m.Corrupt,
		violations:    append([]error(nil), m.violations...),
		sourceDurable: append([]byte(nil), m.sourceDurable...),
		punched:       make([]bool, len(m.punched)),
		reads:         map[span]int{},
		dst:           m.dst.crash(rng, form),
		markDurable:   m.markDurable,
		contents:      m.contents.after(),
	}
	if form.survives(rng) {
		out.markDurable = m.markNow
	}
	out.markNow = out.markDurable
	for i := range out.punched { // what earlier crashes left punched
		out.punched[i] = m.sourceDurable[i*granuleBytes] == garbageByte
	}
	for _, d := range m.discards {
		for at := d.off; at < d.off+d.n; at += granuleBytes {
			if form.survives(rng) {
				out.punch(out.sourceDurable, span{at, min(granuleBytes, d.off+d.n-at)})
			}
		}
	}
	out.sourceNow = append([]byte(nil), out.sourceDurable...)
	for _, r := range m.log {
		if !r.whole || !r.synced && !form.survives(rng) {
			break
		}
		r.synced = true
		out.log = append(out.log, r)
	}
	return out
}

// Restart is the machine after the process has died and the power has not: nothing
// is lost, and a journal commit that failed is found or not, as its fault said.
func (m *Machine) Restart() *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &Machine{
		setup: m.setup, recovered: true, Corrupt: m.Corrupt, violations: append([]error(nil), m.violations...),
		sourceDurable: m.sourceDurable, sourceNow: m.sourceNow, punched: m.punched, discards: m.discards,
		reads: map[span]int{}, markDurable: m.markNow, markNow: m.markNow, dst: m.dst, contents: m.contents.after(),
	}
	for _, r := range m.log {
		if !r.whole {
			break
		}
		r.synced = true
		out.log = append(out.log, r)
	}
	if out.contents != nil {
		out.fallBack(!m.setup.Outlive || m.contents.lost)
	}
	return out
}

// fallBack makes the model show what the ends do: a process that has died takes
// what was Dirty with it, and the rest is still volatile. Guests that have outlived
// it see nothing older than what they were answered, unless a flush has failed before.
func (m *Machine) fallBack(fallen bool) {
	state, g := replay(m.log), m.setup.Geometry()
	for nr := range region.Nr(g.Regions()) {
		off, n := g.Bytes(region.Range{First: nr, Count: 1})
		shown := m.sourceNow[off : off+n]
		if state.Hydrated.Has(nr) {
			shown = m.dst.now[off : off+n]
		}
		if err := m.contents.check(shown, off, m.contents.now(off, n), fallen); err != nil {
			m.violations = append(m.violations, fmt.Errorf("region %d after a restart: %w", nr, err))
		}
		m.contents.fallBack(shown, off)
	}
}

// Owners checks what must hold whenever the power fails: each region is whole on
// the side that the journal says owns it, holds what flushes have promised, its
// checksum fits, and whatever is gone from the source was announced by the mark.
// Call it once, on what Crash returned, before anything else.
func (m *Machine) Owners() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, g, image := replay(m.log), m.setup.Geometry(), m.setup.Image()
	tx, sums := m.recorded()
	errs := append([]error(nil), m.violations...)
	for nr := range region.Nr(g.Regions()) {
		off, n := g.Bytes(region.Range{First: nr, Count: 1})
		onSource, onDestination := m.sourceDurable[off:off+n], m.dst.durable[off:off+n]
		untouched, shown := bytes.Equal(onSource, image[off:off+n]), onSource
		sum, hasSum := sums[nr]
		hydrated := state.Hydrated.Has(nr)
		if hydrated {
			shown = onDestination
		}
		switch err := m.contents.check(shown, off, m.contents.now(off, n), true); {
		case err != nil:
			errs = append(errs, fmt.Errorf("region %d, hydrated: %v: %w", nr, hydrated, err))
		case !hydrated && !untouched:
			errs = append(errs, fmt.Errorf("%w: region %d is not hydrated and not whole on the source", ErrViolation, nr))
		case hydrated && !untouched && m.markDurable < tx[nr]:
			errs = append(errs, fmt.Errorf("%w: I11: region %d of transaction %d discarded, mark at %d", ErrViolation, nr, tx[nr], m.markDurable))
		case hydrated && sum == journal.WrittenSum: // nothing is known of it
		case hydrated && (hasSum == allZero(shown) || hasSum && sum != xxh3.Hash(shown)):
			errs = append(errs, fmt.Errorf("%w: region %d has a wrong checksum", ErrViolation, nr))
		}
		m.contents.settle(shown, off)
	}
	return errors.Join(append(errs, m.behindTheEnd())...)
}

// behindTheEnd checks that the destination is as it was where the device has ended.
func (m *Machine) behindTheEnd() error {
	untouched := byte(0)
	if m.setup.Garbage {
		untouched = garbageByte
	}
	for _, b := range m.dst.durable[m.setup.DeviceBytes:] {
		if b != untouched {
			return fmt.Errorf("%w: the destination was written behind the end of the device", ErrViolation)
		}
	}
	return nil
}

// recorded is the first transaction and the checksum of each hydrated region.
func (m *Machine) recorded() (map[region.Nr]journal.TxID, map[region.Nr]uint64) {
	tx, sums := map[region.Nr]journal.TxID{}, map[region.Nr]uint64{}
	for _, r := range m.log {
		if r.tx == 0 {
			continue
		}
		for run := range r.transaction.Hydrated.Ranges() {
			for nr := run.First; nr < run.End(); nr++ {
				if tx[nr] == 0 {
					tx[nr] = r.tx
				}
				delete(sums, nr)
			}
		}
		for _, s := range r.transaction.Checksums {
			sums[s.Nr] = s.Sum
		}
	}
	return tx, sums
}

// Finished checks the end of a migration: the destination holds every byte, the
// source is empty, the journal knows both.
func (m *Machine) Finished() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	errs := append([]error(nil), m.violations...)
	if err := m.contents.check(m.dst.now[:m.setup.DeviceBytes], 0, m.contents.now(0, m.setup.DeviceBytes), false); err != nil {
		errs = append(errs, fmt.Errorf("on the destination: %w", err))
	}
	for i, gone := range m.punched {
		if !gone {
			errs = append(errs, fmt.Errorf("%w: granule %d of the source was not discarded", ErrViolation, i))
			break
		}
	}
	all, state := m.setup.Geometry().All(), replay(m.log)
	if !state.Hydrated.HasAll(all) || !state.Discarded.HasAll(all) {
		errs = append(errs, fmt.Errorf("%w: journal has %d regions hydrated and %d discarded of %d", ErrViolation,
			state.Hydrated.Count(), state.Discarded.Count(), all.Count))
	}
	return errors.Join(errs...)
}

// Violations are the broken rules that were seen so far.
func (m *Machine) Violations() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(m.violations...)
}

// await returns a channel that is closed when n more regions have been discarded,
// or when a call fails, which may keep that from happening.
func (m *Machine) await(n uint64) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awaited, m.waiter = m.discardedRegions+n, make(chan struct{})
	return m.waiter
}

// wake ends the await; the caller holds mu.
func (m *Machine) wake() {
	if m.waiter != nil {
		close(m.waiter)
		m.waiter = nil
	}
}
