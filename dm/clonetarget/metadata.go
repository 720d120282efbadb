package clonetarget

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"decant/dm"
	"decant/dm/persistent"
)

const (
	superblockMagic      = 0x8af27f64
	knownVersion         = 1
	metadataBlockSectors = persistent.BlockBytes / dm.SectorBytes
	maxMetadataBlocks    = 255 << 14 // what the kernel uses of a device
	maxRegions           = 1 << 31   // as the kernel has it
)

var (
	kindSuperblock = persistent.Kind{Name: "superblock", Seed: 257649492, NumberAt: 8}
	format         = &persistent.Format{
		Name:   "dm-clone metadata",
		Advice: "if no clone uses it, it is damaged; there is no tool that repairs it",
	}
	le = binary.LittleEndian
)

// What a caller may want to act on; ask with errors.Is. persistent.ErrChanging and
// persistent.ErrNotCounted come from Consistently.
var (
	// ErrBlank means that the device begins with zeros: no clone has used it yet.
	ErrBlank = errors.New("no clone has used this metadata device yet")
	// ErrUnsupported means that the format is a newer or another one.
	ErrUnsupported = errors.New("this format of dm-clone metadata is not supported")
)

// Superblock is the root of everything, as it was committed last.
type Superblock struct {
	Version            uint32
	MetadataBlocks     uint64 // of 4096 bytes; how many the target uses
	MetadataUsedBlocks uint64
	RegionSectors      uint64 // of 512 bytes, as the next one
	TargetSectors      uint64
	BitsetRoot         uint64
}

// Regions is how many there are; the last one may be shorter than the others.
func (s Superblock) Regions() uint64 { return (s.TargetSectors-1)/s.RegionSectors + 1 }

// Run is regions that follow each other.
type Run = persistent.Run

// Reader reads one committed state of a clone. It holds no resources. One goroutine at a
// time may use it.
type Reader struct {
	superblock Superblock
	blocks     *persistent.Blocks
}

// Open reads the superblock: ErrBlank if there is none yet.
//
// r must give what the device holds now and not what a cache remembers: open a device in
// use with O_DIRECT. All reads are of 4096 bytes at multiples of 4096 into memory that
// is aligned likewise. The metadata of a clone that is in use and not suspended must be
// read within Consistently.
func Open(r io.ReaderAt) (*Reader, error) {
	block, err := format.Read(r, persistent.SuperblockNumber)
	if err != nil {
		return nil, err
	}
	return open(r, block)
}

// Consistently reads what a clone in use has committed last: see persistent.Consistently,
// also for what is to be done before it may be relied on after a loss of power.
func Consistently(r io.ReaderAt, counts func() (persistent.IOCounts, error), attempts int, walk func(*Reader) error) error {
	return persistent.Consistently(format, r, counts, attempts, func(r io.ReaderAt, superblock []byte) error {
		m, err := open(r, superblock)
		if err != nil {
			return err
		}
		return walk(m)
	})
}

func open(r io.ReaderAt, block []byte) (*Reader, error) {
	s, err := parseSuperblock(block)
	if err != nil {
		return nil, err
	}
	return &Reader{superblock: s, blocks: persistent.NewBlocks(format, r, s.MetadataBlocks)}, nil
}

// Superblock is the one whose bits are read.
func (m *Reader) Superblock() Superblock { return m.superblock }

// Hydrated gives the regions that are hydrated, in order, joined as far as possible.
// After an error there is nothing more. Memory does not grow.
func (m *Reader) Hydrated() iter.Seq2[Run, error] {
	s := persistent.Bitset{
		Blocks: m.blocks, Holder: persistent.SuperblockNumber, Root: m.superblock.BitsetRoot, Bits: m.superblock.Regions(),
	}
	return s.Runs()
}

func parseSuperblock(block []byte) (Superblock, error) {
	const number = persistent.SuperblockNumber
	if len(bytes.TrimLeft(block, "\x00")) == 0 {
		return Superblock{}, fmt.Errorf("read %s: %w", format.Name, ErrBlank)
	}
	if magic := le.Uint64(block[32:]); magic != superblockMagic {
		return Superblock{}, format.Corrupt(number, "this is no superblock of a clone: its magic number is %#x and not %#x", magic, superblockMagic)
	}
	if err := format.Check(block, number, kindSuperblock); err != nil {
		return Superblock{}, err
	}
	s := Superblock{
		Version:            le.Uint32(block[40:]),
		MetadataBlocks:     le.Uint64(block[44:]), // here begins the space map, of 128 bytes
		MetadataUsedBlocks: le.Uint64(block[52:]),
		RegionSectors:      le.Uint64(block[172:]),
		TargetSectors:      le.Uint64(block[180:]),
		BitsetRoot:         le.Uint64(block[188:]),
	}
	return s, s.check()
}

func (s Superblock) check() error {
	const number = persistent.SuperblockNumber
	switch {
	case s.Version != knownVersion:
		return fmt.Errorf("read %s: it has version %d, known is %d: %w", format.Name, s.Version, knownVersion, ErrUnsupported)
	case s.MetadataBlocks < 2 || s.MetadataBlocks > maxMetadataBlocks:
		return format.Corrupt(number, "its metadata device has %d blocks, which is not between 2 and %d", s.MetadataBlocks, maxMetadataBlocks)
	case s.RegionSectors > MaxRegionBytes/dm.SectorBytes || CheckRegionBytes(int64(s.RegionSectors)*dm.SectorBytes) != nil:
		return format.Corrupt(number, "its regions have %d sectors", s.RegionSectors)
	case s.TargetSectors == 0 || s.Regions() > maxRegions:
		return format.Corrupt(number, "it is for %d sectors, with %d in a region", s.TargetSectors, s.RegionSectors)
	}
	return nil
}

// MetadataBytes is a size for the metadata device of a clone with so many regions that
// it does not outgrow.
//
// There is a block of words for each 32576 regions, and as long as a transaction is open
// there may be a second form of each, and of the nodes of the B-tree over them, which
// has at least 126 in a leaf. The space map keeps two bits for a block, with a second
// form, too. That is less than three blocks for one of words; four leave a margin, and
// 256 more are for what does not depend on the number of regions.
func MetadataBytes(regions int64) int64 {
	const regionsPerBlock = 32576
	blocks := (regions+regionsPerBlock-1)/regionsPerBlock*4 + 256
	return blocks * persistent.BlockBytes
}
