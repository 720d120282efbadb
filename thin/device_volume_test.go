package thin

import (
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"decant/loopdev"
)

// A block is discarded as soon as all of it was discarded since it was last written
// to, and not before.
func TestDiscardedPartsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blockBytes := rapid.Int64Range(1, 9).Draw(t, "block")
		blocks := rapid.Int64Range(1, 5).Draw(t, "blocks")
		discarded := make([]bool, blocks*blockBytes) // and not given back yet
		var parts discardedParts
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			start := rapid.Int64Range(0, int64(len(discarded))-1).Draw(t, "start")
			end := rapid.Int64Range(start+1, int64(len(discarded))).Draw(t, "end")
			if rapid.Bool().Draw(t, "write") {
				first, last := start/blockBytes, alignUp(end, blockBytes)/blockBytes
				parts.forget(first, last)
				clear(discarded[first*blockBytes : last*blockBytes])
				continue
			}
			first, last := parts.complete(start, end, blockBytes)
			parts.forget(first/blockBytes, max(first, last)/blockBytes) // as discardBlocks does
			for i := start; i < end; i++ {
				discarded[i] = true
			}
			for block := range blocks {
				whole := true
				for i := block * blockBytes; i < (block+1)*blockBytes; i++ {
					whole = whole && discarded[i]
				}
				given := first <= block*blockBytes && (block+1)*blockBytes <= last
				if given != whole {
					t.Fatalf("[%d, %d) of blocks of %d: block %d given back: %t, discarded: %t", start, end, blockBytes, block, given, whole)
				}
				if whole {
					clear(discarded[block*blockBytes : (block+1)*blockBytes])
				}
			}
		}
		for block := range parts {
			all := discarded[block*blockBytes : (block+1)*blockBytes]
			if !slices.Contains(all, true) || !slices.Contains(all, false) {
				t.Fatalf("block %d is remembered as %v", block, all)
			}
		}
	})
}

func TestBlockSetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s blockSet
		model := map[int64]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			block := rapid.Int64Range(0, 300).Draw(t, "block")
			if rapid.Bool().Draw(t, "add") {
				s.add(block)
				model[block] = true
				continue
			}
			end := block + rapid.Int64Range(0, 100).Draw(t, "count")
			s.remove(block, end)
			for b := block; b < end; b++ {
				delete(model, b)
			}
		}
		for b := range int64(500) {
			if s.has(b) != model[b] {
				t.Fatalf("block %d: %t, want %t", b, s.has(b), model[b])
			}
		}
	})
}

// fileVolume is a volume over a file, in which discards and writes can be seen. It
// has a pool of blocks, and no kernel behind them.
func fileVolume(t *testing.T, bytes, blockBytes int64) *deviceVolume {
	t.Helper()
	device, err := loopdev.Open(filepath.Join(t.TempDir(), "volume"), loopdev.Options{Write: true, CreateBytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := device.Close(); err != nil {
			t.Error(err)
		}
	})
	return &deviceVolume{Device: device, blockBytes: blockBytes, sparse: true, key: "test:1", mapping: allMapped{bytes}}
}

// allMapped is a volume of which all is mapped.
type allMapped struct{ bytes int64 }

func (m allMapped) mapped(off int64) (start, end int64, err error) { return off, m.bytes, nil }
func (m allMapped) forget()                                        {}
func (m allMapped) sharedBytes() (int64, error)                    { return 0, nil }
func (m allMapped) close() error                                   { return nil }

func (v *deviceVolume) mustWrite(t *testing.T, off, n int64, fill byte) {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = fill
	}
	if _, err := v.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func (v *deviceVolume) wantFill(t *testing.T, off, n int64, fill byte) {
	t.Helper()
	p := make([]byte, n)
	if _, err := v.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	for i, b := range p {
		if b != fill {
			t.Fatalf("byte %d is %#x, want %#x", off+int64(i), b, fill)
		}
	}
}

