package clonetarget

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"strings"
	"testing"

	"decant/dm/persistent"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hydrated(m *Reader) (map[uint64]bool, error) {
	got := map[uint64]bool{}
	for run, err := range m.Hydrated() {
		if err != nil {
			return nil, err
		}
		for i := range run.Count {
			got[run.First+i] = true
		}
	}
	return got, nil
}

func wantHydrated(t testing.TB, got, want map[uint64]bool) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%d regions are hydrated, and %d should be, or others", len(got), len(want))
	}
}

// image is a metadata device in memory.
type image struct {
	bytes []byte
	kinds map[uint64]persistent.Kind
}

func (i *image) block(number uint64) []byte {
	return i.bytes[number*persistent.BlockBytes:][:persistent.BlockBytes]
}

// seal gives all known blocks their number and checksum.
func (i *image) seal() {
	for number, k := range i.kinds {
		block := i.block(number)
		le.PutUint64(block[k.NumberAt:], number)
		le.PutUint32(block, persistent.Checksum(block, k))
	}
}

func (i *image) clone() *image { return &image{bytes.Clone(i.bytes), i.kinds} }

func (i *image) reader() *bytes.Reader { return bytes.NewReader(i.bytes) }

func (i *image) hydrated() (map[uint64]bool, error) {
	m, err := Open(i.reader())
	if err != nil {
		return nil, err
	}
	return hydrated(m)
}

// kernelImage is the metadata device of a clone of 41000 regions of 4096 bytes that a
// kernel made (6.1), in which the regions of kernelHydrated are hydrated.
func kernelImage(t testing.TB) *image {
	t.Helper()
	f, err := os.Open("testdata/kernel.img.gz")
	must(t, err)
	defer func() { _ = f.Close() }() // only read
	z, err := gzip.NewReader(f)
	must(t, err)
	content, err := io.ReadAll(z)
	must(t, err)
	i := &image{content, map[uint64]persistent.Kind{}}
	for number := range uint64(len(content) / persistent.BlockBytes) {
		for _, k := range []persistent.Kind{kindSuperblock, persistent.KindNode, persistent.KindArray} {
			if b := i.block(number); le.Uint32(b) == persistent.Checksum(b, k) {
				i.kinds[number] = k
			}
		}
	}
	return i
}

const kernelRegions = 41_000

// kernelHydrated: every hundredth region, the first and last hundred, and those on both
// sides of the border between the blocks of words.
func kernelHydrated() map[uint64]bool {
	want := map[uint64]bool{}
	for r := range uint64(kernelRegions) {
		if r%100 == 0 || r < 100 || r >= kernelRegions-100 || r > 32500 && r < 32700 {
			want[r] = true
		}
	}
	return want
}

func TestReadsWhatAKernelWrote(t *testing.T) {
	i := kernelImage(t)
	m, err := Open(i.reader())
	must(t, err)
	s := m.Superblock()
	if s.Regions() != kernelRegions || s.RegionSectors != 8 || s.TargetSectors != kernelRegions*8 || s.Version != 1 ||
		s.MetadataBlocks*persistent.BlockBytes != uint64(len(i.bytes)) || s.MetadataUsedBlocks == 0 {
		t.Errorf("superblock %+v", s)
	}
	got, err := hydrated(m)
	must(t, err)
	wantHydrated(t, got, kernelHydrated())
}

func TestHydratedEndsWhereTheCallerBreaks(t *testing.T) {
	m, err := Open(kernelImage(t).reader())
	must(t, err)
	for run, err := range m.Hydrated() {
		must(t, err)
		if run != (Run{First: 0, Count: 101}) {
			t.Fatalf("the first run is %v", run)
		}
		break
	}
}

// places are the blocks that reading goes through.
type places struct{ root, words0, words1 uint64 }

func placesOf(t testing.TB, i *image) places {
	m, err := Open(i.reader())
	must(t, err)
	root := m.Superblock().BitsetRoot
	const values = 32 + 252*8
	return places{root, le.Uint64(i.block(root)[values:]), le.Uint64(i.block(root)[values+8:])}
}

// A byte that is not as it was is an error, wherever it is.
func TestEveryByteCounts(t *testing.T) {
	i := kernelImage(t)
	p := placesOf(t, i)
	for _, number := range []uint64{0, p.root, p.words0, p.words1} {
		block := i.block(number)
		for at := range block {
			block[at] ^= byte(1 + at%255)
			_, err := i.hydrated()
			block[at] ^= byte(1 + at%255)
			var damage *persistent.CorruptError
			if !errors.As(err, &damage) || damage.Block != number {
				t.Fatalf("byte %d of block %d: %v", at, number, err)
			}
		}
	}
}

