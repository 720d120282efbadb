package service

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"decant/hydrate"
	"decant/loopdev"
)

// meter measures the space that both ends take, and says how much may be written.
// It is the hydrate.GuestSpace of a run.
type meter struct {
	source, destination *end // of the migration, whichever way it runs
	taker               *end // the one that is being filled
	takes, gives        *chain
	returner            *returner
	usage               *usage
	peakBytes           atomic.Int64
	unitBytes           int64       // largest unit that one of the stores allocates
	isPatient           func() bool // somebody uses the volume, who is worth waiting for; may be nil

	reclaiming sync.Mutex
	committed  time.Time // when Reclaim has made the pools commit last; under reclaiming

	measuring sync.Mutex // stores are measured by one at a time

	mu       sync.Mutex
	scarcest link // when AvailableBytes was called last
	scarce   supply
}

const (
	minReserveBytes = 2 << 20
	maxReserveBytes = 64 << 20
)

// reserve is what a run never touches of the free space it finds: room for the
// metadata of file systems, and for others. btrfs needs more of it, also to free
// space, and its own count of what is free lags behind.
func reserve(freeBytes int64, fsType string) int64 {
	if fsType == btrfs {
		return min(max(freeBytes/4, 8*minReserveBytes), 4*maxReserveBytes)
	}
	return min(max(freeBytes/16, minReserveBytes), maxReserveBytes)
}

const (
	btrfs = "btrfs"
	// btrfsExtentBytes is the largest extent of btrfs, which gives the space of an
	// extent back only when no byte of it is in use any more.
	btrfsExtentBytes = 128 << 20
)

const (
	// filePatience is how long blocks of a file system that were freed may take to
	// come back: they do with the commit of its own journal, of ext4 within 5 s if
	// nobody asks for it.
	filePatience = 10 * time.Second
	// poolPatience is how long a pool that others fill is given to grow, where the
	// kernel does not say how long it keeps writes waiting for that itself.
	poolPatience = time.Minute
	filePoll     = 100 * time.Millisecond
	// poolPoll is how often a pool is looked at that has no event: growth is one only
	// where there was no space at all, and volumes that are deleted are none.
	poolPoll = 500 * time.Millisecond
)

// newMeter finds the stores of both ends. What it found is given up by close.
func newMeter(source, destination, giver, taker *end, transactionBytes int64) (*meter, error) {
	m := &meter{source: source, destination: destination, taker: taker, unitBytes: 4 << 10}
	var err error
	if m.takes, err = chainOf(taker); err != nil {
		return nil, err
	}
	if m.gives, err = chainOf(giver); err != nil {
		return nil, errors.Join(err, m.takes.Close())
	}
	for _, l := range m.takes.links {
		s, err := l.measure() // which fixes the reserve
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.unitBytes = max(m.unitBytes, s.blockBytes)
	}
	m.returner = newReturner(giver, m.gives, m.takes, transactionBytes)
	return m, nil
}

func (m *meter) close() error { return errors.Join(m.takes.Close(), m.gives.Close()) }

// AvailableBytes is how much may be written before the reserve is touched of any of
// the stores that the taker takes its space from.
func (m *meter) AvailableBytes() (int64, error) {
	m.measuring.Lock()
	defer m.measuring.Unlock()
	available := int64(math.MaxInt64)
	for _, l := range m.takes.links {
		s, err := l.measure()
		if err != nil {
			return 0, err
		}
		if s.growthBytes <= s.availableBytes || s.availableBytes >= available {
			continue
		}
		available = s.availableBytes
		m.mu.Lock()
		m.scarcest, m.scarce = l, s
		m.mu.Unlock()
	}
	return available, nil
}

// Overwrites says whether writing to the range takes no more space. Where half of a
// reserve is used up it is not relied on: what is shared with a snapshot of others is
// copied before it is overwritten, and takes space.
func (m *meter) Overwrites(off, n int64) (bool, error) {
	m.measuring.Lock()
	defer m.measuring.Unlock()
	for _, l := range m.takes.links {
		s, err := l.measure()
		if err != nil || s.fsType == btrfs || s.availableBytes < -s.reserveBytes/2 {
			return false, err
		}
	}
	start, end, err := m.taker.NextData(off)
	return start <= off && off+n <= end, err
}

// Shortage names the scarcest store. While somebody uses the volume there is no end to
// the patience: a run that stopped would take it away from him.
func (m *meter) Shortage() hydrate.Shortage {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := shortage(m.scarce)
	if m.isPatient != nil && m.isPatient() {
		s.Patience = math.MaxInt64
	}
	return s
}

// hint is how to get more of what was scarce when a run stopped for it.
func (m *meter) hint(regionBytes int64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scarcest.store == nil {
		return "free space"
	}
	return m.scarcest.hint(max(regionBytes, regionBytes-m.scarce.availableBytes))
}

// edgeBytes is what a copy may take beyond its bytes, in blocks that it fills in part.
func (m *meter) edgeBytes(regionBytes int64) int64 {
	var edges int64
	for _, p := range m.takes.pools() {
		if !p.isExact || regionBytes%p.blockBytes != 0 {
			edges = max(edges, 2*p.blockBytes)
		}
	}
	return edges
}

// takenBlockBytes is what a pool allocates as a whole for a taker that is a volume of
// it; 0 for any other taker.
func (m *meter) takenBlockBytes() int64 {
	var block int64
	for _, p := range m.takes.pools() {
		if p.isExact {
			block = max(block, p.blockBytes)
		}
	}
	return block
}

