package journal

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"decant/region"
)

// sumChunkRegions is the number of regions whose checksums are kept in one row.
const sumChunkRegions = 256

// sumMaskBytes is the size of the bitmap that says which of them have one.
const sumMaskBytes = sumChunkRegions / 8

// NormalSum is the checksum as a journal keeps it: zero means that a region holds
// nothing but zeros, so that a real sum of zero becomes one. What is compared with
// a recorded sum has to go through it first.
func NormalSum(sum uint64) uint64 {
	if sum == 0 {
		return 1
	}
	return sum
}

// sumChunk holds the checksums of consecutive regions; zero is none.
type sumChunk [sumChunkRegions]uint64

// encode gives a bitmap of the regions that have a sum, lowest bit first, and
// after it their sums, 8 bytes each, little endian. Without any it gives nil.
func (c *sumChunk) encode() []byte {
	out := make([]byte, sumMaskBytes, sumMaskBytes+8*sumChunkRegions)
	for i, sum := range c {
		if sum != 0 {
			out[i/8] |= 1 << (i % 8)
			out = binary.LittleEndian.AppendUint64(out, sum)
		}
	}
	if len(out) == sumMaskBytes {
		return nil
	}
	return out
}

var errSums = errors.New("checksums are malformed")

func decodeSums(encoded []byte) (*sumChunk, error) {
	if len(encoded) < sumMaskBytes {
		return nil, errSums
	}
	mask, sums := encoded[:sumMaskBytes], encoded[sumMaskBytes:]
	present := 0
	for _, b := range mask {
		present += bits.OnesCount8(b)
	}
	if present == 0 || len(sums) != 8*present {
		return nil, errSums
	}
	c := &sumChunk{}
	for i := range c {
		if mask[i/8]>>(i%8)&1 == 0 {
			continue
		}
		c[i] = binary.LittleEndian.Uint64(sums)
		sums = sums[8:]
		if c[i] == 0 {
			return nil, errSums
		}
	}
	return c, nil
}

// sumChunks is the range of chunks that hold the checksums of r, first to last,
// last included. It must not be empty.
func sumChunks(r region.Range) (first, last uint64) {
	return uint64(r.First) / sumChunkRegions, uint64(r.End()-1) / sumChunkRegions
}
