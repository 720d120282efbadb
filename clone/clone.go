package clone

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"decant/journal"
	"decant/region"
)

// Mode says what a clone still does. Modes only go down (I7).
type Mode uint32

// The modes. ReadOnly follows a failed flush or commit, or a loss that was found: nothing is copied,
// committed or discarded any more, and every byte can still be read.
const (
	ReadWrite Mode = iota
	ReadOnly
)

func (m Mode) String() string { return [...]string{"rw", "ro"}[m] }

// ErrReadOnly is what every change answers once the clone has left ReadWrite.
var ErrReadOnly = errors.New("the clone is read-only since a flush or a commit failed, or bytes were found lost")

// ErrGeometry says that the devices or the journal do not fit the geometry.
var ErrGeometry = errors.New("sizes do not fit")

// Config is what a Clone is made of. The clone uses the devices until its last
// method has returned; it closes none of them.
type Config struct {
	Source      Source
	Destination Destination
	Journal     Journal
	Geometry    region.Geometry
	// Marker is needed to discard; without one DiscardSource refuses.
	Marker Marker
	// Verify reads every region back from the destination before its
	// transaction commits.
	Verify bool
	// RepeatDiscards makes TakeCommitted hand out what the journal notes as
	// discarded, too: a power loss may have undone discards that were noted.
	RepeatDiscards bool
	// PeakExtraBytes, if set, is asked at each commit and recorded with it.
	PeakExtraBytes func() int64
	// GuestsOutlive says that guests may live on when this process dies, as file
	// systems on a block device do: then no answered write may be lost by that. See
	// the package comment.
	GuestsOutlive bool
	// Cache, if set, is where guests read and write what the destination owns.
	Cache Cache
	// BufferBytes is the most that one read or write moves; a power of two, at
	// least 4 KiB.
	BufferBytes int64
	// ZeroUnitBytes is what the destination allocates as a whole, such as a block of
	// a thin pool; 0 if that is no more than 4 KiB. Zeros are left out, or zeroed,
	// where they fill such units: what is left out of one that is written in part
	// takes its space all the same, and the pool has to fill it with zeros itself.
	ZeroUnitBytes int64
}

// Clone is a source and a destination as one device, and the only one who decides
// what may happen to a region. Its methods may be called concurrently.
type Clone struct {
	Config
	regions *regions

	direction journal.Direction
	mode      atomic.Uint32
	failure   atomic.Pointer[error] // of the flush or commit that ended ReadWrite
	guests    guests
	turns     turns
	commit    sync.Mutex   // one commit at a time
	discard   sync.Mutex   // one discard at a time, so that marks only grow
	judging   sync.Mutex   // one region in doubt is judged at a time; taken before all others
	record    sync.Mutex   // one write to the journal at a time; taken last
	marked    journal.TxID // highest mark asked for by this Clone; under discard
	buffers   buffers

	extent sourceExtent
}

// Open makes a clone of what the journal knows. It is also the recovery: whatever
// was Hydrating or Dirty in a process that is gone is Unhydrated here. What such a
// process has committed, and not noted as discarded, is not discarded before Recheck.
func Open(cfg Config) (*Clone, error) {
	if n := cfg.Geometry.DeviceBytes(); cfg.Source.Bytes() != n || cfg.Destination.Bytes() < n {
		return nil, fmt.Errorf("%w: source of %d bytes, destination of %d, journal for %d",
			ErrGeometry, cfg.Source.Bytes(), cfg.Destination.Bytes(), n)
	}
	if b := cfg.BufferBytes; b < region.MinRegionBytes || b&(b-1) != 0 {
		return nil, fmt.Errorf("%w: buffers of %d bytes", ErrGeometry, b)
	}
	state, err := cfg.Journal.Load()
	if err != nil {
		return nil, fmt.Errorf("load the journal: %w", err)
	}
	if err := checkState(state, cfg.Geometry); err != nil {
		return nil, err
	}
	doubt := state.Hydrated.Clone()
	doubt.Subtract(state.Discarded)
	if cfg.RepeatDiscards {
		state.Discarded = region.NewSet()
	}
	clean, err := cleanRegions(cfg)
	if err != nil {
		return nil, err
	}
	c := &Clone{Config: cfg, direction: state.Direction, regions: newRegions(state, clean), buffers: buffers{bytes: cfg.BufferBytes}}
	c.regions.beginDoubt(doubt)
	return c, nil
}