// Reclaim makes the media give back what was discarded: file systems do so when their
// own journals commit, pools when they commit their metadata.
func (m *meter) Reclaim() error {
	if err := errors.Join(m.source.SyncFS(), m.destination.SyncFS(), m.returner.finish()); err != nil {
		return err
	}
	m.reclaiming.Lock()
	defer m.reclaiming.Unlock()
	const pause = time.Second
	if time.Since(m.committed) < pause {
		return nil
	}
	m.committed = time.Now()
	for _, p := range m.takes.pools() {
		if _, err := p.Status(true); err != nil {
			return err
		}
	}
	return nil
}

// Settle gives back what was discarded, where that has to be asked for.
func (m *meter) Settle(copiedBytes int64) (bool, error) { return m.returner.settle(copiedBytes) }

// Wait returns at an event of a pool that space is taken from, or when it is time to
// look again.
func (m *meter) Wait(ctx context.Context) {
	pools := m.takes.pools()
	period := filePoll
	if len(pools) > 0 {
		period = poolPoll
	}
	ctx, cancel := context.WithTimeout(ctx, period)
	defer cancel()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	woken := make(chan struct{}, len(pools))
	for _, p := range pools {
		seen := m.lastEvent(p)
		waiting.Go(func() {
			if p.WaitEvent(ctx, seen) == nil {
				woken <- struct{}{}
			}
		})
	}
	select {
	case <-ctx.Done():
	case <-woken:
		cancel()
	}
}

func (m *meter) lastEvent(p *thinStore) uint32 {
	m.measuring.Lock()
	defer m.measuring.Unlock()
	return p.event
}

// Sample notes the present use of space if it is the highest so far. A measurement
// that fails is left out: it is for people, nothing is decided by it.
func (m *meter) Sample() {
	extra, err := m.usage.extraBytes()
	if err != nil {
		return
	}
	for peak := m.peakBytes.Load(); extra > peak && !m.peakBytes.CompareAndSwap(peak, extra); {
		peak = m.peakBytes.Load()
	}
}

// usage tells what both ends take together beyond what the source took at the start of
// the migration.
//
// Of an end whose space comes from a thin pool in the end, what its volume has mapped
// counts as well: that can grow by more than the end itself, and fall later. How much
// it had mapped when the migration began is not recorded. So a resumed run begins with
// what the ends themselves take more, and adds from there the larger growth of the two.
type usage struct {
	extraAtStart int64 // when this run began
	groups       []usageGroup
}

// usageGroup is ends whose bytes are in the same volume; or one end that is in none.
type usageGroup struct {
	taken              func() (int64, error) // by the ends themselves
	mapped             func() (int64, error) // by the volume; nil if there is none
	takenAtStart       int64
	mappedBytesAtStart int64
}

// newUsage begins to count. sourceBytes is what the source took when the migration
// began.
func newUsage(sourceBytes int64, groups ...usageGroup) (*usage, error) {
	u := &usage{extraAtStart: -sourceBytes, groups: groups}
	for i := range u.groups {
		g := &u.groups[i]
		var err error
		if g.takenAtStart, err = g.taken(); err != nil {
			return nil, err
		}
		if g.mapped != nil {
			if g.mappedBytesAtStart, err = g.mapped(); err != nil {
				return nil, err
			}
		}
		u.extraAtStart += g.takenAtStart
	}
	return u, nil
}

func (u *usage) extraBytes() (int64, error) {
	extra := u.extraAtStart
	for _, g := range u.groups {
		taken, err := g.taken()
		if err != nil {
			return 0, err
		}
		growth := taken - g.takenAtStart
		if g.mapped != nil {
			mapped, err := g.mapped()
			if err != nil {
				return 0, err
			}
			growth = max(growth, mapped-g.mappedBytesAtStart)
		}
		extra += growth
	}
	return extra, nil
}

// startUsage begins to count what both ends take. copiedBytes is what the taker took,
// where that cannot be measured.
func (m *meter) startUsage(sourceBytes int64, copiedBytes func() int64) (err error) {
	taken := func(e *end) func() (int64, error) {
		return func() (int64, error) { return takenBytes(e, e == m.taker, copiedBytes) }
	}
	giver := m.source
	if m.taker == m.source {
		giver = m.destination
	}
	given := usageGroup{taken: taken(giver), mapped: m.gives.mapped()}
	received := usageGroup{taken: taken(m.taker), mapped: m.takes.mapped()}
	groups := []usageGroup{given, received}
	if a, b := m.gives.volume(), m.takes.volume(); a != "" && a == b {
		groups = []usageGroup{{mapped: given.mapped, taken: func() (int64, error) {
			a, err := given.taken()
			b, err2 := received.taken()
			return a + b, errors.Join(err, err2)
		}}}
	}
	m.usage, err = newUsage(sourceBytes, groups...)
	return err
}

// volume is the uppermost thin volume that the end lies on, or is.
func (c *chain) volume() string {
	if pools := c.pools(); len(pools) > 0 {
		return pools[0].volume
	}
	return ""
}

func (c *chain) mapped() func() (int64, error) {
	if pools := c.pools(); len(pools) > 0 {
		return pools[0].MappedBytes
	}
	return nil
}

// takenBytes is the space that e takes. A block device that is no thin volume does not
// tell: as a source it takes its size, as a receiver what was copied to it.
func takenBytes(e *end, isTaker bool, copiedBytes func() int64) (int64, error) {
	n, err := e.AllocatedBytes()
	if !errors.Is(err, loopdev.ErrNotCountable) {
		return n, err
	}
	if isTaker {
		return copiedBytes(), nil
	}
	return e.Bytes(), nil
}
