package metadata

import (
	"fmt"
	"io"
	"iter"

	"decant/dm/persistent"
)

const (
	detailsBytes = 24
	mappingBytes = 8
	rootBytes    = 8
)

// Options say what Open reads.
type Options struct {
	// Held reads the metadata snapshot that the pool holds, instead of what it
	// committed last.
	Held bool
}

// Reader reads one committed state of a pool. It holds no resources. One goroutine at
// a time may use it; iterators of the same Reader may run interleaved.
type Reader struct {
	blocks     *persistent.Blocks
	superblock Superblock
	dataBlocks uint64 // how many there are; a held metadata snapshot does not say
}

// Device is a thin device of the pool.
type Device struct {
	ID              uint32
	MappedBlocks    uint64 // how many of its blocks have a data block
	TransactionID   uint64 // of the pool, when the device was made
	CreationTime    uint32 // on the pool's clock
	SnapshottedTime uint32 // on the pool's clock: when it was last snapshotted, or made as a snapshot
}

// BreaksSharing says whether the kernel takes the blocks of this mapping of the device
// for shared, so that a write gives the device a new block instead of changing the old
// one. It goes by time alone: a block stays shared in that sense until it has been
// written, even if the other device has been deleted since.
func (d Device) BreaksSharing(m Mapping) bool { return d.SnapshottedTime > m.Time }

// Mapping is a run of blocks of a thin device that follow each other on the data device
// too and were allocated at the same time.
type Mapping struct {
	VirtualBlock uint64 // the first, on the thin device
	DataBlock    uint64 // the first, on the data device
	Blocks       uint64 // how many; at least 1
	Time         uint32 // on the pool's clock; 24 bits
}

// Open reads the superblock and, with Options.Held, that of the metadata snapshot
// (ErrNotHeld if there is none).
//
// r must give what the device holds now and not what a cache remembers: open a device
// of a pool in use with O_DIRECT. All reads are of 4096 bytes at multiples of 4096 into
// memory that is aligned likewise. The Reader keeps some blocks that it has read, so it
// gives no news; open another one for that.
//
// Of a pool in use, a held snapshot can be read for as long as it is held. What was
// committed last must be read within Consistently.
func Open(r io.ReaderAt, o Options) (*Reader, error) {
	live, err := format.Read(r, superblockNumber)
	if err != nil {
		return nil, err
	}
	return open(r, o, live)
}

func open(r io.ReaderAt, o Options, superblock []byte) (*Reader, error) {
	live, err := parseSuperblock(superblock, superblockNumber)
	if err != nil {
		return nil, err
	}
	if err := live.checkLive(); err != nil {
		return nil, err
	}
	m := &Reader{
		blocks:     persistent.NewBlocks(format, r, live.MetadataSpaceMap.Blocks),
		superblock: live,
		dataBlocks: live.DataSpaceMap.Blocks,
	}
	if !o.Held {
		return m, nil
	}
	if live.HeldRoot == 0 {
		return nil, fmt.Errorf("open the held metadata snapshot: %w; send the pool reserve_metadata_snap first", ErrNotHeld)
	}
	held, err := m.blocks.Follow(superblockNumber, live.HeldRoot, kindSuperblock)
	if err != nil {
		return nil, err
	}
	m.superblock, err = parseSuperblock(held, live.HeldRoot)
	return m, err
}

// Superblock is the one whose trees are read.
func (m *Reader) Superblock() Superblock { return m.superblock }

// DataBlocks is the size of the data device in blocks, as it was committed last.
func (m *Reader) DataBlocks() uint64 { return m.dataBlocks }

// Devices gives all thin devices, by ascending id. After an error there is nothing more.
func (m *Reader) Devices() iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		err := m.details().Entries(0, func(e persistent.Entry) (bool, error) {
			d, err := parseDevice(e)
			if err != nil {
				return false, err
			}
			return yield(d, nil), nil
		})
		if err != nil {
			yield(Device{}, err)
		}
	}
}

// Device gives one thin device. ErrNoDevice if there is none with this id.
func (m *Reader) Device(id uint32) (Device, error) {
	e, found, err := m.details().Lookup(uint64(id))
	if err != nil {
		return Device{}, err
	}
	if !found {
		return Device{}, fmt.Errorf("look up thin %d: %w", id, ErrNoDevice)
	}
	return parseDevice(e)
}

func (m *Reader) details() *persistent.Tree {
	return &persistent.Tree{Blocks: m.blocks, Holder: m.superblock.Block, Root: m.superblock.DeviceDetailsRoot, ValueBytes: detailsBytes}
}

