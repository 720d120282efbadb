package metadata

import (
	"fmt"
	"io"
	"math"

	"decant/dm/persistent"
)

const (
	superblockNumber  = persistent.SuperblockNumber
	superblockMagic   = 27022010
	flagNeedsCheck    = 1
	newestVersion     = 2
	metadataSectors   = BlockBytes / sectorBytes
	sectorBytes       = 512
	minDataSectors    = 64 << 10 / sectorBytes
	maxDataSectors    = 1 << 30 / sectorBytes
	maxMetadataBlocks = 255 << 14 // what the kernel uses of a device
	maxDataBlocks     = 1 << 40   // the width of the field in a mapping
	maxDeviceBytes    = math.MaxInt64
	maxThinID         = 1<<24 - 1
	timeBits          = 24
)

// Superblock is the root of everything, as it was committed last, or as it was when
// the metadata snapshot was taken.
type Superblock struct {
	Block            uint64 // where it was read: 0, or the held root
	NeedsCheck       bool   // the kernel met an error and goes on only after thin_check
	UUID             [16]byte
	Version          uint32
	Time             uint32 // the pool's clock, which a snapshot advances
	TransactionID    uint64 // the one that user space sets
	HeldRoot         uint64 // the block of the held metadata snapshot's superblock; 0 is none
	DataSpaceMap     SpaceMap
	MetadataSpaceMap SpaceMap
	// DataMappingRoot and DeviceDetailsRoot are the roots of the two trees.
	DataMappingRoot   uint64
	DeviceDetailsRoot uint64
	DataBlockSectors  uint32 // sectors of 512 bytes in a data block
	// MetadataBlocks is the size of the metadata device when it was formatted. When it
	// has grown since, only its space map knows.
	MetadataBlocks uint64
	CompatFlags    uint32
	CompatROFlags  uint32
	IncompatFlags  uint32
}

// SpaceMap tells the size of a device and where its reference counts are. In a held
// metadata snapshot it is zero.
type SpaceMap struct {
	Blocks          uint64 // the device has
	AllocatedBlocks uint64 // have a reference count above zero
	BitmapRoot      uint64
	RefCountRoot    uint64
}

// DataBlockBytes is the size of a data block.
func (s Superblock) DataBlockBytes() int64 { return int64(s.DataBlockSectors) * sectorBytes }

// ReadSuperblock reads and checks block 0. A single read of it is consistent by
// itself, also on a pool in use: the kernel writes it as one sector. (A torn read shows
// in the checksum.)
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	block, err := format.Read(r, superblockNumber)
	if err != nil {
		return Superblock{}, err
	}
	return parseSuperblock(block, superblockNumber)
}

func parseSuperblock(block []byte, number uint64) (Superblock, error) {
	if magic := le.Uint64(block[32:]); magic != superblockMagic {
		return Superblock{}, format.Corrupt(number, "this is no superblock of a thin pool: its magic number is %d and not %d", magic, superblockMagic)
	}
	if err := format.Check(block, number, kindSuperblock); err != nil {
		return Superblock{}, err
	}
	s := Superblock{
		Block:             number,
		NeedsCheck:        le.Uint32(block[4:])&flagNeedsCheck != 0,
		UUID:              [16]byte(block[16:]),
		Version:           le.Uint32(block[40:]),
		Time:              le.Uint32(block[44:]),
		TransactionID:     le.Uint64(block[48:]),
		HeldRoot:          le.Uint64(block[56:]),
		DataSpaceMap:      parseSpaceMap(block[64:]),
		MetadataSpaceMap:  parseSpaceMap(block[192:]),
		DataMappingRoot:   le.Uint64(block[320:]),
		DeviceDetailsRoot: le.Uint64(block[328:]),
		DataBlockSectors:  le.Uint32(block[336:]),
		MetadataBlocks:    le.Uint64(block[344:]),
		CompatFlags:       le.Uint32(block[352:]),
		CompatROFlags:     le.Uint32(block[356:]),
		IncompatFlags:     le.Uint32(block[360:]),
	}
	return s, s.check(le.Uint32(block[340:]))
}

func parseSpaceMap(root []byte) SpaceMap {
	return SpaceMap{
		Blocks: le.Uint64(root), AllocatedBlocks: le.Uint64(root[8:]),
		BitmapRoot: le.Uint64(root[16:]), RefCountRoot: le.Uint64(root[24:]),
	}
}

func (s Superblock) check(blockSectors uint32) error {
	switch {
	case s.Version == 0 || s.Version > newestVersion:
		return fmt.Errorf("read thin metadata block %d: it has version %d, known are 1 to %d: %w", s.Block, s.Version, newestVersion, ErrUnsupported)
	case s.IncompatFlags != 0:
		return fmt.Errorf("read thin metadata block %d: it has incompatible features %#x: %w", s.Block, s.IncompatFlags, ErrUnsupported)
	case blockSectors != metadataSectors:
		return format.Corrupt(s.Block, "its metadata blocks have %d sectors and not %d", blockSectors, metadataSectors)
	case s.DataBlockSectors < minDataSectors || s.DataBlockSectors > maxDataSectors || s.DataBlockSectors%minDataSectors != 0:
		return format.Corrupt(s.Block, "its data blocks have %d sectors, which is no multiple of %d up to %d", s.DataBlockSectors, minDataSectors, maxDataSectors)
	}
	return nil
}

// checkLive checks what only the superblock in block 0 has.
func (s Superblock) checkLive() error {
	switch {
	case s.MetadataSpaceMap.Blocks < 2 || s.MetadataSpaceMap.Blocks > maxMetadataBlocks:
		return format.Corrupt(s.Block, "its metadata device has %d blocks, which is not between 2 and %d", s.MetadataSpaceMap.Blocks, maxMetadataBlocks)
	case s.DataSpaceMap.Blocks > maxDataBlocks:
		return format.Corrupt(s.Block, "its data device has %d blocks, which is more than %d", s.DataSpaceMap.Blocks, uint64(maxDataBlocks))
	case s.HeldRoot >= s.MetadataSpaceMap.Blocks:
		return format.Corrupt(s.Block, "its held root is block %d of %d", s.HeldRoot, s.MetadataSpaceMap.Blocks)
	}
	return nil
}
