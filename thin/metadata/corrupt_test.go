package metadata

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func sorted[V any](m map[uint64]V) []uint64 { return slices.Sorted(maps.Keys(m)) }

// everything is what all operations of a Reader say of an image.
type everything struct {
	Pool, Held *pool
	References []uint32
	Exclusive  []uint64
}

func readEverything(r io.ReaderAt) (e everything, err error) {
	m, err := Open(r, Options{})
	if err != nil {
		return e, err
	}
	if e.Pool, err = read(m); err != nil {
		return e, err
	}
	for data := range min(m.DataBlocks(), 1000) {
		count, err := m.RefCount(data)
		if err != nil {
			return e, err
		}
		e.References = append(e.References, count)
	}
	s, err := m.Sharing()
	if err != nil {
		return e, err
	}
	for _, d := range e.Pool.Devices {
		exclusive, err := s.ExclusiveBlocks(d.ID)
		if err != nil {
			return e, err
		}
		e.Exclusive = append(e.Exclusive, exclusive)
	}
	if m.Superblock().HeldRoot == 0 {
		return e, nil
	}
	if m, err = Open(r, Options{Held: true}); err != nil {
		return e, err
	}
	e.Held, err = read(m)
	return e, err
}

// A byte that is not as it was is an error, wherever it is.
func TestEveryByteCounts(t *testing.T) {
	restored := make([]byte, exampleBytes)
	_, err := restore(t, example(), exampleBytes).ReadAt(restored, 0)
	must(t, err)
	for name, whole := range map[string][]byte{"built": build().bytes, "restored": restored} {
		t.Run(name, func(t *testing.T) {
			seen := &readRecorder{r: bytes.NewReader(whole), at: map[int64]bool{}}
			want, err := readEverything(seen)
			must(t, err)
			for off := range seen.at {
				for i := range int64(BlockBytes) {
					whole[off+i] ^= byte(1 + i%255)
					got, err := readEverything(bytes.NewReader(whole))
					whole[off+i] ^= byte(1 + i%255)
					var damage *CorruptError
					if err == nil && !reflect.DeepEqual(got, want) {
						t.Fatalf("byte %d of block %d changes the result silently", i, off/BlockBytes)
					}
					if !errors.As(err, &damage) || damage.Block != uint64(off/BlockBytes) {
						t.Fatalf("byte %d of block %d: %v", i, off/BlockBytes, err)
					}
				}
			}
		})
	}
}

type readRecorder struct {
	r  io.ReaderAt
	at map[int64]bool
}

func (c *readRecorder) ReadAt(b []byte, off int64) (int, error) {
	c.at[off] = true
	return c.r.ReadAt(b, off)
}

// A block that was written in place of another one has a checksum that fits.
func TestMisdirectedWrite(t *testing.T) {
	i := build()
	copy(i.block(builtLeft), i.block(builtRight))
	_, err := readEverything(i.reader())
	wantCorrupt(t, err, builtLeft, "it says that it is block 5")
}

func wantCorrupt(t *testing.T, err error, block uint64, problem string) {
	t.Helper()
	var damage *CorruptError
	if !errors.As(err, &damage) || damage.Block != block || !strings.Contains(damage.Problem, problem) {
		t.Errorf("got %v; want a corrupt block %d: %s", err, block, problem)
	}
}

const (
	nodeFlags = 4
	nodeCount = 16
	nodeRoom  = 20
	nodeSize  = 24
	nodeKeys  = nodeHeaderBytes
)