func parseDevice(e persistent.Entry) (Device, error) {
	if e.Key > maxThinID {
		return Device{}, format.Corrupt(e.Block, "it has a thin device %d, and ids end with %d", e.Key, maxThinID)
	}
	return Device{
		ID:              uint32(e.Key),
		MappedBlocks:    le.Uint64(e.Value),
		TransactionID:   le.Uint64(e.Value[8:]),
		CreationTime:    le.Uint32(e.Value[16:]),
		SnapshottedTime: le.Uint32(e.Value[20:]),
	}, nil
}

// Mappings gives what the device with this id maps from virtual block from on, in
// order. A run that holds block from begins with it. After an error (ErrNoDevice, for
// one) there is nothing more.
//
// To begin somewhere costs as many reads as the tree is deep. Memory does not grow.
func (m *Reader) Mappings(id uint32, from uint64) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		t, err := m.mappingTree(id)
		if err != nil {
			yield(Mapping{}, err)
			return
		}
		exclusive := func(SharedMapping) bool { return false } // that is not asked here
		for run, err := range m.runs(t, from, exclusive) {
			if !yield(run.Mapping, err) {
				return
			}
		}
	}
}

// NextMapped gives the first mapped blocks at or after a virtual block. It reads no more
// than one way from the root to a leaf, so what it gives may go on behind its end. Not
// found and no error means that nothing is mapped from there on.
func (m *Reader) NextMapped(id uint32, from uint64) (run Mapping, found bool, err error) {
	t, err := m.mappingTree(id)
	if err != nil {
		return Mapping{}, false, err
	}
	var first SharedMapping
	err = t.Entries(from, func(e persistent.Entry) (bool, error) {
		next, err := m.parseMapping(e)
		switch {
		case err != nil:
			return false, err
		case first.Blocks == 0:
			first = next
		case !first.joins(next):
			return false, nil
		default:
			first.Blocks++
		}
		return !e.Last, nil
	})
	if err != nil {
		return Mapping{}, false, err
	}
	return first.Mapping, first.Blocks > 0, nil
}

// mappingTree of one device, from the tree of all.
func (m *Reader) mappingTree(id uint32) (*persistent.Tree, error) {
	top := &persistent.Tree{Blocks: m.blocks, Holder: m.superblock.Block, Root: m.superblock.DataMappingRoot, ValueBytes: rootBytes}
	e, found, err := top.Lookup(uint64(id))
	if err != nil {
		return nil, err
	}
	if !found {
		if _, err := m.Device(id); err != nil {
			return nil, err
		}
		return nil, format.Corrupt(top.Root, "the tree of mappings has no thin %d, and the tree of details has", id)
	}
	return &persistent.Tree{Blocks: m.blocks, Holder: e.Block, Root: le.Uint64(e.Value), ValueBytes: mappingBytes}, nil
}

// runs joins the entries of a mapping tree.
func (m *Reader) runs(t *persistent.Tree, from uint64, shared func(SharedMapping) bool) iter.Seq2[SharedMapping, error] {
	return func(yield func(SharedMapping, error) bool) {
		var run SharedMapping
		wanted := true
		err := t.Entries(from, func(e persistent.Entry) (bool, error) {
			next, err := m.parseMapping(e)
			if err != nil {
				return false, err
			}
			next.Shared = shared(next)
			if run.joins(next) {
				run.Blocks++
				return true, nil
			}
			if run.Blocks > 0 {
				wanted = yield(run, nil)
			}
			run = next
			return wanted, nil
		})
		if err == nil && wanted && run.Blocks > 0 {
			yield(run, nil)
		} else if err != nil {
			yield(SharedMapping{}, err)
		}
	}
}

func (run SharedMapping) joins(next SharedMapping) bool {
	return run.Blocks > 0 && next.VirtualBlock == run.VirtualBlock+run.Blocks &&
		next.DataBlock == run.DataBlock+run.Blocks && next.Time == run.Time && next.Shared == run.Shared
}

func (m *Reader) parseMapping(e persistent.Entry) (SharedMapping, error) {
	value := le.Uint64(e.Value)
	run := SharedMapping{
		Mapping{VirtualBlock: e.Key, DataBlock: value >> timeBits, Blocks: 1, Time: uint32(value & (1<<timeBits - 1))},
		e.Shared,
	}
	if run.DataBlock >= m.dataBlocks {
		return run, format.Corrupt(e.Block, "it maps virtual block %d to data block %d of %d", e.Key, run.DataBlock, m.dataBlocks)
	}
	if e.Key >= maxDeviceBytes/uint64(m.superblock.DataBlockBytes()) {
		return run, format.Corrupt(e.Block, "it maps virtual block %d, which no device is large enough for", e.Key)
	}
	return run, nil
}
