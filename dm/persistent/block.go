package persistent

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

const sectorBytes = 512

// SuperblockNumber is the block where every format has its superblock.
const SuperblockNumber = 0

// cacheBlocks bounds what Blocks keeps in memory, together with the way from the root of
// a tree to a leaf of each iterator that is running.
const cacheBlocks = 256

// Kind is a kind of block. Its checksum is combined with a number, so that a block of
// one kind does not pass for one of another.
type Kind struct {
	Name     string // for messages
	Seed     uint32 // what the checksum is combined with
	NumberAt int    // where in the block its own number is, 64 bits
}

// The kinds that all formats have in common.
var (
	KindNode  = Kind{Name: "B-tree node", Seed: 121107, NumberAt: 8}
	KindArray = Kind{Name: "array block", Seed: 595846735, NumberAt: 16}
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is over everything but the checksum itself, which a block begins with. The
// kernel's CRC is not inverted at the end.
func Checksum(block []byte, k Kind) uint32 {
	return ^crc32.Checksum(block[4:], castagnoli) ^ k.Seed
}

var le = binary.LittleEndian

// Format is what is known of a format of metadata beside its blocks, for messages.
type Format struct {
	Name   string // "thin metadata", for one
	Advice string // what to do about a damaged block
}

// Check compares the checksum of a block, and the number that it gives itself. A block
// that is not as it has to be is a CorruptError.
func (f *Format) Check(block []byte, number uint64, k Kind) error {
	if sum, want := le.Uint32(block), Checksum(block, k); sum != want {
		return f.Corrupt(number, "the checksum is %#08x, as a %s it would be %#08x", sum, k.Name, want)
	}
	if own := le.Uint64(block[k.NumberAt:]); own != number {
		return f.Corrupt(number, "it says that it is block %d", own)
	}
	return nil
}

// Read reads a block without a look at what is in it.
func (f *Format) Read(r io.ReaderAt, number uint64) ([]byte, error) {
	block := AlignedBlock()
	n, err := r.ReadAt(block, int64(number)*BlockBytes)
	if n == BlockBytes {
		return block, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("read %s block %d: got %d of %d bytes: %w", f.Name, number, n, BlockBytes, err)
}

// AlignedBlock is memory for one block that direct I/O takes.
func AlignedBlock() []byte {
	block := make([]byte, BlockBytes)
	if uintptr(unsafe.Pointer(&block[0]))%BlockBytes == 0 { // as Go's allocator has it
		return block
	}
	block = make([]byte, 2*BlockBytes)
	skip := int(-uintptr(unsafe.Pointer(&block[0])) & (BlockBytes - 1))
	return block[skip : skip+BlockBytes : skip+BlockBytes]
}

// Blocks reads and checks, and keeps the most recent blocks: an old one goes when a new
// one comes, in the order in which they came. One goroutine at a time may use it.
type Blocks struct {
	format *Format
	r      io.ReaderAt
	number uint64 // how many blocks the metadata device has, for its space map
	cached map[uint64]checked
	queue  [cacheBlocks]uint64
	next   int
}

type checked struct {
	kind  Kind
	bytes []byte // nobody writes to it any more
}

// NewBlocks are those of a device that has that number of them.
func NewBlocks(f *Format, r io.ReaderAt, number uint64) *Blocks {
	return &Blocks{format: f, r: r, number: number, cached: map[uint64]checked{}}
}

func (b *Blocks) read(number uint64, k Kind) ([]byte, error) {
	if c, ok := b.cached[number]; ok && c.kind == k {
		return c.bytes, nil
	}
	block, err := b.format.Read(b.r, number)
	if err != nil {
		return nil, err
	}
	if err := b.format.Check(block, number, k); err != nil {
		return nil, err
	}
	delete(b.cached, b.queue[b.next])
	b.cached[number] = checked{k, block}
	b.queue[b.next] = number
	b.next = (b.next + 1) % cacheBlocks
	return block, nil
}

// Follow reads the block that an entry of another block leads to. It is not to be
// written to.
func (b *Blocks) Follow(from, number uint64, k Kind) ([]byte, error) {
	if number == 0 || number >= b.number {
		return nil, b.format.Corrupt(from, "it leads to block %d, and a %s can only be in blocks 1 to %d", number, k.Name, b.number-1)
	}
	return b.read(number, k)
}