func (v *deviceVolume) wantAllocated(t *testing.T, want int64) {
	t.Helper()
	if err := v.Device.SyncFS(); err != nil {
		t.Fatal(err)
	}
	if got, err := v.Device.AllocatedBytes(); err != nil || got != want {
		t.Errorf("%d bytes are allocated, %v, want %d", got, err, want)
	}
}

const testBlock = 192 << 10 // a multiple of 64 KiB, as the kernel wants it, and no power of two

// fault 10: whatever was there, zeroed bytes read as zeros and the others are left
// alone, in every sort of pool.
func TestFault10DeviceVolumeZero(t *testing.T) {
	sorts := map[string]func(v *deviceVolume){
		"plain":               func(*deviceVolume) {},
		"ignores discards":    func(v *deviceVolume) { v.noDiscards = true },
		"skips zeroing":       func(v *deviceVolume) { v.skipsZeros = true },
		"external origin":     func(v *deviceVolume) { v.sparse = false },
		"blocks a power of 2": func(v *deviceVolume) { v.blockBytes = 256 << 10 },
	}
	const size = 16 * testBlock
	ranges := [][2]int64{{0, size}, {0, testBlock}, {4096, 8192}, {testBlock - 4096, 8192}, {1000, 3*testBlock + 5000}, {testBlock, testBlock}, {size - 5000, 5000}}
	for name, change := range sorts {
		t.Run(name, func(t *testing.T) {
			for _, r := range ranges {
				v := fileVolume(t, size, testBlock)
				change(v)
				v.mustWrite(t, 0, size, 0xaa)
				if err := v.Zero(r[0], r[1]); err != nil {
					t.Fatal(err)
				}
				v.wantFill(t, 0, r[0], 0xaa)
				v.wantFill(t, r[0], r[1], 0)
				v.wantFill(t, r[0]+r[1], size-r[0]-r[1], 0xaa)
			}
		})
	}
}

// Zeros are not written where zeros are: that would take space.
func TestDeviceVolumeZeroTakesNoSpace(t *testing.T) {
	v := fileVolume(t, 4*testBlock, testBlock)
	v.noDiscards = true
	if err := v.Zero(1000, 3*testBlock); err != nil {
		t.Fatal(err)
	}
	v.wantAllocated(t, 0)
}

// fault 44: in a pool that does not zero new blocks, a block is whole before a part
// of it is written: the blocks at the edges of the write, and no others.
func TestFault44PartOfBlockIsWrittenInWholeBlock(t *testing.T) {
	for _, test := range []struct {
		name     string
		off, n   int64
		allocate int64
	}{
		{"inside", 4096, 4096, testBlock},
		{"whole", testBlock, testBlock, testBlock},
		{"both edges", 4096, 2 * testBlock, 3 * testBlock},
		{"short last block", 3 * testBlock, 4096, testBlock / 2},
		{"to the end", 3*testBlock + 4096, testBlock/2 - 4096, testBlock / 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := fileVolume(t, 3*testBlock+testBlock/2, testBlock)
			v.skipsZeros = true
			v.mustWrite(t, test.off, test.n, 0xaa)
			v.wantAllocated(t, test.allocate)
			v.wantFill(t, 0, test.off, 0)
			v.wantFill(t, test.off, test.n, 0xaa)
			v.wantFill(t, test.off+test.n, v.Bytes()-test.off-test.n, 0)
		})
	}
}

// fault 44: data of a block that is mapped is not written over.
func TestFault44MappedBlockKeepsItsData(t *testing.T) {
	v := fileVolume(t, 4*testBlock, testBlock)
	v.skipsZeros = true
	v.mustWrite(t, 0, 2*testBlock, 0xaa)
	v.whole = blockSet{} // as after it was opened again
	v.mustWrite(t, 4096, 4096, 0xbb)
	v.wantFill(t, 0, 4096, 0xaa)
	v.wantFill(t, 8192, 2*testBlock-8192, 0xaa)
}

