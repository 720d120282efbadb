package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unsafe"
)

// BlockBytes is the size of a metadata block. All reads are of this size, at multiples
// of it, into memory that begins at a multiple of it.
const BlockBytes = 4096

// cacheBlocks bounds what a Reader keeps in memory, together with the way from the
// root of a tree to a leaf of each iterator that is running.
const cacheBlocks = 256

// kind is what a checksum is combined with, so that a block of one kind does not pass
// for one of another.
type kind uint32

const (
	kindSuperblock kind = 160774
	kindNode       kind = 121107
	kindBitmap     kind = 240779
)

func (k kind) String() string {
	switch k {
	case kindSuperblock:
		return "superblock"
	case kindNode:
		return "B-tree node"
	case kindBitmap:
		return "space map bitmap"
	default:
		return fmt.Sprintf("kind %d", uint32(k))
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is over everything but the checksum itself. The kernel's CRC is not
// inverted at the end.
func checksum(block []byte, k kind) uint32 {
	return ^crc32.Checksum(block[4:], castagnoli) ^ uint32(k)
}

var le = binary.LittleEndian

// All kinds of block begin with checksum (4 bytes), something (4), own number (8).
const headerNumber = 8

func checkHeader(block []byte, number uint64, k kind) error {
	if sum, want := le.Uint32(block), checksum(block, k); sum != want {
		return corrupt(number, "the checksum is %#08x, as a %s it would be %#08x", sum, k, want)
	}
	if own := le.Uint64(block[headerNumber:]); own != number {
		return corrupt(number, "it says that it is block %d", own)
	}
	return nil
}

// readRaw reads a block without a look at what is in it.
func readRaw(r io.ReaderAt, number uint64) ([]byte, error) {
	block := alignedBlock()
	n, err := r.ReadAt(block, int64(number)*BlockBytes)
	if n == BlockBytes {
		return block, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("read thin metadata block %d: got %d of %d bytes: %w", number, n, BlockBytes, err)
}

// alignedBlock is memory that direct I/O takes.
func alignedBlock() []byte {
	block := make([]byte, BlockBytes)
	if uintptr(unsafe.Pointer(&block[0]))%BlockBytes == 0 { // as Go's allocator has it
		return block
	}
	block = make([]byte, 2*BlockBytes)
	skip := int(-uintptr(unsafe.Pointer(&block[0])) & (BlockBytes - 1))
	return block[skip : skip+BlockBytes : skip+BlockBytes]
}

// blocks reads and checks, and keeps the most recent blocks: an old one goes when a new
// one comes, in the order in which they came.
type blocks struct {
	r      io.ReaderAt
	number uint64 // how many blocks the metadata device has, for its space map
	cached map[uint64]checked
	queue  [cacheBlocks]uint64
	next   int
}

type checked struct {
	kind  kind
	bytes []byte // nobody writes to it any more
}

func (b *blocks) read(number uint64, k kind) ([]byte, error) {
	if c, ok := b.cached[number]; ok && c.kind == k {
		return c.bytes, nil
	}
	block, err := readRaw(b.r, number)
	if err != nil {
		return nil, err
	}
	if err := checkHeader(block, number, k); err != nil {
		return nil, err
	}
	delete(b.cached, b.queue[b.next])
	b.cached[number] = checked{k, block}
	b.queue[b.next] = number
	b.next = (b.next + 1) % cacheBlocks
	return block, nil
}

// follow reads the block that an entry of another block leads to.
func (b *blocks) follow(from, number uint64, k kind) ([]byte, error) {
	if number == 0 || number >= b.number {
		return nil, corrupt(from, "it leads to block %d, and a %s can only be in blocks 1 to %d", number, k, b.number-1)
	}
	return b.read(number, k)
}
