package metadata

import (
	"fmt"

	"decant/dm/persistent"
)

const (
	indexBytes        = 16 // block of a bitmap, how many of its blocks are free, where the first may be
	refCountBytes     = 4
	bitmapHeaderBytes = 16
	countsPerByte     = 4
	countsPerBitmap   = (BlockBytes - bitmapHeaderBytes) * countsPerByte
	countElsewhere    = 3 // in a bitmap: above 2, the second tree has it
)

// RefCount is how many leaf nodes name a data block, those of a held metadata snapshot
// included; 0 is a free block. Devices that share the leaf itself, as a snapshot and
// its origin do until one of them is written, count as one: 1 does not mean that the
// block belongs to one device alone. That is what Sharing tells. ErrNoSpaceMap in a
// held metadata snapshot.
func (m *Reader) RefCount(dataBlock uint64) (uint32, error) {
	s := m.superblock.DataSpaceMap
	if s.BitmapRoot == 0 {
		return 0, fmt.Errorf("count the references of data block %d: %w", dataBlock, ErrNoSpaceMap)
	}
	if dataBlock >= s.Blocks {
		return 0, fmt.Errorf("count the references of data block %d: the data device has %d blocks", dataBlock, s.Blocks)
	}
	index := m.spaceMapTree(s.BitmapRoot, indexBytes)
	e, found, err := index.Lookup(dataBlock / countsPerBitmap)
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, format.Corrupt(s.BitmapRoot, "the space map has no bitmap for data block %d", dataBlock)
	}
	bitmap, err := m.blocks.Follow(e.Block, le.Uint64(e.Value), kindBitmap)
	if err != nil {
		return 0, err
	}
	if count := bitmapCount(bitmap, dataBlock%countsPerBitmap); count != countElsewhere {
		return count, nil
	}
	return m.largeRefCount(dataBlock)
}

// bitmapCount reads two bits of which the first is the more significant one.
func bitmapCount(bitmap []byte, i uint64) uint32 {
	bits := bitmap[bitmapHeaderBytes+i/countsPerByte] >> (i % countsPerByte * 2)
	return uint32(bits&1<<1 | bits>>1&1)
}

func (m *Reader) largeRefCount(dataBlock uint64) (uint32, error) {
	root := m.superblock.DataSpaceMap.RefCountRoot
	e, found, err := m.spaceMapTree(root, refCountBytes).Lookup(dataBlock)
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, format.Corrupt(root, "the space map has no reference count for data block %d, and the bitmap says that it is here", dataBlock)
	}
	count := le.Uint32(e.Value)
	if count < countElsewhere {
		return 0, format.Corrupt(e.Block, "data block %d has reference count %d, which belongs into the bitmap", dataBlock, count)
	}
	return count, nil
}

func (m *Reader) spaceMapTree(root uint64, valueBytes uint32) *persistent.Tree {
	return &persistent.Tree{Blocks: m.blocks, Holder: m.superblock.Block, Root: root, ValueBytes: valueBytes}
}