// fault 44: a block that was discarded is unmapped, and has to be made whole again.
func TestFault44DiscardedBlockIsMadeWholeAgain(t *testing.T) {
	v := fileVolume(t, 4*testBlock, testBlock)
	v.skipsZeros = true
	v.mustWrite(t, 4096, 4096, 0xaa)
	if err := v.Discard(0, testBlock); err != nil {
		t.Fatal(err)
	}
	v.wantAllocated(t, 0)
	v.mustWrite(t, 4096, 4096, 0xaa)
	v.wantAllocated(t, testBlock)
}

func TestDeviceVolumeDiscardsBlocksInParts(t *testing.T) {
	v := fileVolume(t, 4*testBlock, testBlock)
	v.mustWrite(t, 0, v.Bytes(), 0xaa)
	for off := int64(0); off < v.Bytes(); off += 64 << 10 {
		if err := v.Discard(off, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	v.wantAllocated(t, 0)
}

// A part that was written to since is not discarded with the rest of its block.
func TestDeviceVolumeKeepsWhatIsWrittenAfterDiscard(t *testing.T) {
	v := fileVolume(t, testBlock, testBlock)
	v.mustWrite(t, 0, testBlock, 0xaa)
	for _, step := range []func() error{
		func() error { return v.Discard(0, testBlock/2) },
		func() error { v.mustWrite(t, 0, 4096, 0xbb); return nil },
		func() error { return v.Discard(testBlock/2, testBlock/2) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	v.wantFill(t, 0, 4096, 0xbb)
}

// faults 38 and 39: only a pool that can write has kept what was written.
func TestFault38PoolInTrouble(t *testing.T) {
	for status, good := range map[string]bool{
		"1 2/10 3/20 - rw discard_passdown queue_if_no_space - 1024":                true,
		"1 2/10 3/20 - ro discard_passdown queue_if_no_space - 1024":                false,
		"1 2/10 3/20 - out_of_data_space discard_passdown queue_if_no_space - 1024": true,
		"1 2/10 3/20 - ro discard_passdown queue_if_no_space needs_check 1024":      false,
		"1 2/10 3/20 - rw no_discard_passdown error_if_no_space needs_check 1024":   false,
		"Fail":  false,
		"Error": false,
	} {
		s, err := ParseTargetStatus(status)
		if err != nil {
			t.Fatal(err)
		}
		if trouble := s.Trouble(); (trouble == "") != good {
			t.Errorf("%q: %q", status, trouble)
		}
	}
}

func TestDeviceVolumeLeavesRests(t *testing.T) {
	for _, test := range []struct {
		skips        bool
		block, align int64
		want         bool
	}{
		{false, 1 << 20, 4096, false},
		{true, 64 << 10, 1 << 20, false},
		{true, 64 << 10, 64 << 10, false},
		{true, 1 << 20, 64 << 10, true},
		{true, 192 << 10, 1 << 20, true},
	} {
		v := deviceVolume{skipsZeros: test.skips, blockBytes: test.block}
		if got := v.LeavesRests(test.align); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

// The kernel cuts a discard that begins at a sector which it does not take for
// aligned; a discard is begun at one if blocks that were discarded lie between.
func TestDeviceVolumeDiscardsUncut(t *testing.T) {
	v := fileVolume(t, 16*testBlock, testBlock)
	for block, want := range map[int64]bool{0: true, 1: true, 2: false, 3: false, 4: true, 5: true, 6: false} {
		if got := v.startsUncut(block * testBlock); got != want {
			t.Errorf("block %d: %t", block, got)
		}
	}
	v.mustWrite(t, 0, v.Bytes(), 0xaa)
	for _, block := range []int64{0, 1, 2} {
		if err := v.Discard(block*testBlock, testBlock); err != nil {
			t.Fatal(err)
		}
	}
	// What is written to a discarded block is not discarded again with the next one.
	v.mustWrite(t, 2*testBlock+4096, 4096, 0xbb)
	if err := v.Discard(3*testBlock, testBlock); err != nil {
		t.Fatal(err)
	}
	v.wantFill(t, 2*testBlock+4096, 4096, 0xbb)
	v.wantFill(t, 4*testBlock, testBlock, 0xaa)
}
