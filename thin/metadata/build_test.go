package metadata

import (
	"bytes"
	"testing"

	"decant/dm/persistent"
)

// The form of blocks that package persistent reads.
const (
	headerNumber    = 8
	nodeHeaderBytes = 32
	keyBytes        = 8
	childBytes      = 8
	flagInternal    = 1
	flagLeaf        = 2
)

// image is a metadata device in memory, block by block, with the kind of each, so that
// what is changed can get a checksum that fits.
type image struct {
	bytes []byte
	kinds map[uint64]persistent.Kind
}

func (i *image) block(number uint64) []byte {
	return i.bytes[number*BlockBytes:][:BlockBytes]
}

// seal gives all blocks their number and checksum.
func (i *image) seal() {
	for number, k := range i.kinds {
		block := i.block(number)
		le.PutUint64(block[headerNumber:], number)
		le.PutUint32(block, persistent.Checksum(block, k))
	}
}

func (i *image) reader() *bytes.Reader { return bytes.NewReader(i.bytes) }

// Blocks of the built image.
const (
	builtDetails = 1 + iota
	builtTop
	builtRoot      // of the mappings of thin 1
	builtLeft      // a leaf below it
	builtRight     // another one, which thin 2 has as its root
	builtIndex     // of the data space map
	builtBitmap    // one
	builtRefCounts // those that are not in the bitmap
	builtHeld
	builtBlocks
)

const (
	builtDataBlocks = 100
	manyTimes       = 70 // a data block with a reference count that is not in the bitmap
)

// build makes by hand what a kernel might have written: two devices of which the
// second is all of the first's upper half, and a held metadata snapshot of the same.
func build() *image {
	i := &image{make([]byte, builtBlocks*BlockBytes), map[uint64]persistent.Kind{
		superblockNumber: kindSuperblock, builtHeld: kindSuperblock, builtBitmap: kindBitmap,
	}}
	i.superblock(superblockNumber, builtHeld)
	space(i.block(superblockNumber)[64:], SpaceMap{builtDataBlocks, 6, builtIndex, builtRefCounts})
	space(i.block(superblockNumber)[192:], SpaceMap{Blocks: builtBlocks})
	i.superblock(builtHeld, 0)
	i.node(builtDetails, flagLeaf, detailsBytes, map[uint64][]uint64{1: {6, 3, 2 << 32}, 2: {3, 4, 2<<32 | 2}})
	i.node(builtTop, flagLeaf, rootBytes, map[uint64][]uint64{1: {builtRoot}, 2: {builtRight}})
	i.node(builtRoot, flagInternal, childBytes, map[uint64][]uint64{10: {builtLeft}, 50: {builtRight}})
	i.node(builtLeft, flagLeaf, mappingBytes, map[uint64][]uint64{10: {20 << timeBits}, 11: {21 << timeBits}, 49: {manyTimes<<timeBits | 1}})
	i.node(builtRight, flagLeaf, mappingBytes, map[uint64][]uint64{50: {71<<timeBits | 1}, 51: {72<<timeBits | 1}, 60: {90<<timeBits | 5}})
	i.node(builtIndex, flagLeaf, indexBytes, map[uint64][]uint64{0: {builtBitmap, builtDataBlocks - 6}})
	for _, data := range []int{20, 21, 71, 72, 90} {
		i.block(builtBitmap)[bitmapHeaderBytes+data/4] |= 2 << (data % 4 * 2) // 1
	}
	i.block(builtBitmap)[bitmapHeaderBytes+manyTimes/4] |= 3 << (manyTimes % 4 * 2)
	i.node(builtRefCounts, flagLeaf, refCountBytes, map[uint64][]uint64{manyTimes: {5}})
	i.seal()
	return i
}

func (i *image) superblock(number, held uint64) {
	b := i.block(number)
	le.PutUint64(b[32:], superblockMagic)
	le.PutUint32(b[40:], newestVersion)
	le.PutUint32(b[44:], 6) // time
	le.PutUint64(b[48:], 8) // transaction
	le.PutUint64(b[56:], held)
	le.PutUint64(b[320:], builtTop)
	le.PutUint64(b[328:], builtDetails)
	le.PutUint32(b[336:], minDataSectors)
	le.PutUint32(b[340:], metadataSectors)
	le.PutUint64(b[344:], builtBlocks)
}

func space(to []byte, s SpaceMap) {
	for i, v := range []uint64{s.Blocks, s.AllocatedBlocks, s.BitmapRoot, s.RefCountRoot} {
		le.PutUint64(to[8*i:], v)
	}
}