// Blocks whose checksums fit and whose contents make no sense.
func TestCorrupt(t *testing.T) {
	original := kernelImage(t)
	p := placesOf(t, original)
	const values = 32 + 252*8
	for name, c := range map[string]struct {
		block   uint64
		field   int
		value   any // uint32 or uint64
		at      uint64
		problem string
	}{
		"magic":                    {0, 32, uint64(27022010), 0, "no superblock of a clone"},
		"metadata too large":       {0, 44, uint64(1 << 40), 0, "metadata device has"},
		"metadata too small":       {0, 44, uint64(1), 0, "metadata device has 1 blocks"},
		"region size odd":          {0, 172, uint64(9), 0, "regions have 9 sectors"},
		"region size zero":         {0, 172, uint64(0), 0, "regions have 0 sectors"},
		"region size overflows":    {0, 172, uint64(1 << 55), 0, "regions have"},
		"no sectors":               {0, 180, uint64(0), 0, "it is for 0 sectors"},
		"too many regions":         {0, 180, uint64(1<<34 + 1), 0, "it is for 17179869185 sectors"},
		"more regions than bits":   {0, 180, uint64(99_000 * 8), p.words1, "it has 132 words and not 509"},
		"fewer regions than bits":  {0, 180, uint64(40_999 * 8), p.words1, "bits behind the last one, 40998"},
		"fewer blocks than bits":   {0, 180, uint64(100 * 8), p.words0, "it has 509 words and not 2"},
		"root outside":             {0, 188, uint64(1 << 30), 0, "leads to block 1073741824"},
		"root is the superblock":   {0, 188, uint64(0), 0, "leads to block 0"},
		"root is an array block":   {0, 188, p.words0, p.words0, "as a B-tree node"},
		"words in a node":          {p.root, values, p.root, p.root, "as a array block"},
		"words outside":            {p.root, values, uint64(1 << 50), p.root, "leads to block"},
		"no first words":           {p.root, 32, uint64(1), p.root, "key 1 does not come after its key 1"},
		"words left out":           {p.root, 40, uint64(2), p.root, "array block 2 where block 1 of 2 is the next"},
		"words exchanged":          {p.root, values, p.words1, p.words1, "it has 132 words and not 509"},
		"one block of words":       {p.root, 16, uint32(1), p.root, "the array has 1 blocks and not 2"},
		"no block of words":        {p.root, 16, uint32(0), p.root, "the array has 0 blocks and not 2"},
		"size of words":            {p.words0, 12, uint32(4), p.words0, "values have 4 bytes"},
		"room for words":           {p.words0, 4, uint32(510), p.words0, "room for 510 words"},
		"number of words":          {p.words0, 8, uint32(508), p.words0, "it has 508 words and not 509"},
		"number of words overflow": {p.words1, 8, uint32(1 << 31), p.words1, "it has 2147483648 words"},
		"bits behind the last one": {p.words1, 24 + 131*8, uint64(1 << 63), p.words1, "bits behind the last one, 40999"},
	} {
		t.Run(name, func(t *testing.T) {
			i := original.clone()
			switch v := c.value.(type) {
			case uint32:
				le.PutUint32(i.block(c.block)[c.field:], v)
			case uint64:
				le.PutUint64(i.block(c.block)[c.field:], v)
			}
			i.seal()
			_, err := i.hydrated()
			var damage *persistent.CorruptError
			if !errors.As(err, &damage) || damage.Block != c.at || !strings.Contains(damage.Problem, c.problem) {
				t.Errorf("got %v; want a corrupt block %d: %s", err, c.at, c.problem)
			}
		})
	}
}

func TestUnsupportedAndBlank(t *testing.T) {
	i := kernelImage(t)
	le.PutUint32(i.block(0)[40:], 2)
	i.seal()
	if _, err := i.hydrated(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version 2: %v", err)
	}
	clear(i.block(0))
	if _, err := i.hydrated(); !errors.Is(err, ErrBlank) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := Open(bytes.NewReader(i.bytes[:100])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short device: %v", err)
	}
}

// FuzzImage changes bytes of a metadata device, and gives most blocks the number and
// checksum that fit. A change is four bytes: the block among those that are known, two
// that say where in it, and what is put there.
func FuzzImage(f *testing.F) {
	original := kernelImage(f)
	p := placesOf(f, original)
	numbers := []uint64{0, p.root, p.words0, p.words1}
	f.Add([]byte{}, true)
	f.Add([]byte{0, 1, 188, 0}, true)
	f.Add([]byte{1, 0, 16, 1, 2, 1, 2, 9}, true)
	f.Fuzz(func(t *testing.T, changes []byte, seal bool) {
		i := original.clone()
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int(changes[2])
			if changes[1]%2 == 1 {
				at *= 16
			}
			i.block(numbers[int(changes[0])%len(numbers)])[at+int(changes[1])/2%16] = changes[3]
		}
		if seal {
			i.seal()
		}
		checkPlausible(t, i.reader())
	})
}

// FuzzBytes reads anything at all.
func FuzzBytes(f *testing.F) {
	f.Add(kernelImage(f).block(0))
	f.Add([]byte{})
	f.Add(make([]byte, persistent.BlockBytes))
	f.Fuzz(func(t *testing.T, content []byte) { checkPlausible(t, bytes.NewReader(content)) })
}

// checkPlausible holds what is read, without an error, against what holds for any clone.
func checkPlausible(t *testing.T, r io.ReaderAt) {
	m, err := Open(r)
	if err != nil {
		return
	}
	next, end := uint64(0), m.Superblock().Regions()
	for run, err := range m.Hydrated() {
		if err != nil {
			return
		}
		if run.Count == 0 || run.First < next || run.First+run.Count > end {
			t.Fatalf("run %+v, where %d is the next and %d the end", run, next, end)
		}
		next = run.First + run.Count + 1 // else the runs were not joined
	}
}
