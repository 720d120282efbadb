package thin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"decant/dm"
	"decant/loopdev"
)

// superblock is what this package needs to know from the first block of a metadata
// device, in the form that the kernel and thin-provisioning-tools give it.
type superblock struct {
	transactionID  uint64
	dataBlocks     int64 // that the metadata knows of
	dataUsedBlocks int64
	blockBytes     int64 // of data
}

var (
	// errNoSuperblock: no thin pool was ever made on the device.
	errNoSuperblock = errors.New("holds no metadata of a thin pool")
	errSuperblock   = errors.New("holds metadata of a thin pool that is damaged")
)

// Offsets and constants of the kernel's drivers/md/dm-thin-metadata.c.
const (
	superblockMagic       = 27022010
	superblockChecksumXOR = 160774
	superblockMagicAt     = 32
	superblockTxAt        = 48
	superblockDataMapAt   = 64 // number of blocks, then number of those in use
	superblockBlockAt     = 336
)

// readSuperblock reads the superblock of a metadata device. It is errNoSuperblock if
// there is none.
func readSuperblock(metadata io.ReaderAt) (superblock, error) {
	b := loopdev.AlignedBuffer(metadataBlockBytes)
	if _, err := metadata.ReadAt(b, 0); err != nil {
		return superblock{}, err
	}
	return decodeSuperblock(b)
}

func decodeSuperblock(b []byte) (superblock, error) {
	le := binary.LittleEndian
	if le.Uint64(b[superblockMagicAt:]) != superblockMagic {
		return superblock{}, errNoSuperblock
	}
	// The kernel leaves off the inversion that usually ends a CRC.
	if sum := ^crc32.Checksum(b[4:], castagnoli) ^ superblockChecksumXOR; le.Uint32(b) != sum {
		return superblock{}, fmt.Errorf("%w: the checksum of its superblock is wrong", errSuperblock)
	}
	s := superblock{
		transactionID:  le.Uint64(b[superblockTxAt:]),
		dataBlocks:     int64(le.Uint64(b[superblockDataMapAt:])),
		dataUsedBlocks: int64(le.Uint64(b[superblockDataMapAt+8:])),
		blockBytes:     int64(le.Uint32(b[superblockBlockAt:])) * dm.SectorBytes,
	}
	if checkBlockBytes(s.blockBytes) != nil || s.dataUsedBlocks < 0 || s.dataBlocks < s.dataUsedBlocks || s.dataBlocks > maxDataBytes/s.blockBytes {
		return superblock{}, fmt.Errorf("%w: it has %d of %d blocks of %d bytes", errSuperblock, s.dataUsedBlocks, s.dataBlocks, s.blockBytes)
	}
	return s, nil
}