// Blocks whose checksums fit and whose contents make no sense.
func TestCorrupt(t *testing.T) {
	value := func(i int) int { return nodeKeys + 252*keyBytes + i*8 }
	for name, c := range map[string]struct {
		block, field uint64
		value        any // uint32 or uint64
		at           uint64
		problem      string
	}{
		"magic":                     {superblockNumber, 32, uint64(1), superblockNumber, "no superblock of a thin pool"},
		"metadata block size":       {superblockNumber, 340, uint32(16), superblockNumber, "metadata blocks have 16 sectors"},
		"data block size":           {superblockNumber, 336, uint32(127), superblockNumber, "data blocks have 127 sectors"},
		"no data block size":        {superblockNumber, 336, uint32(0), superblockNumber, "data blocks have 0 sectors"},
		"metadata device too large": {superblockNumber, 192, uint64(1 << 40), superblockNumber, "metadata device has"},
		"metadata device too small": {superblockNumber, 192, uint64(1), superblockNumber, "metadata device has 1 blocks"},
		"data device too large":     {superblockNumber, 64, uint64(1<<40 + 1), superblockNumber, "data device has"},
		"held root outside":         {superblockNumber, 56, uint64(builtBlocks), superblockNumber, "held root is block 10 of 10"},
		"held root is a node":       {superblockNumber, 56, uint64(builtTop), builtTop, "as a superblock"},
		"root outside":              {superblockNumber, 320, uint64(builtBlocks), superblockNumber, "leads to block 10"},
		"root is the superblock":    {superblockNumber, 320, uint64(0), superblockNumber, "leads to block 0"},
		"root is a bitmap":          {superblockNumber, 320, uint64(builtBitmap), builtBitmap, "as a B-tree node"},
		"trees exchanged":           {superblockNumber, 320, uint64(builtDetails), builtDetails, "values have 24 bytes and not 8"},
		"no bitmap":                 {builtIndex, nodeKeys, uint64(1), builtIndex, "no bitmap for data block 0"},
		"bitmap is a node":          {builtIndex, nodeKeys + 168*8, uint64(builtTop), builtTop, "as a space map bitmap"},
		"bitmap outside":            {builtIndex, nodeKeys + 168*8, uint64(99), builtIndex, "leads to block 99"},
		"no large count":            {builtRefCounts, nodeKeys, uint64(1), builtRefCounts, "no reference count for data block 70"},
		"small large count":         {builtRefCounts, nodeKeys + 336*8, uint32(2), builtRefCounts, "reference count 2"},
		"thin id":                   {builtDetails, nodeKeys + 8, uint64(1 << 24), builtDetails, "thin device 16777216"},
		"device without mappings":   {builtTop, nodeKeys + 8, uint64(3), builtTop, "no thin 2"},
		"neither leaf nor inner":    {builtLeft, nodeFlags, uint32(0), builtLeft, "flags 0x0"},
		"leaf and inner":            {builtLeft, nodeFlags, uint32(3), builtLeft, "flags 0x3"},
		"value size":                {builtLeft, nodeSize, uint32(4), builtLeft, "values have 4 bytes and not 8"},
		"room":                      {builtLeft, nodeRoom, uint32(255), builtLeft, "room for 255 entries"},
		"room that overflows":       {builtLeft, nodeRoom, uint32(1 << 28), builtLeft, "room for 268435456 entries"},
		"entries":                   {builtLeft, nodeCount, uint32(253), builtLeft, "253 entries and room for 252"},
		"empty leaf":                {builtLeft, nodeCount, uint32(0), builtLeft, "no entries"},
		"empty inner node":          {builtRoot, nodeCount, uint32(0), builtRoot, "no entries"},
		"keys out of order":         {builtLeft, nodeKeys + 8, uint64(10), builtLeft, "key 10 does not come after its key 10"},
		"key below its node":        {builtLeft, nodeKeys, uint64(9), builtLeft, "key 9 is not between 10 and 49"},
		"key above its node":        {builtLeft, nodeKeys + 16, uint64(50), builtLeft, "key 50 is not between 10 and 49"},
		"child outside":             {builtRoot, uint64(value(1)), uint64(1 << 50), builtRoot, "leads to block 1125899906842624"},
		"child is the parent":       {builtRoot, uint64(value(0)), uint64(builtRoot), builtRoot, "key 50 is not between 10 and 49"},
		"child twice":               {builtRoot, uint64(value(0)), uint64(builtRight), builtRight, "key 50 is not between 10 and 49"},
		"data block outside":        {builtLeft, uint64(value(0)), uint64(builtDataBlocks << timeBits), builtLeft, "data block 100 of 100"},
		"virtual block outside":     {builtRight, nodeKeys + 16, uint64(1 << 60), builtRight, "no device is large enough"},
	} {
		t.Run(name, func(t *testing.T) {
			i := build()
			switch v := c.value.(type) {
			case uint32:
				le.PutUint32(i.block(c.block)[c.field:], v)
			case uint64:
				le.PutUint64(i.block(c.block)[c.field:], v)
			}
			i.seal()
			_, err := readEverything(i.reader())
			wantCorrupt(t, err, c.at, c.problem)
		})
	}
}

// A node with one child can lead back to itself without an offence against the order.
func TestCycle(t *testing.T) {
	i := build()
	i.node(builtRoot, flagInternal, childBytes, map[uint64][]uint64{10: {builtRoot}})
	i.seal()
	_, err := readEverything(i.reader())
	wantCorrupt(t, err, builtRoot, "deeper than 32 nodes")
}

func TestUnsupported(t *testing.T) {
	for name, change := range map[string]func(superblock []byte){
		"version":              func(b []byte) { le.PutUint32(b[40:], newestVersion+1) },
		"no version":           func(b []byte) { le.PutUint32(b[40:], 0) },
		"incompatible feature": func(b []byte) { le.PutUint32(b[360:], 1) },
	} {
		t.Run(name, func(t *testing.T) {
			i := build()
			change(i.block(superblockNumber))
			i.seal()
			if _, err := Open(i.reader(), Options{}); !errors.Is(err, ErrUnsupported) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNeedsCheck(t *testing.T) {
	i := build()
	i.block(superblockNumber)[nodeFlags] = flagNeedsCheck
	i.seal()
	if s, err := ReadSuperblock(i.reader()); err != nil || !s.NeedsCheck {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestNoCountsInHeldSnapshot(t *testing.T) {
	m, err := Open(build().reader(), Options{Held: true})
	must(t, err)
	if _, err := m.RefCount(20); !errors.Is(err, ErrNoSpaceMap) {
		t.Errorf("got %v", err)
	}
}