// node of entries whose values are 64-bit words, the last one cut off where values are
// shorter.
func (i *image) node(number uint64, flags, valueBytes uint32, entries map[uint64][]uint64) {
	i.kinds[number] = persistent.KindNode
	b := i.block(number)
	most := (BlockBytes - nodeHeaderBytes) / (keyBytes + valueBytes) / 3 * 3
	le.PutUint32(b[4:], flags)
	le.PutUint32(b[16:], uint32(len(entries)))
	le.PutUint32(b[20:], most)
	le.PutUint32(b[24:], valueBytes)
	values := b[nodeHeaderBytes+most*keyBytes:]
	for at, key := range sorted(entries) {
		le.PutUint64(b[nodeHeaderBytes+at*keyBytes:], key)
		var words []byte
		for _, word := range entries[key] {
			words = le.AppendUint64(words, word)
		}
		copy(values[at*int(valueBytes):][:valueBytes], words)
	}
}

func builtPool() *pool {
	upper := []Mapping{{50, 71, 2, 1}, {60, 90, 1, 5}}
	return &pool{Time: 6, TransactionID: 8, DataBlockSectors: minDataSectors, DataBlocks: builtDataBlocks, Devices: []thin{
		{Device{1, 6, 3, 0, 2}, []Mapping{{10, 20, 2, 0}, {49, manyTimes, 3, 1}, {60, 90, 1, 5}}},
		{Device{2, 3, 4, 2, 2}, upper},
	}}
}

func TestReadsWhatWasBuilt(t *testing.T) {
	wantPool(t, readImage(t, build().reader()), builtPool())
}

func TestHeldSnapshot(t *testing.T) {
	i := build()
	le.PutUint64(i.block(superblockNumber)[320:], builtLeft) // the live tree is another one by now
	le.PutUint32(i.block(builtHeld)[44:], 5)
	i.seal()
	m, err := Open(i.reader(), Options{Held: true})
	must(t, err)
	got, err := read(m)
	must(t, err)
	want := builtPool()
	want.Time = 5
	wantPool(t, got, want)
	if s := m.Superblock(); s.Block != builtHeld {
		t.Errorf("superblock %+v", s)
	}
}

// Two devices share a node of which each data block has reference count 1.
func TestSharedNodes(t *testing.T) {
	m, err := Open(build().reader(), Options{})
	must(t, err)
	for data, want := range map[uint64]uint32{20: 1, 71: 1, manyTimes: 5, 22: 0} {
		if got, err := m.RefCount(data); err != nil || got != want {
			t.Errorf("data block %d has %d references, %v, want %d", data, got, err, want)
		}
	}
	s, err := m.Sharing()
	must(t, err)
	for id, want := range map[uint32]uint64{1: 3, 2: 0} {
		if got, err := s.ExclusiveBlocks(id); err != nil || got != want {
			t.Errorf("thin %d has %d blocks of its own, %v, want %d", id, got, err, want)
		}
	}
	var got []SharedMapping
	for run, err := range s.Mappings(1, 11) {
		must(t, err)
		got = append(got, run)
	}
	want := []SharedMapping{{Mapping{11, 21, 1, 0}, false}, {Mapping{49, manyTimes, 1, 1}, false}, {Mapping{50, 71, 2, 1}, true}, {Mapping{60, 90, 1, 5}, true}}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("run %d is %v, want %v", i, got[i], want[i])
		}
	}
}

// The run from block 49 on goes on in the next leaf.
func TestNextMappedReadsOneLeaf(t *testing.T) {
	reads := &readCounter{r: build().reader()}
	m, err := Open(reads, Options{})
	must(t, err)
	run, found, err := m.NextMapped(1, 12)
	if want := (Mapping{49, manyTimes, 1, 1}); err != nil || !found || run != want {
		t.Errorf("got %v %v, %v, want %v", run, found, err, want)
	}
	if superblock, top, levels := 1, 1, 2; reads.n != superblock+top+levels {
		t.Errorf("%d reads", reads.n)
	}
}

func TestExclusiveBlocksSkipWhatIsShared(t *testing.T) {
	reads := &readCounter{r: build().reader()}
	m, err := Open(reads, Options{})
	must(t, err)
	s, err := m.Sharing()
	must(t, err)
	m.blocks = persistent.NewBlocks(format, reads, builtBlocks) // which has read nothing yet
	s.reader = m
	reads.n = 0
	_, err = s.ExclusiveBlocks(2)
	must(t, err)
	if top := 1; reads.n != top {
		t.Errorf("%d reads for a device of which all is shared", reads.n)
	}
}
