package metadata

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"testing"

	"decant/dm/persistent"
)

// kernelImage is the beginning of the metadata device of a pool that a kernel made,
// with a held metadata snapshot.
func kernelImage(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/kernel.img.gz")
	must(t, err)
	defer func() { _ = f.Close() }() // only read
	z, err := gzip.NewReader(f)
	must(t, err)
	content, err := io.ReadAll(z)
	must(t, err)
	return content
}

// kindOf finds out by the checksum what a block is, so that it can get a new one after
// a change.
func kindOf(block []byte) (k persistent.Kind, known bool) {
	for _, k := range []persistent.Kind{kindSuperblock, persistent.KindNode, kindBitmap} {
		if le.Uint32(block) == persistent.Checksum(block, k) {
			return k, true
		}
	}
	return persistent.Kind{}, false
}

// FuzzImage changes bytes of metadata devices, and gives most blocks the number and
// checksum that fit, so that it comes to what is behind them. A change is four bytes:
// the block, two that say where in it, and what is put there.
func FuzzImage(f *testing.F) {
	images := []*image{build(), {kernelImage(f), map[uint64]persistent.Kind{}}}
	for b := range uint64(len(images[1].bytes) / BlockBytes) {
		if k, known := kindOf(images[1].block(b)); known {
			images[1].kinds[b] = k
		}
	}
	f.Add(uint8(0), []byte{}, true)
	f.Add(uint8(1), []byte{1, 0, 16, 0}, true)
	f.Add(uint8(0), []byte{3, 1, 0, 7, 4, 1, 2, 9}, true)
	f.Add(uint8(1), []byte{0, 1, 20, 255}, false)
	f.Fuzz(func(t *testing.T, which uint8, changes []byte, seal bool) {
		original := images[int(which)%len(images)]
		i := &image{bytes.Clone(original.bytes), original.kinds}
		number := uint64(len(i.bytes) / BlockBytes)
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int(changes[2])
			if changes[1]%2 == 1 {
				at *= 16
			}
			i.block(uint64(changes[0]) % number)[at+int(changes[1])/2%16] = changes[3]
		}
		if seal {
			i.seal()
		}
		checkPlausible(t, i.reader())
	})
}

// FuzzBytes reads anything at all. A checksum is not found by chance, so it keeps to
// what comes before that.
func FuzzBytes(f *testing.F) {
	f.Add(build().block(superblockNumber))
	f.Add([]byte{})
	f.Add(make([]byte, BlockBytes))
	f.Fuzz(func(t *testing.T, content []byte) { checkPlausible(t, bytes.NewReader(content)) })
}

// checkPlausible holds what is read, without an error, against what holds for any pool.
// That it ends, and does so with bounded reads, is half of the matter.
func checkPlausible(t *testing.T, r io.ReaderAt) {
	if s, err := ReadSuperblock(r); err == nil && s.Block != 0 {
		t.Errorf("superblock %+v", s)
	}
	reads := &readCounter{r: r}
	e, err := readEverything(reads)
	if limit := 10_000; reads.n > limit {
		t.Errorf("%d reads", reads.n)
	}
	if err != nil {
		return
	}
	for _, p := range []*pool{e.Pool, e.Held} {
		if p != nil {
			checkOrder(t, p)
		}
	}
}

func checkOrder(t *testing.T, p *pool) {
	last := -1
	for _, d := range p.Devices {
		if int(d.ID) <= last {
			t.Errorf("thin %d after thin %d", d.ID, last)
		}
		last = int(d.ID)
		next := uint64(0)
		for _, run := range d.Mappings {
			if run.VirtualBlock < next || run.Blocks == 0 || run.DataBlock+run.Blocks > p.DataBlocks || run.Time >= 1<<timeBits {
				t.Errorf("thin %d: run %+v, where virtual block %d is the next and there are %d data blocks", d.ID, run, next, p.DataBlocks)
			}
			next = run.VirtualBlock + run.Blocks
		}
	}
}