// cleanRegions are the regions that lie in holes of the destination.
func cleanRegions(cfg Config) (*region.Set, error) {
	clean := region.NewSet()
	d, ok := cfg.Destination.(Sparse)
	if !ok {
		return clean, nil
	}
	for off, end := int64(0), cfg.Geometry.DeviceBytes(); off < end; {
		start, next, err := d.NextData(off)
		if err != nil {
			return nil, &IOError{Side: DestinationSide, Op: "look for data", Off: off, N: end - off, Err: err}
		}
		clean.Add(cfg.Geometry.Covered(off, min(start, end)-off))
		off = max(next, off+1)
	}
	return clean, nil
}

// Close gives the memory of the clone back. It leaves devices and journal open, and
// what is Dirty uncommitted. No method may be running or be called after it.
func (c *Clone) Close() { c.buffers.close() }

// Bytes is the size of the device.
func (c *Clone) Bytes() int64 { return c.Geometry.DeviceBytes() }

// Mode is the present mode.
func (c *Clone) Mode() Mode { return Mode(c.mode.Load()) }

func (c *Clone) writable() error {
	if c.Mode() != ReadWrite {
		return ErrReadOnly
	}
	return nil
}

// abort leaves ReadWrite for good after a flush or a commit of unknown outcome,
// and takes back everything that was not committed before it (I7).
func (c *Clone) abort(step string, err error) error {
	err = fmt.Errorf("%s: %w", step, err)
	c.failure.CompareAndSwap(nil, &err)
	c.mode.Store(uint32(ReadOnly))
	c.regions.forget()
	return err
}

// Failure is the error of the flush or commit after which the clone became read-only;
// nil if there was none. Whoever is answered ErrReadOnly can tell the reason by it.
func (c *Clone) Failure() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Status is a count of regions by state at one moment. Hydrated includes the
// Discarded ones; DirtyBytes is what the next commit has to make durable.
type Status struct {
	Mode                                  Mode
	Tx                                    journal.TxID
	Regions                               uint64
	Hydrating, Dirty, Hydrated, Discarded uint64
	DirtyBytes                            int64
	CopiedBytes                           int64 // by this Clone so far, durable or not
	CommittedBytes                        int64 // of those, what became durable
	GuestBytes                            int64 // of the CommittedBytes, what was copied for guests' writes to parts of regions
}

// Unhydrated says whether some region of a range is Unhydrated.
func (c *Clone) Unhydrated(within region.Range) bool {
	r := c.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	_, some := r.claimed.MissingRange(within.Intersect(c.Geometry.All()))
	return some
}

// Dirty is a copy of the set of regions that are copied and not yet committed.
func (c *Clone) Dirty() *region.Set {
	r := c.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	dirty := r.dirty.regions.Clone()
	dirty.Union(r.sealed.regions)
	return dirty
}

// Status counts.
func (c *Clone) Status() Status {
	r := c.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	return Status{
		Mode:       c.Mode(),
		Tx:         r.tx,
		Regions:    c.Geometry.Regions(),
		Hydrating:  r.hydrating.Count(),
		Dirty:      r.dirty.regions.Count() + r.sealed.regions.Count(),
		Hydrated:   r.hydrated.Count(),
		Discarded:  r.discarded.Count(),
		DirtyBytes: r.dirty.copied.total,

		CopiedBytes:    r.copied,
		CommittedBytes: r.durable.total,
		GuestBytes:     r.durable.forGuests,
	}
}
