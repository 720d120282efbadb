package hydrate

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decant/clone"
)

// GuestSpace is Space that guests take of as well.
type GuestSpace interface {
	Space
	// Overwrites says whether writing to the range takes no more space than it has
	// already. It is asked only when space is short, and no is always a right answer.
	Overwrites(off, n int64) (bool, error)
}

// GuestOptions say how guests share the space with a run.
type GuestOptions struct {
	Space GuestSpace
	// UnitBytes is what the medium allocates as a whole; a power of two or not, at
	// least 1.
	UnitBytes int64
	// Patience is how long a change may wait for space. It should be shorter than
	// what the guests' own patience with a disk is.
	Patience time.Duration
	// Refused is told what was short when a change has waited in vain. It must return
	// soon; nil means nobody is told.
	Refused func(Shortage)
}

// Guests keeps changes of guests out of the reserve of free space. They need room like
// copies, and may come at any time, also when no run is going on: Admit before a change,
// Landed after it. One that takes no more space than its range has is let through as
// long as anything is left; one that does waits until there is some, for which the run
// commits and discards, and is refused with ENOSPC if none comes.
//
// So that few changes have to measure the free space, guests are given more at a time
// than they need, which the run leaves alone. All methods may be called concurrently.
type Guests struct {
	c *clone.Clone
	o GuestOptions

	// inFlight is what is admitted of copies and changes and may not show in the free
	// space. credit and landed are part of it.
	inFlight inFlight
	credit   atomic.Int64 // bytes that changes may take without a measurement
	landed   atomic.Int64 // bytes of changes that have ended since they were measured last

	gaining sync.Mutex // one who makes room at a time

	mu       sync.Mutex
	makeRoom func()    // of the run that is going on
	vain     time.Time // when a change has waited in vain last
}

const (
	// creditBytes is how much guests are given at once, where there is much.
	creditBytes = 16 << 20
	// vainPause is how long changes are refused without waiting after one has waited
	// in vain: each would wait for as long, and keep requests behind it waiting, too.
	vainPause = 2 * time.Second
)

// NewGuests is for the guests of c.
func NewGuests(c *clone.Clone, o GuestOptions) *Guests { return &Guests{c: c, o: o} }

// Admit returns when the range may be changed: written to with new bytes, or made to
// read as zeros. claim is for Landed, which has to be called when that has been done.
// An error is ENOSPC after the patience, the reason why space cannot be measured, or
// ESHUTDOWN when ctx has ended.
func (g *Guests) Admit(ctx context.Context, off, n int64, zero bool) (claim int64, err error) {
	claim = g.need(off, n, zero)
	if g.take(claim) {
		return claim, nil
	}
	return g.wait(ctx, off, n, claim)
}

// Landed says that a change that was admitted has ended, however it did.
func (g *Guests) Landed(claim int64) { g.landed.Add(claim) }

// need is the most space that a change can take.
func (g *Guests) need(off, n int64, zero bool) int64 {
	if n == 0 {
		return 0
	}
	unit := g.o.UnitBytes
	within := g.c.Geometry.Touched(off, n)
	if g.c.Unhydrated(within) { // its parts of regions are copied with the rest of them
		unit = max(unit, g.c.Geometry.RegionBytes())
	}
	first, end := off/unit*unit, (off+n+unit-1)/unit*unit
	if zero { // only what it fills in part
		inner := max(0, (off+n)/unit*unit-(off+unit-1)/unit*unit)
		return end - first - inner
	}
	return end - first
}

// take takes n bytes of the credit.
func (g *Guests) take(n int64) bool {
	for {
		credit := g.credit.Load()
		if credit < n {
			return false
		}
		if g.credit.CompareAndSwap(credit, credit-n) {
			return true
		}
	}
}

// measure gives n bytes, and more credit, out of the free space.
func (g *Guests) measure(n int64) (bool, error) {
	g.inFlight.admitting.Lock()
	defer g.inFlight.admitting.Unlock()
	if g.take(n) {
		return true, nil // somebody else has measured meanwhile
	}
	g.settle()
	claimed := g.inFlight.bytes.Load() // before the measurement, as in fitting
	available, err := g.o.Space.AvailableBytes()
	if err != nil {
		return false, fmt.Errorf("measure the free space: %w", err)
	}
	g.o.Space.Sample()
	available -= claimed
	if available < n {
		return false, nil
	}
	credit := min(creditBytes, (available-n)/4)
	g.inFlight.add(n + credit)
	g.credit.Add(credit)
	return true, nil
}

// settle takes what shows in the free space from now on out of the account.
func (g *Guests) settle() { g.inFlight.add(-g.landed.Swap(0)) }

// giveBack leaves the unused credit to the run.
func (g *Guests) giveBack() {
	g.inFlight.admitting.Lock()
	defer g.inFlight.admitting.Unlock()
	g.settle()
	g.inFlight.add(-g.credit.Swap(0))
}

// wait is Admit when the credit is used up.
func (g *Guests) wait(ctx context.Context, off, n, claim int64) (int64, error) {
	patience := g.o.Patience
	if g.isVain() {
		patience = 0
	}
	for begun := time.Now(); ; {
		if ok, err := g.measure(claim); ok || err != nil {
			return claim, err
		}
		ok, err := g.overwrites(off, n)
		if ok || err != nil {
			return 0, err
		}
		if time.Since(begun) >= patience {
			return 0, g.refuse(claim, patience > 0)
		}
		if err := g.gain(); err != nil {
			return 0, err
		}
		g.o.Space.Wait(ctx)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %w", unix.ESHUTDOWN, context.Cause(ctx))
		}
	}
}

// overwrites says whether the destination has the space of the range.
func (g *Guests) overwrites(off, n int64) (bool, error) {
	if g.c.Unhydrated(g.c.Geometry.Touched(off, n)) {
		return false, nil
	}
	return g.o.Space.Overwrites(off, n)
}

// gain makes room, as far as that can be done, unless somebody else is about it.
func (g *Guests) gain() error {
	if !g.gaining.TryLock() {
		return nil
	}
	defer g.gaining.Unlock()
	g.mu.Lock()
	makeRoom := g.makeRoom
	g.mu.Unlock()
	if makeRoom != nil {
		makeRoom()
	}
	return g.o.Space.Reclaim()
}

// follow has room made by a run, or by none again.
func (g *Guests) follow(makeRoom func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.makeRoom = makeRoom
}

func (g *Guests) isVain() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.vain.IsZero() && time.Since(g.vain) < vainPause
}

// refuse is the error of a change that there is no space for.
func (g *Guests) refuse(claim int64, waited bool) error {
	shortage := g.o.Space.Shortage()
	if waited {
		g.mu.Lock()
		g.vain = time.Now()
		g.mu.Unlock()
		if g.o.Refused != nil {
			g.o.Refused(shortage)
		}
	}
	return fmt.Errorf("%w: %w: of %s a change needs %d bytes", unix.ENOSPC, ErrNoSpace, shortage.What, claim)
}

// makeRoom commits and discards what there is. An error ends the run, and is told
// there; changes go on as far as the clone lets them.
func (r *run) makeRoom() {
	if r.commits.now() == nil {
		_ = r.discards.now() // see above
	}
}
